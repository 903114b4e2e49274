import re

import numpy as np
import onnx
import pytest
from models import SEPARATE, TASKS
from onnx import TensorProto, helper
from pydantic import ValidationError

from deploykit.engines import onnxruntime as engine
from deploykit.errors import DeploykitError
from deploykit.execution import Execution
from deploykit.quantizers import dynamic

PRODUCTS = 6 * 2  # query, key, value, projection, up and down of two layers


@pytest.fixture(params=[(kind, task) for kind in SEPARATE for task in TASKS], ids="-".join)
def exported(request, exported_of):
    return exported_of(*request.param)


def nodes(graph, operator):
    return [node for node in onnx.load(graph).graph.node if node.op_type == operator]


def test_options_that_it_does_not_have_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        dynamic.Options(per_tensor=True)


def test_a_result_that_misses_a_product_is_refused(exported_of, tmp_path, monkeypatch):
    found = dynamic.matmuls
    monkeypatch.setattr(dynamic, "matmuls", lambda model: (found(model)[0] + 1, found(model)[1]))
    with pytest.raises(DeploykitError, match="12 products were quantized, expected 13 of 19"):
        dynamic.quantize(exported_of("bert") / "model.onnx", dynamic.Options(), tmp_path / "model.onnx")


def test_only_products_of_the_encoder_with_a_constant_are_quantized(exported, tmp_path):
    graph, target = exported / "model.onnx", tmp_path / "model.onnx"
    before = graph.read_bytes()
    constants = {found.name for found in onnx.load(graph).graph.initializer}
    encoder = [
        node
        for node in nodes(graph, "MatMul")
        if node.input[1] in constants and re.search(r"/layer\.\d+/", node.name)  # of no head, pooler or embedding
    ]
    facts = dynamic.quantize(graph, dynamic.Options(), target)
    assert len(nodes(target, "MatMulInteger")) == len(encoder) == PRODUCTS == facts["quantized"]
    floats = [node.name for node in onnx.load(target).graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(floats) == facts["float"] >= 4 + 1  # two a layer between activations, and the head
    assert any("classifier" in name for name in floats)
    assert (
        sum(
            name.endswith(("/attention/MatMul", "/attention/MatMul_1", "self/MatMul", "self/MatMul_1"))
            for name in floats
        )
        == 4
    )
    assert graph.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_signed_bytes_and_activations_unsigned(per_channel, exported_of, tmp_path):
    target = tmp_path / "model.onnx"
    dynamic.quantize(exported_of("bert") / "model.onnx", dynamic.Options(per_channel=per_channel), target)
    model = onnx.load(target)
    initializers = {found.name: found for found in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    products = nodes(target, "MatMulInteger")
    assert products
    for node in products:
        weight, zero = initializers[node.input[1]], initializers[node.input[3]]
        assert weight.data_type == zero.data_type == TensorProto.INT8
        assert not onnx.numpy_helper.to_array(zero).any()  # symmetric
        assert makers[node.input[0]].op_type == "DynamicQuantizeLinear"  # which makes unsigned bytes
        scales = [
            found for name, found in initializers.items() if name == f"{weight.name.removesuffix('_quantized')}_scale"
        ]
        assert [list(found.dims) for found in scales] == [[weight.dims[1]] if per_channel else []] or not per_channel


def test_the_file_is_smaller_and_the_answers_are_near(exported, tmp_path, tokenizer):
    target = tmp_path / "model.onnx"
    dynamic.quantize(exported / "model.onnx", dynamic.Options(), target)
    assert target.stat().st_size < 0.85 * (exported / "model.onnx").stat().st_size
    texts = ["the film is great", "i saw it with my friends , and the plot was really awful ."]
    batch = tokenizer.collate(tokenizer.encode(texts))
    whole, small = (engine.load(graph, Execution()).run(batch) for graph in (exported / "model.onnx", target))
    assert whole.shape == small.shape
    assert 0 < np.abs(whole - small).max() < 0.15 * np.abs(whole).max() + 0.05


def test_the_graphs_scope_decides_what_is_the_encoder():
    """A product with a constant outside the scope that most share stays in float, as do Gemms."""
    names = ["/bert/layer.0/MatMul", "/bert/layer.1/MatMul", "/bert/layer.1/between/MatMul", "/classifier/MatMul"]
    made = [
        helper.make_node("MatMul", ["x", "c" if "between" not in name else "x"], [name], name=name) for name in names
    ]
    made.append(helper.make_node("Gemm", ["x", "c"], ["g"], name="/bert/pooler/Gemm"))
    graph = helper.make_graph(made, "g", [], [], [helper.make_tensor("c", TensorProto.FLOAT, [1, 1], [1.0])])
    assert dynamic.matmuls(helper.make_model(graph)) == (
        5,
        ["/bert/layer.1/between/MatMul", "/classifier/MatMul", "/bert/pooler/Gemm_MatMul"],
    )


def test_a_graph_without_products_has_none():
    assert dynamic.matmuls(helper.make_model(helper.make_graph([], "g", [], []))) == (0, [])
