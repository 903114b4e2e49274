"""Which products suffer from quantization: the order in which an accuracy fallback returns them to float.

Damage is what quantizing one product alone does to the logits. Writing and opening a graph for each takes too long for
a model of BERT-base's size (72 products, 440 MB each time), and comparing each product's own output, in one run, misses
what the rest of the model makes of it. So the method quantizes each product as a graph of one node, and the float
graph, opened once, has an input behind each product that is added to its output. Fed with what quantization changes
there, it computes what a graph with that one product quantized would, at the price of one run for each product.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from tqdm import tqdm

from deploykit.artifact import Record
from deploykit.graphs import matmuls
from deploykit.graphs.matmuls import Array
from deploykit.quantizers import Batch, Quantizer

SILENCE = 1e-12  # smaller errors are not told apart
TOGETHER = 8  # products whose inputs are looked at in one run, and held in memory


class Damage(Record):
    """What quantizing one product does: the logits' mean squared `error` over their variance, and that in decibels."""

    node: str
    error: float
    decibels: float


def rank(
    graph: Path, method: Quantizer, options: Any, batches: Sequence[Batch], folder: Path, threads: int | None = None
) -> list[Damage]:
    """Measures the damage that quantizing each product does, and puts the worst first.

    Args:
        graph: float32, the one that is quantized.
        method: the quantizer.
        options: the method's.
        batches: padded batches of real rows; 16 to 64 rows are enough.
        folder: for temporary files; it exists.
        threads: of the runs; all that the cgroup allows, if None.
    """
    model = matmuls.load(graph)
    names = matmuls.quantizable(model, method.OPERATORS)
    nodes = [node for node in model.graph.node if node.name in names]
    opened = matmuls.session(_with_changes(model, nodes), threads)
    unchanged = {_change(node): np.zeros((), np.float32) for node in nodes}
    feeds = [matmuls.inputs_of(opened, {**batch, **unchanged}) for batch in batches]
    before = _logits(opened, feeds)
    found = []
    with tqdm(total=len(nodes), desc="damage", unit="product", disable=None) as bar:
        for start in range(0, len(nodes), TOGETHER):
            group = nodes[start : start + TOGETHER]
            seen = [_inside(opened, feed, group, model) for feed in feeds]
            for node in group:
                changed = [
                    {**feed, _change(node): array - inside[_plain(node)]}
                    for feed, inside, array in zip(
                        feeds, seen, _alone(model, node, method, options, seen, folder), strict=True
                    )
                ]
                error = damage(before, _logits(opened, changed))
                found.append(Damage(node=node.name, error=error, decibels=decibels(error)))
                bar.update()
    return sorted(found, key=lambda one: one.error, reverse=True)


def groups(ranking: Sequence[Damage]) -> Iterator[frozenset[str]]:
    """Yields what to keep in float: the worst product, the worst two, four, eight, but never all.

    Args:
        ranking: what `rank` gave.
    """
    count = 1
    while count < len(ranking):
        yield frozenset(found.node for found in ranking[:count])
        count *= 2


def damage(before: Array, after: Array) -> float:
    """Returns the mean squared difference of two arrays over the variance of the first.

    Args:
        before: logits of the float graph, of any shape.
        after: those of the quantized one.
    """
    return float(np.mean(np.square(after - before)) / max(np.var(before), np.finfo(np.float32).tiny))


def decibels(error: float) -> float:
    """Returns the signal to noise ratio that a relative squared error stands for."""
    return float(-10 * np.log10(max(error, SILENCE)))


def _logits(opened: Any, batches: Sequence[Batch]) -> Array:
    """Returns the logits of all batches, `(rows or tokens, labels)`; those at padding are left out."""
    found = []
    for batch in batches:
        logits, mask = opened.run(None, matmuls.inputs_of(opened, batch))[0], batch.get("attention_mask")
        real = mask.astype(bool) if mask is not None and logits.shape[:2] == mask.shape else ...
        found.append(logits[real].reshape(-1, logits.shape[-1]))
    return np.concatenate(found)


def _with_changes(model: Any, nodes: Sequence[Any]) -> Any:
    """Returns a copy of a graph with an input to add to each product, which also gives out what goes through them."""
    names = {node.name for node in nodes}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    changed = []
    for node in copy.graph.node:
        changed.append(node)
        if node.name in names:
            plain, change, output = _plain(node), _change(node), node.output[0]
            copy.graph.input.append(helper.make_tensor_value_info(change, TensorProto.FLOAT, None))
            changed.append(helper.make_node("Add", [plain, change], [output], name=change))
            node.output[0] = plain
    del copy.graph.node[:]
    copy.graph.node.extend(changed)
    return matmuls.watched(copy, _watched(model, nodes))


def _watched(model: Any, nodes: Sequence[Any]) -> list[str]:
    given = {found.name for found in model.graph.input}
    names = [name for node in nodes for name in (*_sources(model, node), _plain(node))]
    return [name for name in dict.fromkeys(names) if name not in given]


def _inside(opened: Any, feed: Mapping[str, Array], nodes: Sequence[Any], model: Any) -> dict[str, Array]:
    names = _watched(model, nodes)
    return {**feed, **dict(zip(names, opened.run(names, feed), strict=True))}


def _alone(
    model: Any, node: Any, method: Quantizer, options: Any, seen: Sequence[Mapping[str, Array]], folder: Path
) -> list[Array]:
    """Quantizes a product as a graph of its own, and runs it on what goes into it."""
    source, target = folder / "product.onnx", folder / "quantized.onnx"
    names = _sources(model, node)
    single = onnx.NodeProto()
    single.CopyFrom(node)
    single.name = "alone.0/product"  # in a layer, as far as quantizers can tell
    graph = helper.make_graph(
        [single],
        "alone",
        [_described(name, seen[0][name]) for name in names],
        [_described(node.output[0], seen[0][_plain(node)])],
        [found for found in model.graph.initializer if found.name in node.input],
    )
    onnx.save(helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), source)
    method.quantize(source, options, target, [{name: inside[name] for name in names} for inside in seen])
    opened = matmuls.session(target, 1)
    return [opened.run(None, matmuls.inputs_of(opened, inside))[0] for inside in seen]


def _described(name: str, array: Array) -> Any:
    axes = [f"{name}.{axis}" for axis in range(array.ndim)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), axes)


def _sources(model: Any, node: Any) -> list[str]:
    constants = {found.name for found in model.graph.initializer}
    return [name for name in node.input if name and name not in constants]


def _plain(node: Any) -> str:
    return f"{node.name}@plain"


def _change(node: Any) -> str:
    return f"{node.name}@change"
