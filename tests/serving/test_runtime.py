"""A package on the machine that serves it: its streams, its cost, and its float graph where the choice cannot run."""

import gc
import os
import sys
import time
from concurrent.futures import wait
from threading import Barrier, Event

import numpy as np
import pytest
from asgi import BODY, PREDICT, TEXTS, Client, assert_problem, metrics
from rows import spec_of

from deploykit import hardware, tasks
from deploykit.artifact import FLOAT_GRAPH, GRAPH, ServeOptions
from deploykit.artifact.cost import Cost
from deploykit.artifact.execution import Execution
from deploykit.inference import drift
from deploykit.inference.predictor import Predictor
from deploykit.serving import runtime, service
from deploykit.tasks import softmax

ELSEWHERE = Execution(features=("avx1024",))  # chosen where the CPU had what none has


def test_a_choice_for_another_cpu_without_a_float_graph_is_never_ready(serve, make_package, tmp_path, capfd):
    client = serve(make_package(tmp_path / "p", execution=ELSEWHERE, weights_precision="int8").path)
    assert_problem(client.get("/readyz"), 503, "not ready")
    log = capfd.readouterr().out
    assert "this service will not become ready: this CPU lacks avx1024" in log
    assert "carries no float graph to fall back to" in log
    assert "Traceback" not in log
    assert (metrics(client)["deploykit_ready"], metrics(client)["deploykit_fallback"]) == (0, 0)


@pytest.mark.parametrize("chosen", [None, "true"])
def test_a_closed_service_leaves_the_environment_as_it_was(serve, package, monkeypatch, chosen):
    name = runtime.TOKENIZER_THREADS_VARIABLE
    monkeypatch.setenv(name, chosen or "")
    if chosen is None:
        monkeypatch.delenv(name)
    client = serve(package)
    assert os.environ[name] == (chosen or "false")
    client._app._runtime.close()
    assert os.environ.get(name) == chosen


def test_a_float_graph_that_answers_otherwise_is_never_ready(serve, make_package, tiny_graph, tmp_path, capfd):
    def exchange(folder):
        tiny_graph(folder / FLOAT_GRAPH, seed=8)

    made = make_package(tmp_path / "p", float_seed=7, then=exchange, execution=ELSEWHERE)
    assert serve(made.path).get("/readyz").status == 503
    assert "golden answers moved" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("features", "graph", "fallen"), [(("avx1024",), GRAPH, 0), (("avx2", "avx_vnni"), FLOAT_GRAPH, 1)]
)
def test_the_float_graph_is_served_where_the_cpu_lacks_what_was_chosen_for(
    serve, make_package, tmp_path, monkeypatch, capfd, log_lines, features, graph, fallen
):
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    made = make_package(tmp_path / "p", float_seed=7, execution=ELSEWHERE)
    client = serve(made.path)
    scores = Predictor.load(made, 1, Execution(), graph).predict(TEXTS)
    found = client.post(PREDICT, json_body=BODY).json()["predictions"]
    best = [float(softmax(rows).max()) for rows in scores]
    np.testing.assert_allclose([answer["score"] for answer in found], best, atol=1e-6)
    page = metrics(client)
    assert page["deploykit_fallback"] == fallen
    info = f'deploykit_model_info{{engine="onnxruntime",graph="{graph}",name="tiny",precision="float32"'
    assert [name.startswith(info) for name in page if "model_info" in name] == [True]
    lines = [line["message"] for line in log_lines(capfd.readouterr().out) if line["level"] == "warning"]
    assert len(lines) == fallen
    for line in lines:
        assert all(word in line for word in ("avx1024", FLOAT_GRAPH, f"deploykit retune {made.path}"))


def test_the_float_graph_is_served_where_the_engine_is_missing(serve, make_package, tmp_path, monkeypatch, capfd):
    made = make_package(tmp_path / "p", float_seed=7, execution=Execution(engine="openvino"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "deploykit.engines.openvino")
    client = serve(made.path)
    assert client.post(PREDICT, json_body=BODY).status == 200
    assert metrics(client)["deploykit_fallback"] == 1
    assert "pip install '.[openvino]'" in capfd.readouterr().out


def test_as_many_batches_at_once_as_the_choice_has_streams(serve, make_package, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_THREADS", "2")
    client = serve(make_package(tmp_path / "p", execution=Execution(streams=2)).path)
    engine, together = client._app._runtime._model.batcher, Barrier(2)
    compute = engine._compute

    def meet(features):
        together.wait(timeout=10)  # fails unless two batches are in the engine at once
        return compute(features)

    engine._compute = meet
    asked = [client.start("POST", PREDICT, json_body={"texts": [text]}) for text in TEXTS]
    found = [one.result(20).json()["predictions"][0] for one in asked]
    engine._compute = compute
    assert found == client.post(PREDICT, json_body=BODY).json()["predictions"]


def test_who_would_wait_for_too_long_is_refused_before_the_body_is_read(serve, hold, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(max_wait_s=1e-6)).path)
    engine = hold(client)
    first = client.start("POST", PREDICT, json_body={"texts": ["a great film"]})
    assert engine.started.wait(5)
    second = client.start("POST", PREDICT, json_body=BODY)
    while metrics(client)["deploykit_queue_items"] < 2:
        pass
    third = client.request("POST", PREDICT, content=b"no JSON", headers={"content-type": "text/plain"})
    assert third.status == 503
    assert int(third.headers["retry-after"]) >= 1
    engine.go.set()
    assert [one.result(5).status for one in (first, second)] == [200, 200]
    assert metrics(client)['deploykit_rejected_total{reason="queue_full"}'] == 1


def test_who_leaves_before_the_text_is_tokenized_costs_nothing(serve, make_package, tmp_path, key_file, monkeypatch):
    client = serve(make_package(tmp_path / "p").path)
    served, go, charged, read = client._app._runtime, Event(), [], []
    monkeypatch.setattr(served.limits, "count_tokens", lambda *given: charged.append(given))

    def held(_, texts, most):  # somebody else's text takes long
        read.append(texts[0][:4])
        assert go.wait(5)
        raise RuntimeError

    monkeypatch.setattr(type(served._model.predictor.tokenizer), "windows", held)
    other = client.start("POST", PREDICT, json_body={"texts": ["long " * 1000]})
    left = client.start("POST", PREDICT, json_body={"texts": ["film " * 1000]}, leave_after=0.2)
    assert left.result(2).status == 499
    go.set()
    assert other.result(5).status == 500
    assert read == ["long"]
    assert charged == []
    assert metrics(client)['deploykit_rejected_total{reason="client_gone"}'] == 1


def test_batches_are_chosen_by_the_cost_that_was_measured(serve, hold, make_package, tmp_path):
    client = serve(make_package(tmp_path / "p", cost=Cost(fixed=0.0)).path)  # where padding never pays
    engine = hold(client)
    first = client.start("POST", PREDICT, json_body={"texts": ["a great film"]})
    assert engine.started.wait(5)
    others = [client.start("POST", PREDICT, json_body={"texts": [text]}) for text in TEXTS]
    while metrics(client)["deploykit_queue_items"] < 2:
        pass
    engine.go.set()
    wait([first, *others], 5)
    assert engine.batches == [1, 1, 1]


def test_drift_is_told_from_the_first_scrape_and_grows_when_texts_change(serve, make_package, tmp_path):
    spec = spec_of(("negative", "positive"))
    observed = tasks.load("text-classification").observe([np.log(np.float32([[0.9, 0.1]]))] * 3, spec)
    known = drift.reference([50, 60, 70], observed, 2)
    details = {"package": {"reference": {name: found.model_dump(mode="json") for name, found in known.items()}}}
    client = serve(make_package(tmp_path / "p", details=details).path)
    names = {feature: f'deploykit_drift_psi{{feature="{feature}"}}' for feature in known}
    assert [metrics(client)[name] for name in names.values()] == [0, 0, 0]
    for _ in range(2):
        assert client.post(PREDICT, json_body={"texts": ["a great film"] * 128}).status == 200
    assert metrics(client)[names["length"]] > 0.25  # they are much shorter


def test_without_a_reference_nothing_drifts(client):
    client.post(PREDICT, json_body={"texts": TEXTS * 100})
    assert metrics(client)['deploykit_drift_psi{feature="length"}'] == 0


def test_how_undecided_and_how_unknown_texts_are(client):
    client.post(PREDICT, json_body={"texts": ["the film", "\u4e16\u754c \u4e16\u754c"]})
    found = metrics(client)
    assert found["deploykit_entropy_count"] == found["deploykit_unknown_token_ratio_count"] == 2
    assert found["deploykit_entropy_sum"] <= 2
    assert 0 < found["deploykit_unknown_token_ratio_sum"] < 1


def test_entropy_is_of_all_labels_alike():
    logits = np.float32([[99, 0, 0], [5, 5, 5], [99, 99, 0]])
    observed = tasks.load("text-classification").observe([row[None] for row in logits], spec_of("abc"))
    assert observed.entropies == pytest.approx([0, 1, np.log(2) / np.log(3)], abs=1e-5)


def test_the_garbage_collector_leaves_alone_what_was_loaded(package, key_file, alice, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    gc.unfreeze()
    with Client(service.build(package).to_asgi(), headers={"x-api-key": alice}) as client:
        assert gc.get_freeze_count() > 10_000
        assert client.post(PREDICT, json_body=BODY).status == 200
    assert gc.get_freeze_count() == 0


def test_the_process_is_told_of(client):
    found = metrics(client)
    assert 10e6 < found["deploykit_process_resident_bytes"] < 10e9
    assert found["deploykit_process_cpu_seconds"] > 0
    assert found["deploykit_process_open_files"] >= 3
    assert abs(time.time() - found["deploykit_process_start_seconds"]) < 3600
