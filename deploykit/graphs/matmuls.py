"""The matrix products of an ONNX graph: which there are, which are quantized, and what goes in and comes out.

Quantizers, graph variants and the ranking by damage ask the same questions of a graph, hence a room of its own.
The exporter's names tell a product's place: layers are numbered (`/bert/encoder/layer.3/output/dense/MatMul`), and
what stands outside of them (poolers, the task's head, projections of embeddings) stays in float: it costs little.
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
LAYER = re.compile(r"\.\d+/")
WEIGHTED = ("MatMul", "Gemm", "Attention", "MatMulInteger", "QAttention", "MatMulNBits")  # second input: the weight
PRECISIONS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int8"}


def load(graph: Path) -> Any:
    """Loads a graph in the one form that every tool knows.

    The exporter stores equal constants once and copies them by `Identity`, and the linear layers of GPT-2 are `Gemm`:
    copies are read from their source here, and a layer's `Gemm` becomes `MatMul`, by the same name, and `Add`.
    """
    model = onnx.load(graph)
    _read_copies_from_their_source(model.graph)
    _split_gemms(model.graph)
    return model


def quantizable(model: Any, operators: Collection[str]) -> list[str]:
    """Names the products of a graph's layers that have a constant matrix.

    A graph without numbered layers does not tell its head: there the last product counts as that.

    Args:
        model: what `load` gave.
        operators: `MatMul`, or also `Attention`, whose second input is the weights of query, key and value.
    """
    matrices = {found.name for found in model.graph.initializer if len(found.dims) == 2}
    nodes = [node for node in model.graph.node if node.op_type in operators and set(node.input[1:2]) & matrices]
    inside = [node for node in nodes if node.op_type == "Attention" or LAYER.search(node.name)]
    return [node.name for node in inside or nodes[:-1]]


def outside(model: Any) -> list[str]:
    """Names the products outside of the layers, tied heads without a constant matrix of their own included."""
    inside = quantizable(model, ("MatMul",))
    nodes = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.name not in inside]
    return [node.name for node in nodes if not LAYER.search(node.name)]


def choose(model: Any, keep: Collection[str], operators: Collection[str]) -> list[str]:
    """Names the products to quantize: `quantizable` without those to keep.

    Args:
        model: what `load` gave.
        keep: names of nodes that stay in float.
        operators: see `quantizable`.

    Raises:
        DeploykitError: no product is left, or a name to keep is not in the graph.
    """
    unknown = sorted(set(keep) - {node.name for node in model.graph.node})
    if unknown:
        raise DeploykitError(f"no node of the graph is called {unknown[0]!r}, which was to stay in float.")
    names = quantizable(model, operators)
    chosen = [name for name in names if name not in keep]
    if not chosen:
        raise DeploykitError(
            f"the graph has nothing to quantize: {len(names)} products of its layers have a constant matrix, and"
            f" {len(names)} of them are to stay in float. To keep the graph as it is, set quantize: {{method: none}}."
        )
    return chosen


def precisions(model: Any) -> dict[str, str]:
    """Maps each product with a constant weight to what that weight is: `float32`, `float16`, `int8`, `int4`, `uint8`.

    Weights in bytes whose activations are in float are `unpacked`: such a product is computed in float.
    """
    types = {found.name: found.data_type for found in model.graph.initializer}
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        weight = stored.get(node.input[1], node.input[1]) if node.op_type in WEIGHTED else ""
        if node.op_type == "MatMulNBits":
            found[node.name] = f"int{_attribute(node, 'bits')}"
        elif node.op_type in WEIGHTED and node.input[1] in stored and node.input[0] not in stored:
            found[node.name] = "unpacked"
        elif weight in types:
            found[node.name] = PRECISIONS.get(types[weight], TensorProto.DataType.Name(types[weight]).lower())
    return found


def check(graph: Path, precision: str, expected: int) -> dict[str, Any]:
    """Counts the products of a quantized graph.

    Args:
        graph: what a quantizer wrote.
        precision: of the quantized weights.
        expected: how many products were to be quantized.

    Returns:
        How many products have quantized weights (`quantized`) and weights in float (`float`).

    Raises:
        DeploykitError: another number was quantized, or weights are unsigned: ONNX Runtime has no VNNI and AMX kernels
            for those, and is many times slower.
    """
    found = precisions(onnx.load(graph))
    unsigned = [name for name, stored in found.items() if stored == "uint8"]
    if unsigned:
        raise DeploykitError(f"the weights of {unsigned[0]} are unsigned bytes (uint8); they must be int8.")
    counts = Counter(found.values())
    if counts[precision] != expected:
        raise DeploykitError(
            f"{counts[precision]} products were quantized, expected {expected} of {counts.total()}."
            " Try another graph or method."
        )
    return {"quantized": expected, "float": counts.total() - expected}


def session(model: Any, threads: int | None = None) -> Any:
    """Opens a graph for looking inside; engines are for answers.

    Args:
        model: in memory, or the path of one.
        threads: all that the cgroup allows, if None.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or hardware.cpu_limit()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def inputs_of(opened: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Picks what a session takes from a batch."""
    return {found.name: batch[found.name] for found in opened.get_inputs()}


def values(model: Any, names: Sequence[str], batches: Sequence[Mapping[str, Array]]) -> Iterator[list[Array]]:
    """Runs a graph and yields what some of its tensors hold, batch by batch.

    Args:
        model: what `load` gave; it stays as it was.
        names: of tensors.
        batches: arrays by the names of the graph's inputs.
    """
    opened = session(watched(model, names))
    for batch in batches:
        yield opened.run(list(names), inputs_of(opened, batch))


def watched(model: Any, names: Sequence[str]) -> Any:
    """Returns a copy of a graph that also gives out some of its tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {found.name for found in model.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    return copy


def drop_unused(graph: Any) -> None:
    """Removes constants that no node reads, in place."""
    read = {name for node in graph.node for name in node.input} | {found.name for found in graph.output}
    left = [found for found in graph.initializer if found.name in read]
    del graph.initializer[:]
    graph.initializer.extend(left)


def _read_copies_from_their_source(graph: Any) -> None:
    constants = {found.name for found in graph.initializer}
    outputs = {found.name for found in graph.output}
    copies = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs
    }
    nodes = [node for node in graph.node if node.output[0] not in copies]
    for node in nodes:
        node.input[:] = [copies.get(name, name) for name in node.input]
    _replace(graph, nodes)


def _split_gemms(graph: Any) -> None:
    constants = {found.name: found for found in graph.initializer}
    nodes = []
    for node in graph.node:
        plain = node.op_type == "Gemm" and all(_attribute(node, name, 1) == 1 for name in ("alpha", "beta"))
        if not (plain and LAYER.search(node.name) and node.input[1] in constants and not _attribute(node, "transA", 0)):
            nodes.append(node)
            continue
        source, weight, *bias = node.input
        if _attribute(node, "transB", 0):
            array = numpy_helper.to_array(constants[weight]).T
            weight = f"{weight}_transposed"
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), weight))
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [source, weight], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, *bias], list(node.output), name=f"{node.name}_Add"))
    _replace(graph, nodes)
    drop_unused(graph)


def _replace(graph: Any, nodes: Sequence[Any]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    return helper.get_node_attr_value(node, name) if any(found.name == name for found in node.attribute) else default
