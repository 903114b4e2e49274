"""The guard, with BentoML behind it in this process: every refusal, and what it tells the client."""

import asyncio
import contextlib
import gc
import json
import threading
import time
import weakref

import pytest
from asgi import BODY, PREDICT, assert_problem, metrics

from deploykit.artifact import ServeOptions
from deploykit.serving.access import check, keys, rate_limits
from deploykit.serving.http import bodies, guard, slots
from deploykit.serving.http.routes import JSON_TYPE
from deploykit.serving.model import ServedModel
from deploykit.serving.problems import Problem
from deploykit.serving.telemetry.predictions import PredictionStatistics


def test_no_key_a_wrong_key_and_a_key_for_something_else(client, key_file):
    answer = client.post(PREDICT, json_body=BODY, headers={"x-api-key": None})
    assert_problem(answer, 401, "Authorization: Bearer")
    assert answer.headers["www-authenticate"] == 'Bearer realm="deploykit"'
    assert_problem(client.post(PREDICT, json_body=BODY, headers={"x-api-key": "dk_x"}), 401, "not one of")
    basic = {"x-api-key": None, "authorization": "Basic YTpi"}
    assert_problem(client.post(PREDICT, json_body=BODY, headers=basic), 401, "needs a key")
    assert_problem(client.get("/docs.json"), 403, "lacks the scope 'docs'")


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
    monkeypatch.setattr(check, "POLL_S", 0.0)
    slow = {"x-api-key": keys.add(key_file, "slow", requests_per_minute=2)}
    assert [client.post(PREDICT, json_body=BODY, headers=slow).status for _ in range(2)] == [200, 200]
    answer = client.post(PREDICT, json_body=BODY, headers=slow)
    assert_problem(answer, 429, "2 requests a minute")
    assert 25 <= int(answer.headers["retry-after"]) <= 30
    assert client.post(PREDICT, json_body=BODY).status == 200


def test_too_many_tokens_a_minute_and_too_many_at_once(client, engine, key_file, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    engine.go.set()
    few = {"x-api-key": keys.add(key_file, "few", tokens_per_minute=30)}
    long = {"texts": ["the plot is weak " * 8]}
    answer = client.post(PREDICT, json_body=long, headers=few)
    assert_problem(answer, 429, "tokens, and the key may send 30 a minute: send less at once")
    assert "retry-after" not in answer.headers
    statuses = [client.post(PREDICT, json_body=BODY, headers=few).status for _ in range(4)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    engine.go.clear()
    engine.started.clear()
    one = {"x-api-key": keys.add(key_file, "one", concurrency=1)}
    first = client.start("POST", PREDICT, json_body=BODY, headers=one)
    assert engine.started.wait(5)
    assert_problem(client.post(PREDICT, json_body=BODY, headers=one), 429, "1 requests in progress")
    engine.go.set()
    assert first.result(5).status == 200
    assert client.post(PREDICT, json_body=BODY, headers=one).status == 200


def wait_for(it, seconds=5):
    end = time.monotonic() + seconds
    while not it():
        assert time.monotonic() < end


def test_who_is_refused_because_others_wait_keeps_what_the_key_may_send(serve, make_package, tmp_path, key_file):
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(max_queue_tokens=30)).path)
    few = {"x-api-key": keys.add(key_file, "few", tokens_per_minute=30)}
    go, held_up, compute = threading.Event(), threading.Event(), client._app._runtime._model.batcher._compute

    def held(features):
        held_up.set()
        go.wait(5)
        return compute(features)

    client._app._runtime._model.batcher._compute = held
    first = client.start("POST", PREDICT, json_body={"texts": ["a great film"]})
    assert held_up.wait(5)
    second = client.start("POST", PREDICT, json_body={"texts": ["a great film"] * 2})
    wait_for(lambda: metrics(client)["deploykit_queue_items"] == 2)
    body = {"texts": ["the plot is weak " * 5]}
    for _ in range(3):
        assert_problem(client.post(PREDICT, json_body=body, headers=few), 503, "too many texts are waiting")
    go.set()
    assert [one.result(5).status for one in (first, second)] == [200, 200]
    assert client.post(PREDICT, json_body=body, headers=few).status == 200
    assert client.post(PREDICT, json_body=body, headers=few).status == 429


def test_a_full_queue_and_a_deadline(serve, make_package, tmp_path):
    made = make_package(tmp_path / "p", serve=ServeOptions(timeout_s=1.0, max_queue_tokens=12))
    client = serve(made.path)
    go = threading.Event()
    client._app._runtime._model.batcher._compute = lambda features: go.wait(2)
    late = [client.start("POST", PREDICT, json_body={"texts": ["a great film"]})]
    while not client._app._runtime._model.batcher.oldest_batch_age_s:
        pass
    late += [client.start("POST", PREDICT, json_body={"texts": ["a great film"]}) for _ in range(2)]
    refused = client.post(PREDICT, json_body=BODY)
    assert_problem(refused, 503, "too many texts are waiting")
    assert int(refused.headers["retry-after"]) >= 1
    for answer in late:
        assert_problem(answer.result(5), 504, "no answer before the deadline")
    go.set()
    assert metrics(client)['deploykit_rejected_total{reason="deadline"}'] == 3


@pytest.mark.parametrize("asked", ["0", "", "-5", "1.5", "1e3", "soon", "9" * 10, "\u0661"])
def test_a_deadline_that_makes_no_sense(client, asked):
    answer = client.post(
        PREDICT, json_body=BODY, headers={"x-request-timeout-ms": asked.encode("utf-8").decode("latin-1")}
    )
    assert_problem(answer, 400, "X-Request-Timeout-Ms must be a whole number")


def test_a_client_may_wait_less_than_the_service_allows_but_not_more(serve, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(timeout_s=0.5)).path)
    go = threading.Event()
    client._app._runtime._model.batcher._compute = lambda features: go.wait(3)
    times = {}
    for asked in ("50", "60000"):
        start = time.perf_counter()
        answer = client.post(PREDICT, json_body=BODY, headers={"x-request-timeout-ms": asked})
        assert answer.status in (503, 504)  # the second may be told at once that it would wait too long
        times[asked] = time.perf_counter() - start
    go.set()
    assert 0.04 < times["50"] < 0.4
    assert times["60000"] < 2


def test_every_answer_says_where_its_time_went(client):
    def timing(answer):
        return dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))

    found = {name: float(value) for name, value in timing(client.post(PREDICT, json_body=BODY)).items()}
    assert list(found) == ["tokenize", "queue", "inference", "total"]
    assert all(value >= 0 for value in found.values())
    assert found["inference"] > 0
    assert found["total"] >= found["tokenize"] + found["inference"]
    assert list(timing(client.get("/livez"))) == list(timing(client.get("/nowhere"))) == ["total"]


def test_too_many_at_once(client, engine, monkeypatch):
    monkeypatch.setattr(client._app, "_answer_slots", slots.RequestSlots(1, "in progress"))
    first = client.start("POST", PREDICT, json_body=BODY)
    assert engine.started.wait(5)
    refused = client.post(PREDICT, json_body=BODY)
    assert_problem(refused, 503, "1 requests are in progress, 1 of this client; 1 may be. Try again later")
    assert refused.headers["retry-after"] == "1"
    assert [client.get(path).status for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    engine.go.set()
    assert first.result(5).status == 200


def test_a_slow_body_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)
    headers = {"content-type": "application/json", "content-length": "1000"}
    answer = client.start("POST", PREDICT, content=[b"{"], headers=headers, whole=False)
    assert_problem(answer.result(5), 408, "did not arrive within 0.05 s")


def test_bodies_that_do_not_come_take_nobodys_place(client, engine, key_file, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    engine.go.set()
    monkeypatch.setattr(client._app, "_body_slots", slots.RequestSlots(4, "waiting for their body"))
    monkeypatch.setattr(client._app, "_answer_slots", slots.RequestSlots(2, "in progress"))
    mallory = {"x-api-key": keys.add(key_file, "mallory"), "content-type": "application/json"}
    slow = [
        client.start("POST", PREDICT, content=[b'{"texts"'], headers=mallory, whole=False, leave_after=3)
        for _ in range(4)
    ]
    refused = client.post(PREDICT, json_body=BODY, headers=mallory)
    assert_problem(refused, 503, "4 requests are waiting for their body, 4 of this client; 4 may be")
    assert client.post(PREDICT, json_body=BODY).status == 200
    assert [client.get(path).status for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    assert not any(one.done() for one in slow)
    assert [one.result(10).status for one in slow] == [499] * 4


def test_who_has_less_than_a_share_of_the_places_gets_one_when_all_are_taken():
    shared = slots.RequestSlots(4, "in progress")
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(shared.use("a"))
        for client, share in (("b", 2), ("c", 2)):
            with pytest.raises(Problem, match="4 of this client; 4 may be"):
                stack.enter_context(shared.use("a"))
            for _ in range(share):
                stack.enter_context(shared.use(client))
            with pytest.raises(Problem, match=f"{share} of this client; 4 may be") as refused:
                stack.enter_context(shared.use(client))
            assert refused.value.status == 503
        with pytest.raises(Problem, match="8 requests are in progress, 0 of this client"):
            stack.enter_context(shared.use("d"))
    assert not shared._used


def working_threads(monkeypatch, module, name):
    """Lists the names of the threads that call a function of a module or class."""
    function, threads = getattr(module, name), []

    def noted(*arguments, **named):
        threads.append(threading.current_thread().name)
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, noted)
    return threads


def test_large_bodies_are_parsed_and_their_answers_made_beside_the_event_loop(client, monkeypatch):
    tasks = [
        working_threads(monkeypatch, module, name)
        for module, name in (
            (bodies, "count_values"),
            (ServedModel, "decode_answers"),
            (PredictionStatistics, "add"),
            (guard, "_serialize"),
        )
    ]
    assert client.post(PREDICT, json_body=BODY).status == 200
    assert {len(set(threads)) for threads in tasks} == {1}
    assert not any("offload" in threads[0] for threads in tasks)
    assert client.post(PREDICT, json_body={"texts": ["a great film " * 30] * 200}).status == 200
    assert ["offload" in threads[-1] for threads in tasks] == [True] * 4


def test_one_long_text_is_decoded_beside_the_event_loop(serve, make_package, tmp_path, monkeypatch):
    options = {"task": "token-classification", "labels": ("O", "B-NAME", "I-NAME")}
    client = serve(make_package(tmp_path / "p", **options).path)
    threads = working_threads(monkeypatch, ServedModel, "decode_answers")
    before = metrics(client)
    assert client.post(PREDICT, json_body={"texts": ["a great film " * 400]}).status == 200
    assert "offload" in threads[-1]
    after = metrics(client)
    counted = [after[name] - before[name] for name in after if name.startswith("deploykit_predictions_total")]
    units = after["deploykit_confidence_count"] - before["deploykit_confidence_count"]
    assert sum(counted) == units == after["deploykit_entropy_count"] - before["deploykit_entropy_count"] > 400


@pytest.mark.parametrize("place", ["check", "count_request", "in_progress"])
def test_the_guard_fails_closed_and_at_once(client, monkeypatch, place):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(check.KeyChecker if place == "check" else rate_limits.RateLimiter, place, broken)
    assert_problem(client.post(PREDICT, json_body=BODY), 503, "could not check")


def test_a_failure_inside_is_a_problem_too(client, monkeypatch):
    async def broken(*_, **__):
        raise ZeroDivisionError("a text")

    monkeypatch.setattr(client._app._runtime, "predict", broken)
    answer = client.post(PREDICT, json_body=BODY)
    assert_problem(answer, 500, "the log has the request id")
    assert "a text" not in answer.text


def test_a_handler_that_never_answers_is_given_up(client, monkeypatch):
    monkeypatch.setattr(guard, "BACKSTOP_DELAY_S", 0.05 - client._app._runtime.settings.timeout_s)
    monkeypatch.setattr(client._app._runtime, "predict", lambda *_, **__: guard.asyncio.sleep(10))
    assert_problem(client.post(PREDICT, json_body=BODY), 504, "no answer before the deadline")


def test_nothing_of_a_request_is_kept_after_its_answer(client, monkeypatch):
    runtime, kept = client._app._runtime, []
    predict = runtime.predict

    def remembering(inputs, call, **how):
        kept.append(weakref.ref(call))
        return predict(inputs, call, **how)

    monkeypatch.setattr(runtime, "predict", remembering)
    for _ in range(5):
        assert client.post(PREDICT, json_body=BODY).status == 200
    gc.collect()
    assert [ref() for ref in kept[:-1]] == [None] * 4


@pytest.mark.parametrize("refused", [b'{"texts": [1]}', b'{"texts": ["a film"]}'])
def test_nothing_of_a_request_that_is_refused_waits_for_the_garbage_collector(client, monkeypatch, refused):
    kept = []
    admit = client._app._admit

    def remembering(route, headers, call):
        kept.append(weakref.ref(call))
        return admit(route, headers, call)

    async def busy(*_, **__):
        raise Problem(503, "queue_full", "too many texts are waiting")

    monkeypatch.setattr(client._app, "_admit", remembering)
    monkeypatch.setattr(client._app._runtime, "predict", busy)
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            assert client.post(PREDICT, content=refused, headers={"content-type": JSON_TYPE}).status in (422, 503)
        assert [ref() for ref in kept[:-1]] == [None] * 4
    finally:
        gc.enable()


def test_a_request_that_a_server_gives_up_as_it_stops_is_told_so(client, alice, monkeypatch):
    sent = []

    async def send(message):
        sent.append(message)

    messages = [{"type": "http.request", "body": json.dumps(BODY).encode()}]

    async def receive():
        return messages.pop() if messages else await asyncio.Event().wait()

    reached = threading.Event()

    async def slow(*_, **__):
        reached.set()
        await asyncio.sleep(20)

    monkeypatch.setattr(client._app._runtime, "predict", slow)
    headers = [(b"content-type", JSON_TYPE.encode()), (b"x-api-key", alice.encode())]
    scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": headers}
    running = asyncio.run_coroutine_threadsafe(client._app(scope, receive, send), client._loop)
    assert reached.wait(5)
    running.cancel()
    end = time.monotonic() + 5
    while len(sent) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sent[0]["status"] == 503
    assert b"stopping" in sent[1]["body"]


def test_websockets_are_refused(client):
    sent = []

    async def send(message):
        sent.append(message)

    guard.asyncio.run(client._app({"type": "websocket", "path": PREDICT}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
