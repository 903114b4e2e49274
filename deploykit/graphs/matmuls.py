"""Finds the MatMuls of an ONNX graph, says how each is quantized, and reads the tensors around them.

Quantizers, graph variants and the sensitivity ranking share these functions. The name that the exporter gives a MatMul
shows where it is, because layers are numbered: `/bert/encoder/layer.3/output/dense/MatMul`. MatMuls outside the layers
(pooler, task head, embedding projection) take little time and stay in float.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from deploykit import hardware
from deploykit.errors import DeploykitError

Array = npt.NDArray[Any]
LAYER_NUMBER = re.compile(r"\.\d+/")  # in the name of a node
WEIGHTED_OPERATORS = ("MatMul", "Gemm", "Attention", "MatMulInteger", "QAttention", "MatMulNBits")  # input[1]: weight
PRECISION_NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int8"}


def load(graph: Path) -> Any:
    """Loads a graph and normalizes it, so that every quantization tool recognizes its MatMuls.

    The exporter stores equal constants once and copies them with `Identity`; here, nodes read the constant instead of
    the copy. The linear layers of GPT-2 are exported as `Gemm`; here, each becomes a `MatMul` of the same name and an
    `Add`.
    """
    model = onnx.load(graph)
    _bypass_identities(model.graph)
    _split_gemms(model.graph)
    return model


def quantizable(model: Any, operators: Collection[str]) -> list[str]:
    """Returns the names of the MatMuls inside a graph's layers whose weight is a constant matrix.

    In a graph without numbered layers, the last MatMul is assumed to be the task head and is left out.

    Args:
        model: a graph from `load`.
        operators: `MatMul`, and optionally `Attention`, whose second input holds the query, key and value weights.
    """
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    nodes = [node for node in model.graph.node if node.op_type in operators and set(node.input[1:2]) & matrices]
    inside_layers = [node for node in nodes if node.op_type == "Attention" or LAYER_NUMBER.search(node.name)]
    return [node.name for node in inside_layers or nodes[:-1]]


def outside_layers(model: Any) -> list[str]:
    """Returns the names of the MatMuls outside the layers, including heads that share the embedding's matrix."""
    quantized = quantizable(model, ("MatMul",))
    nodes = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.name not in quantized]
    return [node.name for node in nodes if not LAYER_NUMBER.search(node.name)]


def choose(model: Any, float_nodes: Collection[str], operators: Collection[str]) -> list[str]:
    """Returns the names of the MatMuls to quantize: those from `quantizable` except the ones that stay in float.

    Args:
        model: a graph from `load`.
        float_nodes: names of the nodes that stay in float.
        operators: see `quantizable`.

    Raises:
        DeploykitError: no MatMul remains to quantize, or the graph lacks one of the `float_nodes`.
    """
    unknown = sorted(set(float_nodes) - {node.name for node in model.graph.node})
    if unknown:
        raise DeploykitError(f"the graph has no node {unknown[0]!r}, which should stay in float.")
    names = quantizable(model, operators)
    chosen = [name for name in names if name not in float_nodes]
    if not chosen:
        raise DeploykitError(
            f"the graph has nothing to quantize: {len(names)} MatMuls of its layers have a constant matrix, and"
            f" {len(names)} of them should stay in float. To keep the graph as it is, set quantize: {{method: none}}."
        )
    return chosen


def precisions(model: Any) -> dict[str, str]:
    """Maps the name of each MatMul with a constant weight to the weight's type.

    The type is `float32`, `float16`, `int8`, `int4` or `uint8`. It is `unpacked` if the weight is stored in bytes but
    the activations are float: such a MatMul runs in float.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    bytes_of = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weight_types = {}
    for node in (node for node in model.graph.node if node.op_type in WEIGHTED_OPERATORS):
        activations, weight = node.input[:2]
        weight_type = types.get(bytes_of.get(weight, weight))  # None: the weight is no constant
        if node.op_type == "MatMulNBits":
            weight_types[node.name] = f"int{_attribute_value(node, 'bits')}"
        elif weight in bytes_of and activations not in bytes_of:
            weight_types[node.name] = "unpacked"
        elif weight_type is not None:
            onnx_name = TensorProto.DataType.Name(weight_type).lower()
            weight_types[node.name] = PRECISION_NAMES.get(weight_type, onnx_name)
    return weight_types


def check(graph: Path, precision: str, expected: int) -> dict[str, Any]:
    """Checks that a quantizer quantized as many MatMuls as it should.

    Args:
        graph: the file that the quantizer wrote.
        precision: expected type of the quantized weights; see `precisions`.
        expected: number of MatMuls that should be quantized.

    Returns:
        The number of MatMuls with quantized weights (`quantized`) and with float weights (`float`).

    Raises:
        DeploykitError: another number was quantized, or weights are unsigned. For unsigned weights, ONNX Runtime has no
            VNNI and AMX kernels and is many times slower.
    """
    weight_types = precisions(onnx.load(graph))
    unsigned = [name for name, weight_type in weight_types.items() if weight_type == "uint8"]
    if unsigned:
        raise DeploykitError(f"the weights of {unsigned[0]} are unsigned bytes (uint8); they must be int8.")
    counts = Counter(weight_types.values())
    if counts[precision] != expected:
        raise DeploykitError(
            f"{counts[precision]} MatMuls were quantized, expected {expected} of {counts.total()}."
            " Try another graph or method."
        )
    return {"quantized": expected, "float": counts.total() - expected}


def session(model: Any, threads: int | None = None) -> Any:
    """Opens a graph in ONNX Runtime to inspect its tensors; predictions come from an engine instead.

    Args:
        model: a graph in memory, or the path of one.
        threads: number of threads; default: all cores that the cgroup allows.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or hardware.cpu_limit()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def inputs_of(session: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Returns those arrays of a batch that a session reads."""
    return {tensor.name: batch[tensor.name] for tensor in session.get_inputs()}


def tensor_values(model: Any, names: Sequence[str], batches: Sequence[Mapping[str, Array]]) -> Iterator[list[Array]]:
    """Runs a graph and yields, for each batch, the values of some tensors, in the order of their names.

    Args:
        model: a graph from `load`; it is not changed.
        names: of the tensors.
        batches: an array for each input of the graph, by its name.
    """
    opened = session(with_outputs(model, names))
    for batch in batches:
        yield opened.run(list(names), inputs_of(opened, batch))


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """Returns a copy of a graph that also outputs the named tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {tensor.name for tensor in model.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in outputs)
    return copy


def drop_unused(graph: Any) -> None:
    """Removes constants that no node reads, in place."""
    read = {name for node in graph.node for name in node.input} | {tensor.name for tensor in graph.output}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def replace_nodes(graph: Any, nodes: Sequence[Any]) -> None:
    """Replaces all nodes of a graph, in place."""
    del graph.node[:]
    graph.node.extend(nodes)


def _bypass_identities(graph: Any) -> None:
    """Lets nodes read constants directly instead of their copies, in place, and removes the `Identity` nodes."""
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {tensor.name for tensor in graph.output}
    copies = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs
    }
    nodes = [node for node in graph.node if node.output[0] not in copies]
    for node in nodes:
        node.input[:] = [copies.get(name, name) for name in node.input]
    replace_nodes(graph, nodes)


def _split_gemms(graph: Any) -> None:
    """Replaces each `Gemm` of a layer by a `MatMul` and, if it has a bias, an `Add`, in place."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if not _is_linear_layer(node, constants):
            nodes.append(node)
            continue
        source, weight, *bias = node.input
        if _attribute_value(node, "transB", 0):
            array = numpy_helper.to_array(constants[weight]).T
            weight = f"{weight}_transposed"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), weight))
        output = f"{node.output[0]}_matmul" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [source, weight], [output], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [output, *bias], list(node.output), name=f"{node.name}_Add"))
    replace_nodes(graph, nodes)
    drop_unused(graph)


def _is_linear_layer(node: Any, constants: Collection[str]) -> bool:
    """Says whether a node is a `Gemm` inside a layer that multiplies by a constant weight and scales nothing."""
    if node.op_type != "Gemm" or not LAYER_NUMBER.search(node.name) or node.input[1] not in constants:
        return False
    scales = [_attribute_value(node, name, 1) for name in ("alpha", "beta")]
    return scales == [1, 1] and not _attribute_value(node, "transA", 0)


def _attribute_value(node: Any, name: str, default: Any = None) -> Any:
    """Returns the value of a node's attribute, or the default if the node lacks it."""
    return helper.get_node_attr_value(node, name) if any(entry.name == name for entry in node.attribute) else default
