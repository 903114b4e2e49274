"""Rewrites parts of an ONNX graph in place without changing what it computes.

`variants` decides which rewrites a variant needs, and checks that the outputs stay the same.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from deploykit.graphs.matmuls import drop_unused, replace_nodes

PROJECTIONS = 3  # of an attention: its query, key and value MatMuls, which read the same tensor


def merge_matmuls(graph: Any) -> int:
    """Replaces the query, key and value MatMuls of each attention by one wider MatMul.

    They are recognized by the tensor that all three read. If all have a bias, the biases are merged too. Their widths
    may differ: a `Split` separates the result. Layers that share weights also share the merged weight.

    Args:
        graph: changed in place.

    Returns:
        The number of wider MatMuls.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) in (1, 2)}
    readers = defaultdict(list)  # nodes, by the name of a tensor that they read
    matmuls = defaultdict(list)  # those with a constant weight, by the name of the tensor that they multiply
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "MatMul" and node.input[1] in constants:
            matmuls[node.input[0]].append(node)
    replacements: dict[str, list[Any]] = {}  # new nodes, by the name of the old one
    groups = [group for group in matmuls.values() if len(group) == PROJECTIONS]
    for group in groups:
        sums = [pair for node in group if (pair := _find_bias_sum(readers[node.output[0]], constants))]
        all_biased = len(sums) == PROJECTIONS
        last_nodes = [add for add, _ in sums] if all_biased else group
        biases = [bias for _, bias in sums] if all_biased else []
        outputs = [node.output[0] for node in last_nodes]
        replacements |= {node.name: [] for node in (*group, *last_nodes)}
        replacements[group[0].name] = _merged_nodes(graph, constants, group, biases, outputs)
    nodes = [new for node in graph.node for new in replacements.get(node.name, [node])]
    replace_nodes(graph, nodes)
    drop_unused(graph)
    return len(groups)


def _find_bias_sum(readers: Sequence[Any], constants: dict[str, Any]) -> tuple[Any, str] | None:
    """Returns the `Add` of a bias to a MatMul, and the name of the bias.

    Args:
        readers: of the MatMul's output; None is returned unless the `Add` is the only one.
        constants: of the graph, by name.
    """
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    bias = next((name for name in readers[0].input if name in constants and len(constants[name].dims) == 1), None)
    return (readers[0], bias) if bias else None


def _merged_nodes(
    graph: Any, constants: dict[str, Any], group: Sequence[Any], biases: Sequence[str], outputs: Sequence[str]
) -> list[Any]:
    """Makes the nodes that replace a group of MatMuls, and adds their constants to the graph.

    They are one `MatMul`, an `Add` if there are biases, and a `Split` into the given outputs.
    """
    name = f"{group[0].name}_merged"
    weights = [node.input[1] for node in group]
    widths = np.array([constants[weight].dims[1] for weight in weights], dtype=np.int64)
    widths_name = f"{name}_widths"
    graph.initializer.append(numpy_helper.from_array(widths, widths_name))
    merged_weight = _concatenated(graph, constants, weights)
    nodes = [helper.make_node("MatMul", [group[0].input[0], merged_weight], [name], name=name)]
    if biases:
        merged_bias = _concatenated(graph, constants, biases)
        nodes.append(helper.make_node("Add", [name, merged_bias], [f"{name}_biased"], name=f"{name}_Add"))
    split = helper.make_node("Split", [nodes[-1].output[0], widths_name], list(outputs), name=f"{name}_Split", axis=-1)
    return [*nodes, split]


def _concatenated(graph: Any, constants: dict[str, Any], names: Sequence[str]) -> str:
    """Returns the name of a constant that holds others side by side along their last axis; adds it if it is new."""
    concatenated = "+".join(names)
    if concatenated not in constants:
        array = np.concatenate([numpy_helper.to_array(constants[name]) for name in names], axis=-1)
        constants[concatenated] = numpy_helper.from_array(array, concatenated)
        graph.initializer.append(constants[concatenated])
    return concatenated


def add_masks(graph: Any) -> None:
    """Rewrites DistilBERT's attention masks as BERT's, because ONNX Runtime's fusion recognizes only those.

    `softmax(where(mask == 0, lowest, (q / c) k))` becomes `softmax((q k) / c + (1 - mask) lowest)`, where `lowest` is
    the most negative float32.

    Args:
        graph: changed in place; a graph without such masks is not changed.
    """
    producers = {name: node for node in graph.node for name in node.output}
    wheres = [producers.get(node.input[0]) for node in graph.node if node.op_type == "Softmax"]
    replacements: dict[str, list[Any]] = {}
    mask_nodes: dict[str, list[Any]] = {}  # that make a mask additive, by the name of the mask
    for where in wheres:
        if where is None or where.op_type != "Where":
            continue
        matmul, test = producers[where.input[2]], producers[where.input[0]]
        division = producers.get(matmul.input[0])
        while test.op_type in ("Cast", "Expand", "Reshape"):
            test = producers[test.input[0]]
        if division is None or division.op_type != "Div" or test.op_type != "Equal":
            continue
        mask = test.input[0]
        if mask not in mask_nodes:
            mask_nodes[mask] = _additive_mask_nodes(graph, mask)
        matmul.input[0] = division.input[0]
        scaled = f"{where.name}_scaled"
        replacements[division.name] = []
        replacements[where.name] = [
            helper.make_node("Div", [matmul.output[0], division.input[1]], [scaled], name=scaled),
            helper.make_node(
                "Add", [scaled, mask_nodes[mask][-1].output[0]], list(where.output), name=f"{where.name}_Add"
            ),
        ]
    nodes = [node for group in mask_nodes.values() for node in group]
    nodes += [new for node in graph.node for new in replacements.get(node.name, [node])]
    replace_nodes(graph, nodes)


def _additive_mask_nodes(graph: Any, mask: str) -> list[Any]:
    """Makes the nodes that compute `(1 - mask) lowest`, of shape `(batch, 1, 1, tokens)`, the result in the last."""
    arrays = {"axis1": np.array([1]), "axis2": np.array([2]), "one": np.float32(1), "lowest": np.finfo(np.float32).min}
    names = {name: f"{mask}_{name}" for name in arrays}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(arrays[name]), names[name]) for name in arrays)
    steps = [  # operator, inputs ("{}" is the result of the step before) and attributes
        ("Unsqueeze", ["{}", names["axis1"]], {}),
        ("Unsqueeze", ["{}", names["axis2"]], {}),
        ("Cast", ["{}"], {"to": TensorProto.FLOAT}),
        ("Sub", [names["one"], "{}"], {}),
        ("Mul", ["{}", names["lowest"]], {}),
    ]
    nodes, previous = [], mask
    for index, (operator, inputs, attributes) in enumerate(steps):
        output = f"{mask}_additive_{index}"
        inputs = [name.format(previous) for name in inputs]
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        previous = output
    return nodes
