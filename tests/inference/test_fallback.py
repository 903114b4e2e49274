"""What runs where the CPU or the engine of a choice is missing."""

import logging
import sys

import numpy as np
import pytest

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, ModelError
from deploykit.inference import fallback
from deploykit.inference.fallback import Served
from deploykit.inference.predictor import Predictor

TEXTS = ["the film is great", "the plot was awful"]
ELSEWHERE = Execution(threads=1, streams=2, features=("avx2", "avx1024"))  # no CPU has it


@pytest.fixture
def made(tmp_path, tiny_artifact, tiny_graph):
    """`made(execution, floating=True, **facts)`: a chosen graph, and a float graph with other answers beside it."""

    def build(execution, floating=True, **facts):
        fill = (lambda folder: tiny_graph(folder / FLOAT_GRAPH, seed=1)) if floating else None
        return tiny_artifact(tmp_path / "made", fill, execution=execution, **facts)

    return build


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "deploykit.engines.openvino", raising=False)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_nothing_to_fall_back_to(made):
    found = made(ELSEWHERE, floating=False, weights_precision="int8")
    message = (
        r"^this CPU lacks avx1024, which the choice of model\.onnx relied on, and .*made carries no float graph to"
        r" fall back to\. Use a machine like the one where it was chosen, or run the recipe on this one\.$"
    )
    with pytest.raises(ArtifactError, match=message):
        fallback.choose_graph(found, ("avx2",), 2)
    with pytest.raises(ArtifactError, match=message):
        fallback.load(found, 2)


def test_an_engine_that_fails_and_nothing_else_to_run_is_not_tried_again(made, monkeypatch, caplog):
    tried = []
    monkeypatch.setattr(Predictor, "load", lambda *how: tried.append(how) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fallback.load(made(Execution(streams=2), floating=False), 2)
    assert (len(tried), warnings(caplog)) == (1, [])


def test_a_float_graph_that_fails_too_says_so(made, caplog):
    found = made(ELSEWHERE)
    found.file("tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no fast tokenizer"):
        fallback.load(found, 1)
    assert warnings(caplog) == []


def test_what_was_chosen_runs_where_nothing_is_missing(made):
    found = fallback.choose_graph(made(ELSEWHERE), ("avx2", "avx1024", "amx_int8"), 3)
    assert found == Served(ELSEWHERE.model_copy(update={"streams": 3}), GRAPH, "")
    assert found.expected == "predictions"


def test_the_float_graph_gets_all_cores_in_one_call(made):
    found = fallback.choose_graph(made(ELSEWHERE), ("avx2",), 3)
    reason = "this CPU lacks avx1024, which the choice of model.onnx relied on"
    assert found == Served(Execution(threads=3), FLOAT_GRAPH, reason)
    assert found.expected == "float_predictions"


def test_bfloat16_on_the_float_graph_itself_becomes_float32(made):
    chosen = Execution(engine="openvino", precision="bfloat16", features=("avx512_bf16", "amx_bf16"))
    found = fallback.choose_graph(made(chosen, floating=False), ("avx512_bf16",), 2)
    assert (found.execution, found.graph) == (Execution(threads=2), GRAPH)
    assert found.reason.startswith("this CPU lacks amx_bf16,")


@pytest.mark.parametrize("features", [("avx2",), ()])
def test_the_float_graph_answers_and_one_warning_says_why(made, monkeypatch, caplog, features):
    found = made(Execution(features=("avx2",)))
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    predictor, served = fallback.load(found, 1)
    graph = GRAPH if features else FLOAT_GRAPH
    np.testing.assert_array_equal(predictor.predict(TEXTS), Predictor.load(found, 1, graph=graph).predict(TEXTS))
    assert served.graph == graph
    assert warnings(caplog) == (
        []
        if features
        else [
            "this CPU lacks avx2, which the choice of model.onnx relied on: model_float32.onnx runs in its place, on"
            f" onnxruntime in float32. To choose again on this machine: deploykit retune {found.path}"
        ]
    )


@pytest.mark.usefixtures("no_openvino")
@pytest.mark.parametrize(("floating", "graph"), [(True, FLOAT_GRAPH), (False, GRAPH)])
def test_an_engine_that_is_not_installed(made, caplog, floating, graph):
    found = made(Execution(engine="openvino"), floating)
    predictor, served = fallback.load(found, 2)
    assert (served.execution, served.graph) == (Execution(threads=2), graph)
    expected = Predictor.load(found, 1, Execution(), graph).predict(TEXTS)
    np.testing.assert_array_equal(predictor.predict(TEXTS), expected)
    (line,) = warnings(caplog)
    assert line.startswith("openvino cannot run model.onnx here (the engine 'openvino' needs the package 'openvino'")
    assert f"{graph} runs in its place" in line


@pytest.mark.usefixtures("no_openvino")
@pytest.mark.parametrize("features", [(), ("avx512_vnni",)])  # int8 relies on nothing where the CPU has nothing for it
@pytest.mark.parametrize("weights", ["int8", "int4", "float16"])
def test_weights_that_are_not_in_float_are_nothing_to_fall_back_to(made, features, weights, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    chosen = Execution(engine="openvino", features=features)
    with pytest.raises(ArtifactError, match=r"openvino cannot run .*'\.\[openvino\].*carries no float graph"):
        fallback.load(made(chosen, floating=False, weights_precision=weights), 1)


def test_a_graph_that_its_engine_cannot_read(made, caplog):
    found = made(Execution())
    found.file(GRAPH).write_bytes(b"no graph")
    predictor, served = fallback.load(found, 1)
    assert served.graph == FLOAT_GRAPH
    assert len(predictor.predict(TEXTS)) == 2
    assert "\n" not in warnings(caplog)[0]
