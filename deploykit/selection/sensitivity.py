"""Ranks MatMuls by the damage that quantizing each one does: the order in which a repair returns them to float.

Damage is the error of the logits if one MatMul alone is quantized. Writing and opening a graph for each MatMul takes
too long for a model of BERT-base's size (72 MatMuls, 440 MB each time), and comparing each MatMul's own output ignores
how later layers amplify or absorb the error. Instead, each MatMul is quantized as a graph of one node, which gives the
change of its output. The float graph is opened once, with an extra input per MatMul that is added to its output. Fed
with that change, it computes the logits of a graph with that one MatMul quantized, in one run per MatMul.
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

MIN_ERROR = 1e-12  # relative squared error that counts as none: 120 dB, below the rounding of float32 logits
MATMULS_PER_RUN = 8  # their inputs are read in one run; more would hold more activations in memory at once


class Damage(Frozen):
    """Damage from quantizing one MatMul: the logits' mean squared `error` over their variance, also in decibels."""

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
    session = matmuls.session(_with_changes(model, nodes), threads)
    no_changes = {_change(node): np.zeros((), np.float32) for node in nodes}
    feeds = [matmuls.inputs_of(session, {**batch, **no_changes}) for batch in batches]
    outputs = [output.name for output in model.graph.output]
    before = _logits(session, outputs, feeds)
    damages = []
    with tqdm(total=len(nodes), desc="damage", unit="MatMul", disable=None) as bar:
        for start in range(0, len(nodes), MATMULS_PER_RUN):
            group = nodes[start : start + MATMULS_PER_RUN]
            tensors = [_inner_tensors(session, feed, group, model) for feed in feeds]
            for node in group:
                quantized = _quantized_outputs(model, node, method, options, tensors, folder)
                changed = [
                    {**feed, _change(node): output - values[_plain(node)]}
                    for feed, values, output in zip(feeds, tensors, quantized, strict=True)
                ]
                error = damage(before, _logits(session, outputs, changed))
                damages.append(Damage(node=node.name, error=error, decibels=decibels(error)))
                bar.update()
    return sorted(damages, key=lambda entry: entry.error, reverse=True)


def groups(ranking: Sequence[Damage]) -> Iterator[frozenset[str]]:
    """Yields the nodes to keep in float: the worst MatMul, the worst two, four, eight and so on, but never all."""
    count = 1
    while count < len(ranking):
        yield frozenset(entry.node for entry in ranking[:count])
        count *= 2


def damage(before: Array, after: Array) -> float:
    """Returns the mean squared difference of two arrays of logits over the variance of the first."""
    return float(np.mean(np.square(after - before)) / max(np.var(before), np.finfo(np.float32).tiny))


def decibels(error: float) -> float:
    """Converts a relative squared error to a signal-to-noise ratio in decibels."""
    return float(-10 * np.log10(max(error, MIN_ERROR)))


def _logits(session: Any, names: Sequence[str], batches: Sequence[Batch]) -> Array:
    """Returns some outputs for all batches without those of padding, as one row of numbers."""
    arrays = []
    for batch in batches:
        mask = batch.get("attention_mask")
        for output in session.run(list(names), matmuls.inputs_of(session, batch)):
            real = mask.astype(bool) if mask is not None and output.shape[:2] == mask.shape else ...
            arrays.append(output[real].reshape(-1))
    return np.concatenate(arrays)


def _with_changes(model: Any, nodes: Sequence[Any]) -> Any:
    """Returns a copy of a graph that adds an extra input to each MatMul's output, and outputs the tensors around it."""
    names = {node.name for node in nodes}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copied = []
    for node in copy.graph.node:
        copied.append(node)
        if node.name in names:
            plain, change, output = _plain(node), _change(node), node.output[0]
            copy.graph.input.append(helper.make_tensor_value_info(change, TensorProto.FLOAT, None))
            copied.append(helper.make_node("Add", [plain, change], [output], name=change))
            node.output[0] = plain
    matmuls.replace_nodes(copy.graph, copied)
    return matmuls.with_outputs(copy, _tensors_around(model, nodes))


def _tensors_around(model: Any, nodes: Sequence[Any]) -> list[str]:
    """Names the inputs and outputs of nodes, except inputs of the graph, which cannot be outputs too."""
    graph_inputs = {tensor.name for tensor in model.graph.input}
    names = [name for node in nodes for name in (*_sources(model, node), _plain(node))]
    return [name for name in dict.fromkeys(names) if name not in graph_inputs]


def _inner_tensors(session: Any, feed: Mapping[str, Array], nodes: Sequence[Any], model: Any) -> dict[str, Array]:
    """Runs a batch, and returns its arrays and the tensors around some nodes."""
    names = _tensors_around(model, nodes)
    return {**feed, **dict(zip(names, session.run(names, feed), strict=True))}


def _quantized_outputs(
    model: Any, node: Any, method: Quantizer, options: Any, tensors: Sequence[Mapping[str, Array]], folder: Path
) -> list[Array]:
    """Quantizes one MatMul as a graph of its own and runs it on its inputs in the model, batch by batch."""
    source, target = folder / "single.onnx", folder / "quantized.onnx"
    names = _sources(model, node)
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.name = "single.0/MatMul"  # a number as in a layer's name: quantizers skip nodes outside layers
    graph = helper.make_graph(
        [single],
        "single",
        [_described(name, tensors[0][name]) for name in names],
        [_described(node.output[0], tensors[0][_plain(node)])],
        [tensor for tensor in model.graph.initializer if tensor.name in node.input],
    )
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), source)
    method.quantize(source, options, target, [{name: values[name] for name in names} for values in tensors])
    session = matmuls.session(target, 1)
    return [session.run(None, matmuls.inputs_of(session, values))[0] for values in tensors]


def _described(name: str, array: Array) -> Any:
    axes = [f"{name}.{axis}" for axis in range(array.ndim)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), axes)


def _sources(model: Any, node: Any) -> list[str]:
    """Names the inputs of a node that are not constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [name for name in node.input if name and name not in constants]


def _plain(node: Any) -> str:
    return f"{node.name}@plain"


def _change(node: Any) -> str:
    return f"{node.name}@change"
