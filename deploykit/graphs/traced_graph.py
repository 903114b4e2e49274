"""Rewrites a graph that torch's exporter has traced, in place, without changing what it computes.

Afterwards ONNX Runtime's fusions recognize its attentions, and OpenVINO does not misread its masks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from deploykit.graphs.matmuls import Array

SHAPE_OPERATORS = ("Expand", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # they compute nothing


def rewrite(graph: Any) -> None:
    """Applies all rewrites to a graph, in place."""
    _skip_boolean_masks(graph)
    constants = _constant_values(graph)
    _write_head_counts(graph, constants)
    _divide_scores(graph, constants)
    _drop_unread_constants(graph)


def _skip_boolean_masks(graph: Any) -> None:
    """Converts attention masks, which hold only 0 and 1, to float directly and not by way of a boolean.

    OpenVINO stores a boolean as a byte. In a graph with int8 weights it mistakes the `(1 - mask) * lowest` that follows
    for a dequantization, and divides the scores by `lowest` to bring both to one scale. All scores become 0 then.
    """
    inputs = {value.name for value in graph.input}
    for cast in [node for node in graph.node if _casts_to(node, TensorProto.BOOL) and node.input[0] in inputs]:
        readers, names = [], [cast.output[0]]  # all readers of the boolean mask, also of its reshaped copies
        while names:
            name = names.pop()
            readers += (consumers := [node for node in graph.node if name in node.input])
            names += [node.output[0] for node in consumers if node.op_type in SHAPE_OPERATORS]
        if all(node.op_type in (*SHAPE_OPERATORS, "Shape") or _casts_to(node, TensorProto.FLOAT) for node in readers):
            for node in readers:
                node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
            graph.node.remove(cast)


def _casts_to(node: Any, tensor_type: int) -> bool:
    """Says whether a node converts a tensor to a type, such as `TensorProto.FLOAT`."""
    return node.op_type == "Cast" and any(entry.name == "to" and entry.i == tensor_type for entry in node.attribute)


def _constant_values(graph: Any) -> dict[str, Array]:
    """Returns the constants of a graph by name, with the copies that the tracer makes of equal ones by `Identity`."""
    values = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    return values


def _write_head_counts(graph: Any, constants: Mapping[str, Array]) -> None:
    """Writes the number of heads into the shape of each layer's queries, keys and values.

    `(batch, tokens, -1, size)` becomes `(batch, tokens, heads, size)`. Fusions read the number there. Without it they
    would take that of the configuration, which is wrong for a pruned layer.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        shape = producers.get(node.input[1])
        if shape is None or shape.op_type != "Concat" or len(shape.input) != 4:
            continue
        heads, size = (int(constants.get(name, np.zeros(1)).reshape(-1)[0]) for name in shape.input[2:])  # 0: unknown
        width = _projection_width(node.input[0], producers, constants)
        if width and heads == -1 and size > 0:
            shape.input[2] = _add_constant(graph, f"heads_{width // size}", np.array([width // size]))


def _divide_scores(graph: Any, constants: Mapping[str, Array]) -> None:
    """Divides attention scores by the root of the head size, where transformers 5 multiplies by its inverse.

    ONNX Runtime's fusions expect the scores plus a mask, and recognize the mask as a product. If the scores were a
    product too, they would be mistaken for the mask.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        total = producers.get(softmax.input[0])
        for scores in [producers.get(name) for name in (total.input if total and total.op_type == "Add" else [])]:
            if scores is None or scores.op_type != "Mul" or producers[scores.input[0]].op_type != "MatMul":
                continue
            factor = constants.get(scores.input[1])
            if factor is not None and factor.size == 1:
                scores.op_type = "Div"
                scores.input[1] = _add_constant(graph, f"{scores.input[1]}_divisor", (1 / factor).astype(factor.dtype))


def _drop_unread_constants(graph: Any) -> None:
    """Removes the `Constant` nodes that nothing reads, in place."""
    read = set(_read_tensors(graph))
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)


def _read_tensors(graph: Any) -> Iterator[str]:
    """Yields the names of all tensors that are read: as outputs, by nodes, and inside the branches of an `If`."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read_tensors(attribute.g)


def _projection_width(name: str, producers: Mapping[str, Any], constants: Mapping[str, Array]) -> int:
    """Returns the size of the last axis of a tensor that is a linear projection, or 0 for any other tensor.

    A projection is the product with a constant weight, of which this is the number of columns, and perhaps a bias.
    """
    node = producers.get(name)
    if node is not None and node.op_type == "Add":  # with a bias, on either side
        sources = [source for source in node.input if source in producers and source not in constants]
        node = producers[sources[0]] if sources else None
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return 0
    return int(constants[node.input[1]].shape[-1])


def _add_constant(graph: Any, name: str, value: Array) -> str:
    """Adds a constant to a graph, unless it has one of that name, and returns the name."""
    if all(existing.name != name for existing in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name
