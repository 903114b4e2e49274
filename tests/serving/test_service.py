"""The service as BentoML runs it, in this process: what is refused, what is answered, what is counted."""

import gc
import json
import threading
import weakref
from concurrent.futures import wait
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import Client

from deploykit.artifact import GOLDEN, GRAPH, MANIFEST, Artifact, ServeOptions
from deploykit.predictor import Predictor
from deploykit.serving import guard, keys
from deploykit.serving.service import build

PREDICT = "/v1/predict"
TEXTS = ["a great film", "the plot is weak"]
BODY = {"texts": TEXTS}


@pytest.fixture
def serve(key_file, alice, monkeypatch):
    """`serve(package) -> Client`: a service that runs until the test ends, and a client with alice's key."""
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    running = []

    def start(package):
        running.append(Client(build(package).to_asgi(), headers={"x-api-key": alice}).__enter__())
        return running[-1]

    yield start
    for client in running:
        client.__exit__()


@pytest.fixture
def client(serve, package):
    return serve(package)


@pytest.fixture
def engine(client):
    """Holds the engine: `started` once it has a batch, goes on with `go`; `batches` lists their sizes."""
    runtime = client._app._runtime
    found = SimpleNamespace(started=threading.Event(), go=threading.Event(), batches=[])
    compute = runtime._batcher._compute

    def held(texts, encodings):
        found.batches.append(len(texts))
        found.started.set()
        assert found.go.wait(10)
        return compute(texts, encodings)

    runtime._batcher._compute = held
    yield found
    found.go.set()


def metrics(client):
    """The page of the metrics as `{name{labels}: value}`."""
    page = client.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}


def assert_problem(answer, status, detail):
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == status
    assert content["instance"] == answer.headers["x-request-id"]
    assert content["title"]
    assert detail in content["detail"]


def test_no_key_a_wrong_key_and_a_key_for_something_else(client, key_file):
    answer = client.post(PREDICT, json_body=BODY, headers={"x-api-key": None})
    assert_problem(answer, 401, "Authorization: Bearer")
    assert answer.headers["www-authenticate"] == 'Bearer realm="deploykit"'
    assert_problem(client.post(PREDICT, json_body=BODY, headers={"x-api-key": "dk_x"}), 401, "not one of")
    basic = {"x-api-key": None, "authorization": "Basic YTpi"}
    assert_problem(client.post(PREDICT, json_body=BODY, headers=basic), 401, "needs a key")
    assert_problem(client.get("/docs.json"), 403, "lacks the scope 'docs'")
    assert_problem(client.get("/"), 403, "lacks the scope 'docs'")


@pytest.mark.parametrize("path", ["/nope", "/v1/predict/", "/v1", "/predict", "//v1/predict", "/schema", "/metrics/x"])
def test_unknown_paths(client, path):
    assert_problem(client.get(path), 404, "POST /v1/predict")


def test_the_wrong_method(client):
    answer = client.get(PREDICT)
    assert_problem(answer, 405, "POST")
    assert answer.headers["allow"] == "POST"
    assert client.post("/metrics").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle"]
)
def test_the_wrong_content_type(client, kind):
    answer = client.post(PREDICT, content=json.dumps(BODY).encode(), headers={"content-type": kind})
    assert_problem(answer, 415, "application/json")


def test_a_body_that_is_too_large_announced_or_not(client):
    headers = {"content-type": "application/json"}
    assert_problem(
        client.post(PREDICT, content=b"{}", headers={**headers, "content-length": "1048577"}), 413, "1048576"
    )
    assert_problem(client.post(PREDICT, content=[b" " * 65536] * 17, headers=headers), 413, "1048576")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"texts": ["\xff"]}', b'{"texts": ["\\ud800"]}', b"[" * 10000, b"nul"]
)
def test_what_is_not_json(client, content):
    answer = client.post(PREDICT, content=content, headers={"content-type": "application/json"})
    assert_problem(answer, 400, "not JSON")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "texts"),
        ([], "body"),
        ({"texts": []}, "texts"),
        ({"texts": "a"}, "texts"),
        ({"texts": ["a", 1]}, "texts.1"),
        ({"texts": [None]}, "texts.0"),
        ({"texts": ["a"] * 257}, "texts"),
        ({"texts": ["a"], "text": "b"}, "text"),
        ({"texts": ["a"], "text_pairs": ["b"]}, "text_pairs"),
        ({"texts": ["a"], "k" * 5000: 1}, "k" * 80),
    ],
)
def test_json_that_does_not_fit_says_where(client, body, where):
    answer = client.post(PREDICT, json_body=body)
    assert_problem(answer, 422, "does not fit")
    assert [error["where"] for error in answer.json()["errors"]] == [where]


def test_problems_and_log_lines_quote_no_text(serve, package, capfd):
    client = serve(package)
    secret = "my name is Ozymandias"
    client.post(PREDICT, json_body={"texts": [secret]})
    answer = client.post(PREDICT, json_body={"texts": [secret, 1], "other": secret})
    log = capfd.readouterr().out
    assert log.count(PREDICT) == 2
    assert "Ozymandias" not in answer.text + log


def test_too_many_requests_a_minute(client, key_file, monkeypatch):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    slow = {"x-api-key": keys.add(key_file, "slow", requests_per_minute=2)}
    assert [client.post(PREDICT, json_body=BODY, headers=slow).status for _ in range(2)] == [200, 200]
    answer = client.post(PREDICT, json_body=BODY, headers=slow)
    assert_problem(answer, 429, "2 requests a minute")
    assert 25 <= int(answer.headers["retry-after"]) <= 30
    assert client.post(PREDICT, json_body=BODY).status == 200


def test_a_full_queue_and_a_deadline(serve, make_package, tmp_path):
    made = make_package(tmp_path / "p", serve=ServeOptions(timeout_s=0.3, max_queue_tokens=12))
    client = serve(made.path)
    go = threading.Event()
    client._app._runtime._batcher._compute = lambda texts, encodings: go.wait(2)
    late = [client.start("POST", PREDICT, json_body={"texts": ["a great film"]})]
    while not client._app._runtime._batcher.busy_s:
        pass
    late += [client.start("POST", PREDICT, json_body={"texts": ["a great film"]}) for _ in range(2)]
    refused = client.post(PREDICT, json_body=BODY)
    assert_problem(refused, 503, "too many texts are waiting")
    assert int(refused.headers["retry-after"]) >= 1
    for answer in late:
        assert_problem(answer.result(5), 504, "no answer within 0.3 s")
    go.set()
    assert metrics(client)['deploykit_rejected_total{reason="deadline"}'] == 3


def test_too_many_at_once(client, engine, monkeypatch):
    monkeypatch.setattr(guard, "MOST_IN_FLIGHT", 1)
    first = client.start("POST", PREDICT, json_body=BODY)
    assert engine.started.wait(5)
    assert_problem(client.post(PREDICT, json_body=BODY), 503, "in progress")
    assert client.get("/livez").status == 200
    engine.go.set()
    assert first.result(5).status == 200


def test_a_slow_body_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    monkeypatch.setattr(guard, "_read", lambda receive, most: guard.asyncio.sleep(5))
    assert_problem(client.post(PREDICT, json_body=BODY), 408, "did not arrive")


@pytest.mark.parametrize("place", ["check", "wait"])
def test_the_guard_fails_closed_and_at_once(client, monkeypatch, place):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(keys.Keys if place == "check" else guard.Runtime, "check", broken, raising=False)
    if place == "wait":
        client._app._runtime.limits = SimpleNamespace(wait=broken)
    assert_problem(client.post(PREDICT, json_body=BODY), 503, "could not check")


def test_a_failure_inside_is_a_problem_too(client, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError("a text")

    monkeypatch.setattr(client._app._runtime, "predict", broken)
    answer = client.post(PREDICT, json_body=BODY)
    assert_problem(answer, 500, "the log has the request id")
    assert "a text" not in answer.text


def test_a_handler_that_never_answers_is_given_up(client, monkeypatch):
    monkeypatch.setattr(guard, "BACKSTOP_S", 0.05 - client._app._runtime.settings.timeout_s)
    monkeypatch.setattr(client._app._runtime, "predict", lambda *_: guard.asyncio.sleep(10))
    assert_problem(client.post(PREDICT, json_body=BODY), 504, "no answer in time")


def test_nothing_of_a_request_is_kept_after_its_answer(client, monkeypatch):
    runtime, kept = client._app._runtime, []
    predict = runtime.predict

    def remembering(texts, pairs, call):
        kept.append(weakref.ref(call))
        return predict(texts, pairs, call)

    monkeypatch.setattr(runtime, "predict", remembering)
    for _ in range(5):
        assert client.post(PREDICT, json_body=BODY).status == 200
    gc.collect()
    assert [ref() for ref in kept[:-1]] == [None] * 4


def test_websockets_are_refused(client):
    sent = []

    async def send(message):
        sent.append(message)

    guard.asyncio.run(client._app({"type": "websocket", "path": PREDICT}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_flipped_byte_keeps_the_service_from_getting_ready(serve, copied, capfd):
    content = bytearray((copied / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / GRAPH).write_bytes(content)
    client = serve(copied)
    assert_problem(client.get("/readyz"), 503, "not ready")
    assert_problem(client.post(PREDICT, json_body=BODY), 503, "not ready")
    assert client.get("/livez").status == 200
    assert "model.onnx was changed after it was made" in capfd.readouterr().out
    found = metrics(client)
    assert (found["deploykit_ready"], found["deploykit_golden_passed"]) == (0, 0)


def test_moved_golden_answers_keep_the_service_from_getting_ready(serve, make_package, tmp_path, monkeypatch, capfd):
    made = make_package(tmp_path / "p")
    predict = Predictor.scores
    monkeypatch.setattr(Predictor, "scores", lambda *args: [rows + np.float32([[0.0, 0.5]]) for rows in predict(*args)])
    client = serve(made.path)
    assert_problem(client.get("/readyz"), 503, "not ready")
    assert "golden answers moved" in capfd.readouterr().out
    assert metrics(client)["deploykit_golden_passed"] == 0


def test_a_damaged_golden_set_keeps_the_service_from_getting_ready(serve, copied):
    (copied / GOLDEN).write_text("{}")
    assert serve(copied).get("/readyz").status == 503


def test_two_requests_run_as_one_batch(client, engine):
    first = client.start("POST", PREDICT, json_body={"texts": ["a great film"]})
    assert engine.started.wait(5)
    others = [client.start("POST", PREDICT, json_body={"texts": ["the plot is weak"]}) for _ in range(2)]
    while metrics(client)["deploykit_queue_items"] < 2:
        pass
    engine.go.set()
    wait([first, *others], 5)
    assert engine.batches == [1, 2]
    assert others[0].result().json() == others[1].result().json()


def test_a_client_that_hangs_up_is_not_computed_for(client, engine):
    first = client.start("POST", PREDICT, json_body=BODY)
    assert engine.started.wait(5)
    left = client.start("POST", PREDICT, json_body=BODY, leave_after=0.05)
    assert left.result(5).status == 499
    engine.go.set()
    first.result(5)
    assert engine.batches == [2]
    assert metrics(client)['deploykit_rejected_total{reason="client_gone"}'] == 1


def test_answers(client, package):
    answer = client.post(PREDICT, json_body=BODY)
    assert answer.status == 200
    artifact = Artifact.load(package)
    predictor = Predictor.load(artifact, threads=1)
    expected = [
        predictor.task.answer(scores, text, encoding, predictor.labels).model_dump()
        for scores, text, encoding in zip(
            predictor.predict(TEXTS), TEXTS, predictor.tokenizer.encode(TEXTS), strict=True
        )
    ]
    content = answer.json()
    assert content["model"] == {"name": "tiny", "version": artifact.manifest.key[:12]}
    for found, wanted in zip(content["predictions"], expected, strict=True):
        assert found["label"] == wanted["label"]
        np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-6)


def test_a_long_text_is_cut_and_says_so(client):
    texts = ["great " * 1000, "great"]
    found = client.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
    assert [answer["truncated"] for answer in found] == [True, False]
    assert found[0]["tokens"] == 64
    assert metrics(client)["deploykit_truncated_total"] == 1


def test_pairs_are_asked_for_when_the_model_reads_pairs(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "pairs", pair=True).path)
    assert client.post(PREDICT, json_body={"texts": ["a"]}).json()["errors"][0]["where"] == "text_pairs"
    uneven = client.post(PREDICT, json_body={"texts": ["a"], "text_pairs": ["b", "c"]})
    assert uneven.json()["errors"] == [
        {"where": "body", "message": "1 texts and 2 text_pairs, expected as many of each"}
    ]
    answer = client.post(PREDICT, json_body={"texts": ["the film"], "text_pairs": ["the plot"]})
    assert answer.json()["predictions"][0]["tokens"] == 7


def test_spans_have_true_offsets(serve, make_package, tmp_path):
    labels = ("O", "B-NAME", "I-NAME")
    made = make_package(tmp_path / "spans", task="token-classification", labels=labels)
    text = "we saw anna london there ."
    (answer,) = serve(made.path).post(PREDICT, json_body={"texts": [text]}).json()["predictions"]
    assert answer["entities"]
    assert all(text[found["start"] : found["end"]] == found["text"] for found in answer["entities"])


def test_the_request_id_is_taken_when_it_is_harmless(client):
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made_up = client.get("/livez", headers={"x-request-id": 'a"b\n'}).headers["x-request-id"]
    assert len(made_up) == 32


def test_one_line_a_request(serve, package, capfd, log_lines):
    client = serve(package)
    client.post(PREDICT, json_body=BODY)
    client.get("/%0Ainjected")
    answered, refused = log_lines(capfd.readouterr().out)[-2:]
    assert (answered["client"], answered["route"], answered["status"], answered["texts"]) == ("alice", PREDICT, 200, 2)
    assert (refused["client"], refused["route"], refused["status"]) == ("none", "unknown", 404)
    assert "injected" not in json.dumps(refused)


def test_keys_change_while_the_service_runs(client, key_file, alice, monkeypatch):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    bob = {"x-api-key": None, "authorization": f"Bearer {keys.add(key_file, 'bob')}"}
    assert client.post(PREDICT, json_body=BODY, headers=bob).status == 200
    keys.revoke(key_file, "alice")
    assert client.post(PREDICT, json_body=BODY).status == 401
    key_file.write_text("{")
    assert client.post(PREDICT, json_body=BODY, headers=bob).status == 200


def test_the_metrics_are_there_from_the_first_scrape(client):
    found = metrics(client)
    for name in (
        *("requests_in_flight", "queue_items", "queue_tokens", "ready", "golden_passed", "keys", "tokens_total"),
        *("queue_seconds_count", "batch_items_count", "batch_tokens_count", "batch_padding_ratio_count"),
        *("inference_seconds_count", "tokenize_seconds_count", "confidence_count", "truncated_total"),
        *('rejected_total{reason="rate"}', 'predictions_total{label="positive"}', 'predictions_total{label="other"}'),
        f'requests_total{{route="{PREDICT}",status="504"}}',
    ):
        assert f"deploykit_{name}" in found
    assert found["deploykit_ready"] == found["deploykit_golden_passed"] == found["deploykit_keys"] == 1
    assert any(name.startswith('deploykit_model_info{engine="onnxruntime",name="tiny"') for name in found)


def test_counts_add_up(client):
    before = metrics(client)
    labels = [answer["label"] for answer in client.post(PREDICT, json_body=BODY).json()["predictions"]]
    client.post(PREDICT, json_body={})
    after = metrics(client)

    def grown(name):
        return after[f"deploykit_{name}"] - before[f"deploykit_{name}"]

    assert grown(f'requests_total{{route="{PREDICT}",status="200"}}') == 1
    assert grown(f'requests_total{{route="{PREDICT}",status="422"}}') == 1
    assert grown('rejected_total{reason="invalid"}') == 1
    assert grown(f'predictions_total{{label="{labels[0]}"}}') == labels.count(labels[0])
    assert grown("tokens_total") == 11
    assert grown("batch_items_sum") == grown("confidence_count") == 2
    assert grown(f'request_seconds_count{{route="{PREDICT}"}}') == 2


def test_odd_paths_do_not_grow_the_metrics(client):
    before = set(metrics(client))
    client.post(PREDICT, json_body=BODY)
    first = set(metrics(client))
    for index in range(200):
        client.get(f"/scan/{index}")
        client.request(f"M{index}", f"/v1/predict/{index}")
    assert set(metrics(client)) == first
    assert {name for name in first - before if "status" not in name} == set()


def test_metrics_can_be_public_and_access_control_off(package, monkeypatch, key_file, alice):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    monkeypatch.setenv("DEPLOYKIT_METRICS_PUBLIC", "on")
    with Client(build(package).to_asgi()) as client:
        assert client.get("/metrics").status == 200
        assert client.post(PREDICT, json_body=BODY).status == 401
    monkeypatch.setenv("DEPLOYKIT_AUTH", "off")
    with Client(build(package).to_asgi()) as client:
        assert client.post(PREDICT, json_body=BODY).status == 200


def test_the_description_is_typed_and_has_an_example(serve, package, key_file):
    docs = {"x-api-key": keys.add(key_file, "docs", ["docs"])}
    content = serve(package).get("/docs.json", headers=docs).json()
    schemas = content["components"]["schemas"]
    assert set(schemas["Answer"]["properties"]) == {"label", "score", "scores", "tokens", "truncated"}
    assert "A film that I will watch again." in json.dumps(content)
    assert content["info"]["description"] == "# tiny\n"


def test_a_newer_manifest_is_refused_before_anything_starts(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(Exception, match=r"format version 99.*Upgrade"):
        build(copied)
