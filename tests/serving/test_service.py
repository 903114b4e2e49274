"""The service as BentoML runs it, in this process: when it is ready, what it answers, what it counts."""

import json
from concurrent.futures import wait

import numpy as np
import pytest
from asgi import BODY, PREDICT, TEXTS, Client, assert_problem, metrics

from deploykit.artifact import GOLDEN, GRAPH, MANIFEST, Artifact
from deploykit.inference.predictor import Predictor
from deploykit.serving.access import check, keys
from deploykit.serving.service import build


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
    run, shift = Predictor.run, np.float32([0.0, 0.5])
    monkeypatch.setattr(Predictor, "run", lambda *args: [{"logits": part["logits"] + shift} for part in run(*args)])
    client = serve(made.path)
    assert_problem(client.get("/readyz"), 503, "not ready")
    assert "golden answers moved" in capfd.readouterr().out
    assert metrics(client)["deploykit_golden_passed"] == 0


def test_a_damaged_golden_set_keeps_the_service_from_getting_ready(serve, copied):
    (copied / GOLDEN).write_text("{}")
    assert serve(copied).get("/readyz").status == 503


def test_an_engine_that_cannot_load_keeps_the_service_from_getting_ready(serve, package, monkeypatch, capfd):
    monkeypatch.setattr(Predictor, "load", lambda *_: 1 / 0)
    client = serve(package)
    assert client.get("/readyz").status == 503
    assert client.get("/livez").status == 200
    log = capfd.readouterr().out
    assert "this service will not become ready: division by zero" in log
    assert "ZeroDivisionError" in log


def test_a_stuck_engine_is_not_alive(client, engine, monkeypatch):
    assert client.get("/livez").status == 200
    first = client.start("POST", PREDICT, json_body=BODY)
    assert engine.started.wait(5)
    runtime = client._app._runtime
    monkeypatch.setattr(runtime, "settings", runtime.settings.model_copy(update={"stuck_s": 0.0}))
    assert client.get("/livez").status == 503
    engine.go.set()
    assert first.result(5).status == 200


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
    predictor = Predictor.load(artifact, cores=1)
    expected = [answer.model_dump() for answer in predictor.answers(TEXTS)]
    content = answer.json()
    assert content["model"] == {"name": "tiny", "version": artifact.manifest.key[:12]}
    for found, wanted in zip(content["predictions"], expected, strict=True):
        assert found["label"] == wanted["label"]
        np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-6)


@pytest.mark.parametrize(
    ("most", "words", "windows", "truncated"), [(1, 1000, 1, True), (16, 200, 4, False), (16, 1000, 16, True)]
)
def test_a_long_text_is_read_in_windows_and_what_is_cut_says_so(
    serve, make_package, tmp_path, most, words, windows, truncated
):
    client = serve(make_package(tmp_path / "p", task_options={"max_windows": most}).path)
    texts = ["the plot is weak", "great " * words, "great"]
    found = client.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
    assert [answer["windows"] for answer in found] == [1, windows, 1]
    assert [answer["truncated"] for answer in found] == [False, truncated, False]
    assert 64 * (windows - 1) < found[1]["tokens"] <= 64 * windows
    seen = metrics(client)
    assert (seen["deploykit_truncated_total"], seen["deploykit_windowed_total"]) == (truncated, windows > 1)
    alone = [client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"][0] for text in texts]
    for one, other in zip(found, alone, strict=True):  # the parts are put together again, each in its place
        assert one["label"] == other["label"]
        np.testing.assert_allclose(list(one["scores"].values()), list(other["scores"].values()), atol=1e-5)


def test_names_far_into_a_text_have_their_place_in_all_of_it(serve, make_package, tmp_path):
    labels = ("O", "B-NAME", "I-NAME")
    client = serve(make_package(tmp_path / "p", task="token-classification", labels=labels).path)
    text = " ".join(["the", "plot", "is", "weak"] * 60)
    (found,) = client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"]
    assert found["windows"] > 1
    assert not found["truncated"]
    assert found["entities"], "the tiny model finds names everywhere"
    assert max(entity["end"] for entity in found["entities"]) > len(text) // 2
    for entity in found["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]


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
    monkeypatch.setattr(check, "POLL_S", 0.0)
    bob = {"x-api-key": None, "authorization": f"Bearer {keys.add(key_file, 'bob')}"}
    assert client.post(PREDICT, json_body=BODY, headers=bob).status == 200
    keys.revoke(key_file, "alice")
    assert client.post(PREDICT, json_body=BODY).status == 401
    key_file.write_text("{")
    assert client.post(PREDICT, json_body=BODY, headers=bob).status == 200


def test_the_metrics_are_there_from_the_first_scrape(client):
    found = metrics(client)
    for name in (
        *("requests_in_flight", "queue_items", "queue_tokens", "ready", "golden_passed", "keys", "fallback"),
        *("queue_seconds_count", "batch_items_count", "batch_tokens_count", "batch_padding_ratio_count"),
        *("inference_seconds_count", "tokenize_seconds_count", "confidence_count", "input_tokens_count"),
        *("tokens_total", "truncated_total"),
        *('rejected_total{reason="rate"}', 'predictions_total{label="positive"}', 'predictions_total{label="other"}'),
        f'requests_total{{route="{PREDICT}",status="504"}}',
    ):
        assert f"deploykit_{name}" in found
    assert found["deploykit_ready"] == found["deploykit_golden_passed"] == found["deploykit_keys"] == 1
    assert any(name.startswith('deploykit_model_info{engine="onnxruntime",graph="model.onnx",') for name in found)


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
    fields = {"label", "score", "scores", "tokens", "windows", "truncated", "abstained"}
    assert set(schemas["Answer"]["properties"]) == fields
    assert "A film that I will watch again." in json.dumps(content)
    assert content["info"]["description"] == "# tiny\n"


def test_a_newer_manifest_is_refused_before_anything_starts(copied):
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(Exception, match=r"format version 99.*Upgrade"):
        build(copied)
