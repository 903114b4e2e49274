import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls

pytestmark = pytest.mark.usefixtures("one_thread")


def graph_of(nodes, constants=None, inputs=("x",), outputs=("y",)):
    described = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in names]
        for names in (inputs, outputs)
    ]
    arrays = [numpy_helper.from_array(np.float32(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", *described, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def saved(model, folder):
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def matmul(name, weight="w", source="x", output=None):
    return helper.make_node("MatMul", [source, weight], [output or name], name=name)


SQUARE = [[1.0, 2.0], [3.0, 5.0]]
ROWS = np.float32([[1, -1], [2, 7], [0, 1]])


def run(model):
    return matmuls.session(model).run(None, {"x": ROWS})[0]


# which MatMuls are quantizable


def test_matmuls_of_layers_with_a_constant_matrix_are_quantizable():
    names = ["/bert/layer.0/MatMul", "/bert/layer.1/up/MatMul", "/bert/pooler/MatMul", "/classifier/MatMul"]
    nodes = [matmul(name) for name in names]
    nodes += [matmul("/bert/layer.1/attention/MatMul", weight="x"), matmul("/bert/layer.1/flat/MatMul", weight="v")]
    nodes += [helper.make_node("Attention", ["x", "w"], ["a"], name="Attention_0", domain="com.microsoft")]
    model = graph_of(nodes, {"w": SQUARE, "v": [1, 2]})
    assert matmuls.quantizable(model, ("MatMul",)) == names[:2]
    assert matmuls.quantizable(model, ("MatMul", "Attention")) == [*names[:2], "Attention_0"]
    assert matmuls.outside_layers(model) == names[2:]


def test_of_a_graph_without_layers_the_last_matmul_is_the_head():
    model = graph_of([matmul("first"), matmul("second"), matmul("head")], {"w": SQUARE})
    assert matmuls.quantizable(model, ("MatMul",)) == ["first", "second"]
    assert matmuls.outside_layers(model) == ["head"]
    assert matmuls.quantizable(graph_of([]), ("MatMul",)) == []


def test_a_choice_needs_names_of_the_graph_and_leaves_something_to_quantize():
    model = graph_of([matmul("/layer.0/MatMul"), matmul("/layer.1/MatMul"), matmul("/head/MatMul")], {"w": SQUARE})
    with pytest.raises(DeploykitError, match=r"the graph has no node '/layer\.2/MatMul'"):
        matmuls.choose(model, ["/layer.2/MatMul"], ("MatMul",))
    message = r"nothing to quantize: 2 MatMuls of its layers have a constant matrix, and 2 of them should stay"
    with pytest.raises(DeploykitError, match=message):
        matmuls.choose(model, ["/layer.0/MatMul", "/layer.1/MatMul"], ("MatMul",))
    with pytest.raises(DeploykitError, match="nothing to quantize: 0 MatMuls"):
        matmuls.choose(model, [], ("Attention",))
    assert matmuls.choose(model, ["/layer.0/MatMul", "/head/MatMul"], ("MatMul",)) == ["/layer.1/MatMul"]


# normalization


def test_copies_of_constants_are_read_from_their_source(tmp_path):
    copy = helper.make_node("Identity", ["w"], ["copy"], name="Identity_0")
    input_copy = helper.make_node("Identity", ["x"], ["same"], name="Identity_1")
    model = graph_of([copy, input_copy, matmul("/layer.0/MatMul", "copy", "same", "y")], {"w": SQUARE})
    loaded = matmuls.load(saved(model, tmp_path))
    assert [node.op_type for node in loaded.graph.node] == ["Identity", "MatMul"]
    assert matmuls.quantizable(loaded, ("MatMul",)) == ["/layer.0/MatMul"]
    assert matmuls.quantizable(model, ("MatMul",)) == []
    np.testing.assert_array_equal(run(loaded), run(model))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_layers_gemm_becomes_a_matmul_of_the_same_name(bias, transposed, tmp_path):
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    gemm = helper.make_node("Gemm", inputs, ["y"], name="/h.0/mlp/Gemm", transB=transposed)
    model = graph_of([gemm], {"w": SQUARE, **({"b": [10, 20]} if bias else {})})
    loaded = matmuls.load(saved(model, tmp_path))
    assert [node.op_type for node in loaded.graph.node] == ["MatMul", "Add"][: 1 + bias]
    assert matmuls.quantizable(loaded, ("MatMul",)) == ["/h.0/mlp/Gemm"]
    assert len(loaded.graph.initializer) == 1 + bias  # what was transposed is not stored twice
    np.testing.assert_array_equal(run(loaded), run(model))


@pytest.mark.parametrize(
    ("name", "attributes"), [("/classifier/Gemm", {}), ("/h.0/Gemm", {"alpha": 2.0}), ("/h.0/Gemm", {"beta": 0.5})]
)
def test_other_gemms_stay(name, attributes, tmp_path):
    model = graph_of([helper.make_node("Gemm", ["x", "w"], ["y"], name=name, **attributes)], {"w": SQUARE})
    assert [node.op_type for node in matmuls.load(saved(model, tmp_path)).graph.node] == ["Gemm"]


# what was quantized


@pytest.fixture
def float_graph(tmp_path):
    nodes = [matmul("/layer.0/MatMul", output="h"), matmul("/head/MatMul", "v", "h", "y")]
    return saved(graph_of(nodes, {"w": SQUARE, "v": SQUARE}), tmp_path)


def quantized(source, weights):
    target = source.with_name("quantized.onnx")
    quantize_dynamic(source, target, weight_type=weights, nodes_to_quantize=["/layer.0/MatMul"])
    return target


def test_unsigned_weights_are_refused(float_graph):
    target = quantized(float_graph, QuantType.QUInt8)
    with pytest.raises(DeploykitError, match=r"weights of /layer\.0/MatMul_quant are unsigned bytes \(uint8\)"):
        matmuls.check(target, "int8", 1)


@pytest.mark.parametrize("zero_point", ["uint8", "int8"])
def test_unsigned_weights_in_pairs_are_refused(zero_point, tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "middle"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "middle"], ["x8"]),
        helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]),
        matmul("/layer.0/MatMul", "w", "x8", "y"),
    ]
    model = graph_of(nodes, {"scale": 0.1})
    arrays = {"w8": np.ones((2, 2), zero_point), "zero": np.zeros((), zero_point), "middle": np.uint8(7)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    onnx.checker.check_model(model)
    if zero_point == "uint8":
        with pytest.raises(DeploykitError, match="unsigned bytes"):
            matmuls.check(saved(model, tmp_path), "int8", 1)
    else:
        assert matmuls.check(saved(model, tmp_path), "int8", 1) == {"quantized": 1, "float": 0}
        model.graph.node[-1].input[0] = "x"  # activations in float
        assert matmuls.precisions(model) == {"/layer.0/MatMul": "unpacked"}
        with pytest.raises(DeploykitError, match="0 MatMuls were quantized, expected 1 of 1"):
            matmuls.check(saved(model, tmp_path), "int8", 1)


def test_another_number_is_refused(float_graph):
    target = quantized(float_graph, QuantType.QInt8)
    with pytest.raises(DeploykitError, match="1 MatMuls were quantized, expected 2 of 2"):
        matmuls.check(target, "int8", 2)
    assert matmuls.check(target, "int8", 1) == {"quantized": 1, "float": 1}
    assert matmuls.precisions(onnx.load(target)) == {"/layer.0/MatMul_quant": "int8", "/head/MatMul": "float32"}


# values of inner tensors


def test_inner_tensors_can_be_read(float_graph):
    model = matmuls.load(float_graph)
    batches = [{"x": ROWS, "other": ROWS}, {"x": ROWS[:1]}]
    tensors = list(matmuls.tensor_values(model, ["h", "y"], batches))
    for batch, (inside, output) in zip(batches, tensors, strict=True):
        np.testing.assert_allclose(inside, batch["x"] @ SQUARE)
        np.testing.assert_allclose(output, batch["x"] @ SQUARE @ SQUARE)
    assert [output.name for output in model.graph.output] == ["y"]
