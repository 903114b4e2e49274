import numpy as np
import onnx
import pytest
from models import TASKS
from onnx import numpy_helper

from deploykit import architectures, exporting, quantization, selection
from deploykit.architectures import Kept
from deploykit.artifact import Artifact, load_predictions
from deploykit.predictor import Predictor
from deploykit.quantizers import dynamic
from deploykit.selection import Latency

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=TASKS)
def graph(request, tmp_path_factory, fitted, sealed_checkpoint, job_of):
    """An exported artifact of a model that has learned its task."""
    small = architectures.shrunk(fitted(request.param)[0], [Kept((0, 1, 2), tuple(range(128)))] * 2)
    parent = sealed_checkpoint(tmp_path_factory.mktemp("train") / "train", small, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting.hardware, "cpu_limit", lambda: 1)
        return exporting.export(job_of("export", parent, request.param))


@pytest.fixture
def job(graph, job_of):
    """`job(**sections)` of the stage."""
    return lambda **sections: job_of("quantize", graph, graph.manifest.task, **sections)


@pytest.fixture
def clock(monkeypatch):
    """`clock(float32, int8)`: the milliseconds that each graph takes, whatever the machine does."""

    def set_times(**times):
        def measure(predictors, rows, batches):
            assert list(batches) == list(selection.probes(rows, next(iter(predictors.values()))))
            return {
                name: {batch: Latency(p50=times[name], low=times[name], high=times[name]) for batch in batches}
                for name in predictors
            }

        monkeypatch.setattr(quantization.selection, "measure", measure)
        monkeypatch.setattr(selection, "typical", lambda *_: 1.0)

    return set_times


def kept(artifact):
    """The name that was kept, and the reasons."""
    candidates = artifact.manifest.own["candidates"]
    (name,) = (found["name"] for found in candidates if found["kept"])
    return name, {found["name"]: found["reason"] for found in candidates}


def assert_is_the_float_graph(made, graph):
    assert made.file("model.onnx").read_bytes() == graph.file("model.onnx").read_bytes()
    assert made.manifest.own["flips"] == []
    before, after = load_predictions(graph), load_predictions(made)
    for split in ("validation", "test"):
        for one, other in zip(before[split], after[split], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_copy_that_breaks_a_gate_is_not_kept_however_fast(graph, job, clock, monkeypatch):
    quantize = dynamic.quantize

    def spoils(source, options, target):
        facts = quantize(source, options, target)
        model = onnx.load(target)
        (bias,) = (found for found in model.graph.initializer if found.name == "classifier.bias")
        bias.CopyFrom(numpy_helper.from_array(np.float32([99] + [0] * (bias.dims[0] - 1)), bias.name))
        onnx.save(model, target)
        return facts

    monkeypatch.setattr(dynamic, "quantize", spoils)
    clock(float32=9.0, int8=0.1)
    made = quantization.quantize(job())
    name, reasons = kept(made)
    assert name == "float32"
    assert reasons["int8"].startswith("breaks a gate: max_drop is 0.")
    assert_is_the_float_graph(made, graph)


def test_a_copy_that_is_slower_is_not_kept_however_good(graph, job, clock):
    clock(float32=1.0, int8=1.5)
    made = quantization.quantize(job(gates={"max_drop": 1.0}))
    name, reasons = kept(made)
    assert name == "float32"
    assert reasons["int8"].startswith("slower than the float32 graph at batch 1, ")
    assert "1.50 ms against 1.00 ms" in reasons["int8"]
    assert_is_the_float_graph(made, graph)


def test_a_copy_that_is_faster_and_as_good_is_kept(graph, job, clock):
    clock(float32=2.0, int8=1.0)
    made = quantization.quantize(job(gates={"max_drop": 0.2, "cannot_tell": "accept", "max_bytes": 10**9}))
    found = Artifact.load(made.path)
    found.verify()
    name, reasons = kept(found)
    assert (name, reasons["float32"]) == ("int8", "2.00 times slower than int8")
    assert found.manifest.step.bytes < graph.manifest.step.bytes
    assert found.manifest.own["quantized"] == 12
    assert sum(node.op_type == "MatMulInteger" for node in onnx.load(found.file("model.onnx")).graph.node) == 12
    candidate = next(entry for entry in found.manifest.own["candidates"] if entry["kept"])
    assert len(found.manifest.own["flips"]) >= len(candidate["comparison"]["flipped"])
    assert [verdict["gate"] for verdict in candidate["verdicts"]] == ["max_drop", "max_bytes"]
    assert candidate["verdicts"][1]["found"]["value"] == found.manifest.step.bytes
    stored, rows = load_predictions(found), job().dataset().test
    again = Predictor.load(found, 1).predict([row.text for row in rows])
    for one, other in zip(stored["test"], again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for split, scores in load_predictions(graph).items():
        if split.startswith("reference."):  # the trained model's answers are handed on
            for one, other in zip(scores, stored[split], strict=True):
                np.testing.assert_array_equal(one, other)
