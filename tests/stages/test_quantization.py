import numpy as np
import onnx
import pytest
from models import TASKS, set_times
from onnx import numpy_helper

from deploykit import hardware, quantizers, tasks
from deploykit.artifact import Artifact, load_predictions
from deploykit.artifact.cost import Cost
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.stages import exporting, quantization

pytestmark = pytest.mark.usefixtures("one_thread")
ACCEPT = {"max_drop": 0.01, "inconclusive": "accept"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=TASKS)
def graph(request, tmp_path_factory, fitted, sealed_checkpoint, job_of):
    """An exported artifact of a model that has learned its task."""
    small = surgery.shrunk(fitted(request.param)[0], [KeptUnits((0, 1, 2), tuple(range(128)))] * 2)
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
    """`clock(base, other)`: the milliseconds that the float graph and any other take, whatever the machine does."""

    def fixed(base, other):
        set_times(monkeypatch, lambda name, _: base if name == "base" or name.startswith("float32, onnxrun") else other)

    return fixed


def kept(artifact):
    """The name that was kept, and the reasons."""
    candidates = artifact.manifest.own_details["candidates"]
    (name,) = (found["name"] for found in candidates if found["kept"])
    return name, {found["name"]: found["reason"] for found in candidates}


def assert_is_the_float_graph(made, graph):
    assert made.file("model.onnx").read_bytes() == graph.file("model.onnx").read_bytes()
    assert not made.file("model_float32.onnx").exists()
    assert made.manifest.own_details["flips"] == []
    assert made.manifest.execution.features == ()
    before, after = load_predictions(graph), load_predictions(made)
    for split in ("validation", "test"):
        assert set(before[split]) == set(after[split])
        for name, array in before[split].items():
            np.testing.assert_allclose(array, after[split][name], atol=1e-5)


@pytest.fixture
def spoilt(monkeypatch):
    """`spoilt(name, change)`: the quantizer of that name changes the model that it writes."""

    def plant(name, change):
        method = quantizers.load(name)
        quantize = method.quantize

        def spoils(source, options, target, calibration=(), float_nodes=()):
            facts, model = quantize(source, options, target, calibration, float_nodes), onnx.load(target)
            change(model)
            onnx.save(model, target)
            return facts

        monkeypatch.setattr(method, "quantize", spoils)

    return plant


def shift(model):
    """One label, whatever is asked."""
    for bias in (found for found in model.graph.initializer if found.name == "classifier.bias"):
        bias.CopyFrom(numpy_helper.from_array(np.float32([99] + [0] * (bias.dims[0] - 1)), bias.name))


def saturate(model):
    """Activations are cut off at a hundredth of what they reach."""
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert scales
    for scale in (found for found in model.graph.initializer if found.name in scales):
        scale.CopyFrom(numpy_helper.from_array(np.asarray(numpy_helper.to_array(scale) * np.float32(0.01)), scale.name))


def test_a_copy_that_breaks_a_gate_is_not_kept_however_fast(graph, job, clock, spoilt):
    spoilt("dynamic", shift)
    clock(9.0, 0.1)
    made = quantization.quantize(job(gates=ACCEPT))
    name, reasons = kept(made)
    assert name == "float32, onnxruntime"
    assert reasons["dynamic int8, onnxruntime"].startswith("stopped by a gate:   max_drop is ")
    assert_is_the_float_graph(made, graph)


def test_int8_that_saturates_is_not_kept_and_the_products_that_suffer_return_to_float(graph, job, clock, spoilt):
    spoilt("static", saturate)
    clock(9.0, 0.1)
    made = quantization.quantize(job(quantize={"method": "static"}, gates=ACCEPT))
    name, reasons = kept(made)
    assert reasons["static int8, onnxruntime"].startswith("stopped by a gate:   max_drop is ")
    assert name == "float32, onnxruntime" or "MatMuls in float" in name
    (drop,) = (found for found in made.manifest.own_details["verdicts"] if found["gate"] == "max_drop")
    assert drop["outcome"] != "failed"
    before, after = (found.manifest.step.metrics["validation"] for found in (graph, made))
    for metric in before:
        assert after[metric].value >= before[metric].value - 0.02  # one name of the 74, in a metric beside the gate's


def test_no_quantizer_is_one_candidate(job, clock):
    clock(1.0, 1.0)
    made = quantization.quantize(job(quantize={"method": "none"}, gates=ACCEPT))
    assert [found["name"] for found in made.manifest.own_details["candidates"]][:1] == ["float32, onnxruntime"]
    assert len({found["name"] for found in made.manifest.own_details["candidates"]}) == len(
        made.manifest.own_details["candidates"]
    )


def test_a_copy_that_is_slower_is_not_kept_however_good(graph, job, clock):
    clock(1.0, 1.5)
    made = quantization.quantize(job(gates={"max_drop": 1.0}))
    name, reasons = kept(made)
    assert name == "float32, onnxruntime"
    assert reasons["dynamic int8, onnxruntime"].startswith("slower than the float graph: batch 1, ")
    assert "1.50 ms against 1.00 ms" in reasons["dynamic int8, onnxruntime"]
    assert_is_the_float_graph(made, graph)


def test_a_copy_that_is_faster_and_as_good_is_kept_beside_the_float_graph(graph, job, clock, monkeypatch):
    clock(2.0, 1.0)
    monkeypatch.setattr(
        hardware, "precision_features", lambda precision: ("avx512_vnni",) if precision == "int8" else ()
    )
    made = quantization.quantize(job(gates={"max_drop": 0.2, "inconclusive": "accept"}))
    found = Artifact.load(made.path)
    found.verify()
    name, reasons = kept(found)
    assert (name, reasons["float32, onnxruntime"]) == (
        "dynamic int8, onnxruntime",
        "2.00 times slower than dynamic int8, onnxruntime",
    )
    assert found.manifest.step.bytes < graph.manifest.step.bytes
    assert found.file("model_float32.onnx").read_bytes() == graph.file("model.onnx").read_bytes()
    assert (found.manifest.execution.features, found.manifest.cost) == (("avx512_vnni",), Cost(fixed=0.25))
    assert found.manifest.own_details["quantized"] == 12
    assert sum(node.op_type == "MatMulInteger" for node in onnx.load(found.file("model.onnx")).graph.node) == 12
    comparison = next(entry["comparison"] for entry in found.manifest.own_details["candidates"] if entry["kept"])
    assert len(found.manifest.own_details["flips"]) >= len(comparison["flipped"])
    assert len(comparison["by_length"]) > 1
    stored, rows = load_predictions(found), job().dataset().test
    again = Predictor.load(found, 1).predict([row.input for row in rows])
    for one, other in zip(tasks.load(graph.manifest.task).load(stored["test"]), again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for split, arrays in load_predictions(graph).items():
        if split.startswith("reference."):  # the trained model's answers are handed on
            assert set(arrays) == set(stored[split])
            for name, array in arrays.items():
                np.testing.assert_array_equal(array, stored[split][name])


def test_where_nothing_passes_the_float_graph_is_kept_for_a_look_with_what_stopped_it(graph, job, clock):
    clock(2.0, 1.0)
    made = quantization.quantize(job(gates={"max_bytes": 10}))
    assert not any(found["kept"] for found in made.manifest.own_details["candidates"])
    assert [
        verdict["outcome"] for verdict in made.manifest.own_details["verdicts"] if verdict["gate"] == "max_bytes"
    ] == ["failed"]
    assert_is_the_float_graph(made, graph)


def test_auto_measures_for_real_and_keeps_what_it_says(graph, job):
    narrow = {"method": "auto", "minutes": 0.2, "graphs": ["exported"], "quantizers": ["none", "dynamic"]}
    made = quantization.quantize(job(quantize=narrow, gates={"max_drop": 1.0}))
    _, reasons = kept(made)
    assert all(reasons.values())
    assert {found["execution"]["engine"] for found in made.manifest.own_details["candidates"]} == {
        "onnxruntime",
        "openvino",
    }
    (candidate,) = (found for found in made.manifest.own_details["candidates"] if found["kept"])
    execution = made.manifest.execution
    assert (execution.engine, execution.precision) == (
        candidate["execution"]["engine"],
        candidate["execution"]["precision"],
    )
    assert made.manifest.cost.seconds(1, 9) > 0
    assert made.manifest.step.bytes == candidate["bytes"]


def test_lengths_come_from_a_page_of_metrics_where_the_recipe_names_one(tmp_path, graph, job, tokenizer):
    rows, base = job().dataset(), Predictor.load(graph, 1)
    counted = quantization.lengths_to_measure(None, rows, base)
    texts = [row.input.text for row in rows.train]
    assert counted.quantile(1.0) == max(len(found) for found in tokenizer.encode(texts))
    page = tmp_path / "metrics.txt"
    page.write_text(
        "# TYPE deploykit_input_tokens histogram\n"
        'deploykit_input_tokens_bucket{le="8"} 0\ndeploykit_input_tokens_bucket{le="32"} 5\n'
        'deploykit_input_tokens_bucket{le="+Inf"} 5\ndeploykit_input_tokens_count 5\ndeploykit_input_tokens_sum 99\n'
    )
    assert quantization.lengths_to_measure(page, rows, base) == Lengths((17,), (1.0,))
