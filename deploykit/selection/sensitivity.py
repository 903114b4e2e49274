"""Ranks MatMuls by the damage that quantizing each one does. In this order a repair returns them to float.

Damage is the error of the logits if one MatMul alone is quantized. Two simpler ways do not work: writing and opening a
graph for each MatMul takes too long for a model of BERT-base's size (72 MatMuls, 440 MB each time), and comparing each
MatMul's own product ignores how later layers amplify or absorb the error. Instead:

1. Each MatMul is quantized as a graph of one node. Run on its inputs in the model, it gives the change of its product.
2. The float graph is opened once, with an extra input per MatMul that is added to its product. If the input of one
   MatMul is its change and the others are 0, the logits are those of a graph with that one MatMul quantized.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from deploykit.graphs import matmuls
from deploykit.graphs.matmuls import Array
from deploykit.methods import Frozen
from deploykit.quantizers import Batch, Quantizer

MIN_ERROR = 1e-12  # smaller relative squared errors count as this (120 dB): it is below the rounding of float32 logits
MATMULS_PER_RUN = 8  # whose inputs one run of the model returns; more would take more memory for activations


class Damage(Frozen):
    """The damage from quantizing one MatMul, the `node`.

    `error` is the mean squared error of the logits over their variance, and `decibels` the same as a signal-to-noise
    ratio.
    """

    node: str
    error: float
    decibels: float


def rank(
    graph: Path, method: Quantizer, options: Any, batches: Sequence[Batch], folder: Path, threads: int | None = None
) -> list[Damage]:
    """Measures the damage of quantizing each MatMul, and returns the worst first.

    Args:
        graph: the float32 graph that the quantizer would quantize.
        method: the quantizer.
        options: of the quantizer.
        batches: padded batches of real rows; 16 to 64 rows are enough.
        folder: an existing folder for temporary files.
        threads: of each run; default: all cores that the cgroup allows.
    """
    model = matmuls.load(graph)
    names = matmuls.quantizable(model, method.OPERATORS)
    nodes = [node for node in model.graph.node if node.name in names]
    session = matmuls.session(_with_change_inputs(model, nodes), threads)
    no_changes = {_change_name(node): np.zeros((), np.float32) for node in nodes}  # broadcast to the products' shapes
    feeds = [matmuls.inputs_of(session, {**batch, **no_changes}) for batch in batches]
    outputs = [output.name for output in model.graph.output]
    float_logits = _logits(session, outputs, feeds)
    damages = []
    with tqdm(total=len(nodes), desc="damage", unit="MatMul", disable=None) as bar:
        for start in range(0, len(nodes), MATMULS_PER_RUN):
            group = nodes[start : start + MATMULS_PER_RUN]
            tensors = [_matmul_tensors(session, feed, group, model) for feed in feeds]
            for node in group:
                quantized = _quantized_products(model, node, method, options, tensors, folder)
                changed_feeds = [
                    {**feed, _change_name(node): product - values[_product_name(node)]}
                    for feed, values, product in zip(feeds, tensors, quantized, strict=True)
                ]
                error = damage(float_logits, _logits(session, outputs, changed_feeds))
                damages.append(Damage(node=node.name, error=error, decibels=decibels(error)))
                bar.update()
    return sorted(damages, key=lambda entry: entry.error, reverse=True)


def groups(ranking: Sequence[Damage]) -> Iterator[frozenset[str]]:
    """Yields growing sets of nodes to return to float: the worst MatMul, the worst 2, 4, 8 and so on, but never all."""
    count = 1
    while count < len(ranking):
        yield frozenset(entry.node for entry in ranking[:count])
        count *= 2


def damage(reference: Array, changed: Array) -> float:
    """Returns the mean squared difference of two arrays of logits over the variance of the reference."""
    return float(np.mean(np.square(changed - reference)) / max(np.var(reference), np.finfo(np.float32).tiny))


def decibels(error: float) -> float:
    """Converts a relative squared error to a signal-to-noise ratio in decibels."""
    return float(-10 * np.log10(max(error, MIN_ERROR)))


def _logits(session: Any, names: Sequence[str], batches: Sequence[Batch]) -> Array:
    """Returns the named outputs for all batches, without those at padding, in one array, `(numbers,)`."""
    arrays = []
    for batch in batches:
        mask = batch.get("attention_mask")
        for output in session.run(list(names), matmuls.inputs_of(session, batch)):
            has_tokens = mask is not None and output.shape[:2] == mask.shape  # (batch, tokens, ...)
            arrays.append(output[np.asarray(mask, dtype=bool) if has_tokens else ...].reshape(-1))
    return np.concatenate(arrays)


def _with_change_inputs(model: Any, nodes: Sequence[Any]) -> Any:
    """Returns a copy of a graph that adds an extra input, the change, to the product of each of some MatMuls.

    The inputs and the products of these MatMuls become outputs of the graph. A product is the MatMul's own output: the
    sum with the change gets the name that the output had.
    """
    names = {node.name for node in nodes}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copied = []
    for node in copy.graph.node:
        copied.append(node)
        if node.name in names:
            product, change, output = _product_name(node), _change_name(node), node.output[0]
            copy.graph.input.append(helper.make_tensor_value_info(change, TensorProto.FLOAT, None))
            copied.append(helper.make_node("Add", [product, change], [output], name=change))
            node.output[0] = product
    matmuls.replace_nodes(copy.graph, copied)
    return matmuls.with_outputs(copy, _inputs_and_products(model, nodes))


def _inputs_and_products(model: Any, nodes: Sequence[Any]) -> list[str]:
    """Names the inputs and products of MatMuls, except those that are inputs of the graph and so cannot be outputs."""
    graph_inputs = {tensor.name for tensor in model.graph.input}
    names = [name for node in nodes for name in (*_variable_inputs(model, node), _product_name(node))]
    return [name for name in dict.fromkeys(names) if name not in graph_inputs]


def _matmul_tensors(session: Any, feed: Mapping[str, Array], nodes: Sequence[Any], model: Any) -> dict[str, Array]:
    """Runs a batch, and returns its arrays and the inputs and products of some MatMuls, all by name."""
    names = _inputs_and_products(model, nodes)
    return {**feed, **dict(zip(names, session.run(names, feed), strict=True))}


def _quantized_products(
    model: Any, node: Any, method: Quantizer, options: Any, tensors: Sequence[Mapping[str, Array]], folder: Path
) -> list[Array]:
    """Quantizes one MatMul as a graph of its own, and returns its products for its inputs in the model.

    Args:
        model: the float graph.
        node: the MatMul.
        method: the quantizer.
        options: of the quantizer.
        tensors: from `_matmul_tensors`, one mapping per batch.
        folder: an existing folder for the two files.
    """
    source, target = folder / "single.onnx", folder / "quantized.onnx"
    names = _variable_inputs(model, node)
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.name = "single.0/MatMul"  # a number as in a layer's name: quantizers skip nodes outside layers
    graph = helper.make_graph(
        [single],
        "single",
        [_value_info(name, tensors[0][name]) for name in names],
        [_value_info(node.output[0], tensors[0][_product_name(node)])],
        [tensor for tensor in model.graph.initializer if tensor.name in node.input],
    )
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), source)
    method.quantize(source, options, target, [{name: values[name] for name in names} for values in tensors])
    session = matmuls.session(target, threads=1)
    return [session.run(None, matmuls.inputs_of(session, values))[0] for values in tensors]


def _value_info(name: str, array: Array) -> Any:
    """Describes a tensor with the array's type and number of axes, all of any size."""
    axes = [f"{name}.{axis}" for axis in range(array.ndim)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), axes)


def _variable_inputs(model: Any, node: Any) -> list[str]:
    """Returns the names of a node's inputs that are not constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [name for name in node.input if name and name not in constants]


def _product_name(node: Any) -> str:
    """Returns the name of the tensor with a MatMul's product, before its change is added."""
    return f"{node.name}@product"


def _change_name(node: Any) -> str:
    """Returns the name of the input that is added to a MatMul's product."""
    return f"{node.name}@change"
