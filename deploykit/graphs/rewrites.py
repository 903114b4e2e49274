"""Rewrites parts of ONNX graphs, in place, so that they compute the same in another form.

How it is done stands here; which variants there are, and whether they compute the same, stands in `graphs.py`.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deploykit.graphs.matmuls import drop_unused

SIBLINGS = 3  # query, key and value


def merge_products(graph: Any) -> int:
    """Makes one product, with one bias, of each three that read the same tensor: query, key and value.

    Widths may differ: the result is split at the widths of its parts. Layers that share weights go on sharing them.

    Args:
        graph: changed in place.

    Returns:
        How many were made.
    """
    constants = {found.name: found for found in graph.initializer if len(found.dims) in (1, 2)}
    readers = defaultdict(list)
    siblings = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "MatMul" and node.input[1] in constants:
            siblings[node.input[0]].append(node)
    instead: dict[str, list[Any]] = {}
    groups = [group for group in siblings.values() if len(group) == SIBLINGS]
    for group in groups:
        sums = [_sum_with_bias(readers[node.output[0]], constants) for node in group]
        biased = all(sums)
        ends = [found[0] for found in sums if found] if biased else group
        biases = [found[1] for found in sums if found] if biased else []
        instead |= {node.name: [] for node in (*group, *ends)}
        instead[group[0].name] = _merged(graph, constants, group, biases, [node.output[0] for node in ends])
    nodes = [new for node in graph.node for new in instead.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return len(groups)


def _sum_with_bias(readers: Sequence[Any], constants: dict[str, Any]) -> tuple[Any, str] | None:
    """Returns the sum that is a product's only reader, and the name of its bias."""
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    bias = next((name for name in readers[0].input if name in constants and len(constants[name].dims) == 1), None)
    return (readers[0], bias) if bias else None


def _merged(
    graph: Any, constants: dict[str, Any], group: Sequence[Any], biases: Sequence[str], outputs: Sequence[str]
) -> list[Any]:
    name = f"{group[0].name}_merged"
    weights = [node.input[1] for node in group]
    widths = [constants[weight].dims[1] for weight in weights]
    sizes = f"{name}_widths"
    graph.initializer.append(numpy_helper.from_array(np.array(widths, dtype=np.int64), sizes))
    made = [helper.make_node("MatMul", [group[0].input[0], _joined(graph, constants, weights)], [name], name=name)]
    if biases:
        bias = _joined(graph, constants, biases)
        made.append(helper.make_node("Add", [name, bias], [f"{name}_biased"], name=f"{name}_Add"))
    split = helper.make_node("Split", [made[-1].output[0], sizes], list(outputs), name=f"{name}_Split", axis=-1)
    return [*made, split]


def _joined(graph: Any, constants: dict[str, Any], names: Sequence[str]) -> str:
    """Concatenates constants along their last axis, once."""
    joined = "+".join(names)
    if joined not in constants:
        array = np.concatenate([numpy_helper.to_array(constants[name]) for name in names], axis=-1)
        constants[joined] = numpy_helper.from_array(array, joined)
        graph.initializer.append(constants[joined])
    return joined


def add_masks(graph: Any) -> None:
    """Rewrites DistilBERT's masks, which ONNX Runtime's fusion does not know, as BERT's.

    `softmax(where(mask == 0, least, (q / c) k))` becomes `softmax((q k) / c + (1 - mask) least)`.

    Args:
        graph: changed in place; one without such masks stays as it is.
    """
    makers = {name: node for node in graph.node for name in node.output}
    wheres = [makers.get(node.input[0]) for node in graph.node if node.op_type == "Softmax"]
    instead: dict[str, list[Any]] = {}
    masks: dict[str, list[Any]] = {}
    for where in wheres:
        if where is None or where.op_type != "Where":
            continue
        product, test = makers[where.input[2]], makers[where.input[0]]
        division = makers.get(product.input[0])
        while test.op_type in ("Cast", "Expand", "Reshape"):
            test = makers[test.input[0]]
        if division is None or division.op_type != "Div" or test.op_type != "Equal":
            continue
        mask = test.input[0]
        if mask not in masks:
            masks[mask] = _mask_to_add(graph, mask)
        product.input[0] = division.input[0]
        scaled = f"{where.name}_scaled"
        instead[division.name] = []
        instead[where.name] = [
            helper.make_node("Div", [product.output[0], division.input[1]], [scaled], name=scaled),
            helper.make_node("Add", [scaled, masks[mask][-1].output[0]], list(where.output), name=f"{where.name}_Add"),
        ]
    nodes = [node for made in masks.values() for node in made]
    nodes += [new for node in graph.node for new in instead.get(node.name, [node])]
    del graph.node[:]
    graph.node.extend(nodes)


def _mask_to_add(graph: Any, mask: str) -> list[Any]:
    """Makes the nodes of `(1 - mask) least`, of shape `(batch, 1, 1, tokens)`."""
    arrays = {"first": np.array([1]), "second": np.array([2]), "one": np.float32(1), "least": np.finfo(np.float32).min}
    names = {name: f"{mask}_{name}" for name in arrays}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(arrays[name]), names[name]) for name in arrays)
    steps = [
        ("Unsqueeze", ["{}", names["first"]], {}),
        ("Unsqueeze", ["{}", names["second"]], {}),
        ("Cast", ["{}"], {"to": TensorProto.FLOAT}),
        ("Sub", [names["one"], "{}"], {}),
        ("Mul", ["{}", names["least"]], {}),
    ]
    made, last = [], mask
    for index, (operator, inputs, attributes) in enumerate(steps):
        output = f"{mask}_to_add_{index}"
        inputs = [name.format(last) for name in inputs]
        made.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        last = output
    return made
