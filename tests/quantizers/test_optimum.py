"""Optimum's quantizer, and the calls of ONNX Runtime in its place, write the same graphs."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantizationMode, QuantType
from onnxruntime.quantization.calibrate import TensorsData

from deploykit.graphs import matmuls
from deploykit.quantizers import dynamic, static

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not dynamic.HAS_OPTIMUM, reason="the extra `optimum` is not installed: it needs transformers 4.57"
    ),
]
KINDS = ("bert", "distilbert", "electra", "gpt2")


def test_optimum_is_taken_where_it_is_installed(variant_graph, tmp_path, monkeypatch):
    calls = []
    for way in ("_quantize_by_optimum", "_quantize_by_onnxruntime"):
        write = getattr(dynamic, way)
        monkeypatch.setattr(dynamic, way, lambda *args, way=way, write=write: (calls.append(way), write(*args))[1])
    for variant in ("exported", "fused"):
        dynamic.quantize(variant_graph(variant), dynamic.Options(), tmp_path / f"{variant}.onnx")
    assert calls == ["_quantize_by_optimum", "_quantize_by_onnxruntime"]


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_graphs_are_the_same_bytes(kind, per_channel, embeddings, exported_of, tmp_path, monkeypatch):
    options = dynamic.Options(per_channel=per_channel, embeddings=embeddings)
    for optimum in (True, False):
        monkeypatch.setattr(dynamic, "HAS_OPTIMUM", optimum)
        dynamic.quantize(exported_of(kind) / "model.onnx", options, tmp_path / f"{optimum}.onnx")
    assert (tmp_path / "True.onnx").read_bytes() == (tmp_path / "False.onnx").read_bytes()


def described(file):
    """Returns the nodes of a graph in order, and its constants."""
    graph = onnx.load(file).graph
    nodes = [
        (node.op_type, node.name, tuple(node.input), tuple(node.output), tuple(node.attribute)) for node in graph.node
    ]
    return [str(node) for node in nodes], {found.name: numpy_helper.to_array(found) for found in graph.initializer}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_static_graphs_have_the_same_nodes_and_constants(kind, per_channel, exported_of, padded, tmp_path, monkeypatch):
    """But for what `ORTQuantizer` cannot do, which is left out here: sums and outputs of products stay in float."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import QuantizationConfig

    graph, batches = exported_of(kind) / "model.onnx", padded(0, 32)
    monkeypatch.setattr(static, "EXTRA", {"WeightSymmetric": True})
    monkeypatch.setattr(static, "_restore_float_inputs", lambda *_: None)
    model = matmuls.load(graph)
    names = matmuls.choose(model, (), static.OPERATORS)
    nodes = [node for node in model.graph.node if node.name in names]
    wanted = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0])))
    ranges = static.measure_ranges
    monkeypatch.setattr(static, "measure_ranges", lambda model, _, *rest: ranges(model, wanted, *rest))
    static.quantize(graph, static.Options(per_channel=per_channel), tmp_path / "ours.onnx", batches)

    onnx.save(model, tmp_path / "source.onnx")
    configuration = QuantizationConfig(
        is_static=True,
        format=QuantFormat.QDQ,
        mode=QuantizationMode.QLinearOps,
        activations_dtype=QuantType.QUInt8,
        weights_dtype=QuantType.QInt8,
        weights_symmetric=True,
        per_channel=per_channel,
        nodes_to_quantize=names,
        operators_to_quantize=["MatMul"],
    )
    found = TensorsData(CalibrationMethod.MinMax, ranges(model, wanted, batches))
    ORTQuantizer(tmp_path / "source.onnx").quantize(configuration, tmp_path, calibration_tensors_range=found)

    (one, constants), (other, others) = described(tmp_path / "ours.onnx"), described(tmp_path / "source_quantized.onnx")
    assert one == other
    assert set(constants) == set(others)
    assert any(array.dtype == np.int8 for array in constants.values())
    for name, array in constants.items():
        np.testing.assert_array_equal(array, others[name])
        assert array.dtype == others[name].dtype
