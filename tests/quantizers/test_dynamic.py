import logging

import numpy as np
import onnx
import pytest
from graph_models import signal_to_noise
from models import SEPARATE, TASKS
from onnx import TensorProto, numpy_helper
from pydantic import ValidationError

from deploykit.errors import DeploykitError
from deploykit.quantizers import dynamic, static

PRODUCTS = 6 * 2  # query, key, value, projection, up and down of two layers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[(kind, task) for kind in SEPARATE for task in TASKS], ids="-".join)
def exported(request, exported_of):
    return exported_of(*request.param) / "model.onnx"


def nodes(graph, *operators):
    return [node for node in onnx.load(graph).graph.node if node.op_type in operators]


def test_options_that_it_does_not_have_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        dynamic.Options(per_tensor=True)


@pytest.mark.parametrize("variant", ["exported", "fused"])  # Optimum's way, and ONNX Runtime's
def test_a_result_that_misses_a_product_is_refused(variant, variant_graph, tmp_path, monkeypatch):
    way = "_quantize_by_optimum" if variant == "exported" and dynamic.HAS_OPTIMUM else "_quantize_by_onnxruntime"
    quantize = getattr(dynamic, way)
    monkeypatch.setattr(dynamic, way, lambda source, names, *how: quantize(source, names[:-1], *how))
    with pytest.raises(DeploykitError, match="11 MatMuls were quantized, expected 12 of 14"):
        dynamic.quantize(variant_graph(variant), dynamic.Options(), tmp_path / "model.onnx")


def test_a_table_that_was_not_quantized_is_refused(exported_of, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic, "_largest_table_lookups", lambda model: ["/bert/embeddings/Gather"])  # of a shape
    with pytest.raises(DeploykitError, match=r"the embedding table was not quantized.*embeddings: false"):
        dynamic.quantize(exported_of("bert") / "model.onnx", dynamic.Options(embeddings=True), tmp_path / "model.onnx")


def test_only_products_of_the_layers_with_a_constant_are_quantized(exported, tmp_path):
    target = tmp_path / "model.onnx"
    facts = dynamic.quantize(exported, dynamic.Options(), target)
    assert len(nodes(target, "MatMulInteger")) == PRODUCTS == facts["quantized"]
    floats = {node.name for node in nodes(target, "MatMul", "Gemm")}
    between = {name for name in floats if name.endswith(("attention/MatMul", "attention/MatMul_1"))}
    between |= {name for name in floats if name.endswith(("self/MatMul", "self/MatMul_1"))}
    assert len(between) == 2 * 2
    assert facts["float"] == len(floats - between) >= 1
    assert any("classifier" in name for name in floats - between)


@pytest.mark.parametrize("variant", ["exported", "attention"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_signed_bytes_and_activations_unsigned(per_channel, variant, variant_graph, tmp_path):
    target = tmp_path / "model.onnx"
    dynamic.quantize(variant_graph(variant), dynamic.Options(per_channel=per_channel), target)
    model = onnx.load(target)
    initializers = {found.name: found for found in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = nodes(target, "MatMulInteger", "QAttention")
    assert len(found) == (PRODUCTS if variant == "exported" else PRODUCTS - 2 * 2)
    for node in found:
        weight = initializers[node.input[1]]
        zero = initializers[node.input[3 if node.op_type == "MatMulInteger" else 7]]
        assert weight.data_type == zero.data_type == TensorProto.INT8
        assert not onnx.numpy_helper.to_array(zero).any()  # symmetric
        assert makers[node.input[0]].op_type == "DynamicQuantizeLinear"  # which makes unsigned bytes
        scale = initializers[f"{weight.name.removesuffix('_quantized')}_scale"]
        assert list(scale.dims) == ([weight.dims[1]] if per_channel else [])


def test_the_file_is_smaller_and_the_answers_are_near(exported, weight_bits, padded, tmp_path):
    target = tmp_path / "model.onnx"
    assert dynamic.quantize(exported, dynamic.Options(), target)["weight_bits"] == weight_bits
    assert target.stat().st_size < 0.85 * exported.stat().st_size
    assert 8 < signal_to_noise(exported, target, padded(0, 16)) < 90


@pytest.mark.parametrize("variant", ["exported", "fused", "merged"])
def test_embeddings_can_be_stored_in_bytes(variant, variant_graph, weight_bits, padded, tmp_path):
    source, small = variant_graph(variant), tmp_path / "small.onnx"
    dynamic.quantize(source, dynamic.Options(), tmp_path / "model.onnx")
    facts = dynamic.quantize(source, dynamic.Options(embeddings=True), small)
    assert facts["quantized"] == len(nodes(small, "MatMulInteger"))
    tables = {found.name: found for found in onnx.load(small).graph.initializer}
    (looked_up,) = (node for node in nodes(small, "Gather") if "word_embeddings" in node.name)
    table = tables[looked_up.input[0]]
    assert table.data_type in (TensorProto.INT8, TensorProto.UINT8)
    saved = (tmp_path / "model.onnx").stat().st_size - small.stat().st_size
    assert saved > 2.5 * np.prod(table.dims)  # of three bytes a weight
    assert signal_to_noise(source, small, padded(0, 16)) > 28


def test_quantizing_warns_of_nothing(variant_graph, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for variant in ("exported", "fused"):
            dynamic.quantize(variant_graph(variant), dynamic.Options(), tmp_path / "model.onnx")
    assert [record.getMessage() for record in caplog.records] == []


def by_pairs(activations, weights):
    """Multiplies bytes as `pmaddubsw` does: the sum of two neighbouring products is cut off at 16 bits."""
    products = activations[:, :, None].astype(np.int32) * weights[None].astype(np.int32)
    pairs = products.reshape(len(activations), len(weights) // 2, 2, -1).sum(axis=2)
    return pairs.clip(-(2**15), 2**15 - 1).sum(axis=1)


@pytest.mark.parametrize("variant", ["exported", "attention"])  # Optimum's way, and ONNX Runtime's
@pytest.mark.parametrize("method", [dynamic, static])
def test_weights_overflow_no_sum_on_a_cpu_without_vnni(method, variant, variant_graph, weight_bits, padded, tmp_path):
    target = tmp_path / "model.onnx"
    method.quantize(variant_graph(variant), method.Options(), target, padded(0, 8))
    arrays = [numpy_helper.to_array(found) for found in onnx.load(target).graph.initializer]
    matrices = [array for array in arrays if array.dtype == np.int8 and array.ndim == 2]
    assert matrices
    rows = np.random.default_rng(0).integers(0, 256, (8, max(map(len, matrices))))
    rows = np.concatenate([rows, np.full_like(rows[:1], 255)])
    exact = [
        np.array_equal(by_pairs(rows[:, : len(matrix)], matrix), rows[:, : len(matrix)] @ matrix.astype(np.int32))
        for matrix in matrices
    ]
    assert all(exact) == (weight_bits == 7)


def test_linear_layers_of_a_gpt2_are_quantized(gpt2_graph, weight_bits, tmp_path):
    target = tmp_path / "model.onnx"
    assert len(nodes(gpt2_graph, "Gemm")) == 4 * 2
    assert dynamic.quantize(gpt2_graph, dynamic.Options(), target)["quantized"] == 4 * 2
    ids = np.random.default_rng(0).integers(1, 110, (3, 9))
    places = np.broadcast_to(np.arange(9), ids.shape).copy()
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
    assert signal_to_noise(gpt2_graph, target, [batch]) > 28
