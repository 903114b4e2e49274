"""Variants of one graph that compute the same function at different speeds; the selection measures them.

| variant | difference from the exported graph |
|---|---|
| exported | none |
| fused | each normalization is one operator with the sum before it, and each activation with its bias |
| attention | like fused, and each attention is one operator that holds the query, key and value weights |
| multi-head | like fused, and each attention is one operator that reads the results of three MatMuls |
| merged | the query, key and value MatMuls of each attention are one wider MatMul |

ONNX Runtime's transformers optimizer (which Optimum's optimizer wraps) does the fusions; `rewrites` does the merging.
Attention masks are passed on as they are. By default the tool replaces those of BERT by their sums, the lengths, which
is wrong if padding is on the left. Each variant is checked against the exported graph: the number of attentions, their
heads, and every output.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.onnx_model import OnnxModel
from onnxruntime.transformers.optimizer import optimize_model

from deploykit import process_state
from deploykit.errors import GraphError
from deploykit.graphs import matmuls, rewrites
from deploykit.graphs.matmuls import Array

Variant = Literal["exported", "fused", "attention", "multi-head", "merged"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ATTENTION_OPERATORS = {"attention": "Attention", "multi-head": "MultiHeadAttention"}  # by variant
FUSED_OPERATORS = (  # that the fusions may insert
    *("Attention", "MultiHeadAttention", "BiasGelu", "FastGelu", "Gelu"),
    *("SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
MAX_DIFFERENCE = 1e-3  # of an output; another order of summation in float32 does not explain a larger one
PROBE_BATCHES = ((1, 9, "right"), (3, 12, "right"), (3, 12, "left"))  # rows, tokens and side of the padding of each


def write(variant: Variant, graph: Path, target: Path) -> dict[str, Any]:
    """Writes a variant of a graph.

    Args:
        variant: see the table above.
        graph: the exported graph.
        target: the file to write; it is deleted if the variant computes something else.

    Returns:
        Facts: the number of each fused operator, or of `merged` MatMuls, and the largest `difference` of an output.

    Raises:
        GraphError: the variant does not apply to this graph, or its outputs differ from those of the graph.
    """
    if variant == "exported":
        shutil.copy(graph, target)
        return {"difference": 0.0}
    model = matmuls.load(graph)
    attention_count = sum(node.op_type == "Softmax" for node in model.graph.node)  # each attention has one
    if variant == "merged":
        facts = {"merged": rewrites.merge_matmuls(model.graph)}
        _require_all_attentions(variant, facts["merged"], attention_count)
    else:
        head_counts = _head_counts(model) if variant in ATTENTION_OPERATORS else []
        model = _fuse(model, variant)
        counts = Counter(node.op_type for node in model.graph.node)
        facts = {operator: counts[operator] for operator in FUSED_OPERATORS if counts[operator]}
        if not facts:
            raise GraphError("the graph has nothing to fuse. Use the variant `exported`.")
        if variant in ATTENTION_OPERATORS:
            _require_all_attentions(variant, counts[ATTENTION_OPERATORS[variant]], attention_count)
            _check_heads(model, head_counts)
    OnnxModel.save(model, str(target))  # unlike `onnx.save`, this adds the domain of the fused operators
    difference = largest_difference(graph, target)
    if not difference <= MAX_DIFFERENCE:  # written so that NaN is refused too
        target.unlink()
        raise GraphError(f"the variant {variant!r} does not compute the same: outputs differ by {difference:.2e}.")
    return {**facts, "difference": difference}


def largest_difference(graph: Path, variant: Path) -> float:
    """Returns the largest difference between the outputs of two graphs on a few random batches; NaN if any is NaN.

    Args:
        graph: the exported graph.
        variant: another one with the same inputs and outputs.
    """
    sessions = [matmuls.session(path) for path in (graph, variant)]
    largest = np.float32(0)
    for batch in _random_batches(onnx.load(graph)):
        for expected, output in zip(*(session.run(None, batch) for session in sessions), strict=True):
            largest = np.maximum(largest, np.abs(expected - output).max())
    return float(largest)


def _check_heads(model: Any, expected: list[int]) -> None:
    """Checks the number of heads of each fused attention.

    Raises:
        GraphError: they are not the expected ones.
    """
    nodes = [node for node in model.graph.node if node.op_type in ATTENTION_OPERATORS.values()]
    head_counts = [onnx.helper.get_node_attr_value(node, "num_heads") for node in nodes]
    if head_counts != expected:
        raise GraphError(f"fusion changed the heads of the attentions: {expected} became {head_counts}.")


def _fuse(model: Any, variant: str) -> Any:
    """Fuses operators with ONNX Runtime's optimizer for BERT, which also matches the patterns of other encoders.

    Raises:
        GraphError: the optimizer failed.
    """
    rewrites.add_masks(model.graph)
    options = FusionOptions("bert")
    options.use_raw_attention_mask()
    options.enable_embed_layer_norm = False  # embedding tables inside this operator cannot be quantized
    options.enable_attention = variant in ATTENTION_OPERATORS
    options.use_multi_head_attention = variant == "multi-head"
    try:
        with process_state.quiet_loggers("fusion_attention"):  # which warns about every layer with pruned heads
            fused = optimize_model(model, "bert", optimization_options=options, opt_level=0)
    except Exception as error:  # the tool raises assertions and others on patterns that it matches only in part
        raise GraphError(f"the graph cannot be fused: {error!r}. Use the variant `exported`.") from error
    fused.topological_sort()
    return fused.model


def _require_all_attentions(variant: str, rewritten: int, attention_count: int) -> None:
    """Checks that every attention of a graph was rewritten, and that there is one.

    Raises:
        GraphError: the variant does not apply to the graph.
    """
    if rewritten != attention_count or not attention_count:
        raise GraphError(
            f"the variant {variant!r} does not apply to this graph: {rewritten} of {attention_count} attentions"
            " matched."
        )


def _head_counts(model: Any) -> list[int]:
    """Returns the number of heads of each attention, from the shape of its queries, `(batch, tokens, heads, size)`.

    Raises:
        GraphError: a number is not constant.
    """
    graph = OnnxModel(model)
    producers = graph.output_name_to_node()
    counts = []
    for softmax in graph.get_nodes_by_op_type("Softmax"):
        node = softmax
        while node is not None and node.op_type != "Reshape":  # back to the queries, past the mask's `Where`
            node = producers.get(node.input[2 if node.op_type == "Where" else 0]) if node.input else None
        shape = producers.get(node.input[1]) if node is not None else None
        sizes = list(shape.input) if shape is not None and shape.op_type == "Concat" else []
        heads = graph.get_constant_value(sizes[2]) if len(sizes) == 4 else None
        if heads is None:
            raise GraphError(f"attentions cannot be fused: the heads of {softmax.name} are not constants of the graph.")
        counts.append(int(heads.item()))
    return counts


def _random_batches(model: Any) -> Iterator[dict[str, Array]]:
    """Yields the `PROBE_BATCHES` with random texts, by names of the graph's inputs."""
    rng, limits = np.random.default_rng(0), _id_limits(model.graph)
    for rows, tokens, side in PROBE_BATCHES:
        lengths = np.array([tokens, *rng.integers(1, tokens, rows - 1)])
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        yield {
            tensor.name: mask[:, :: 1 if side == "right" else -1]
            if tensor.name.endswith("attention_mask")
            else _random_array(tensor, rows, tokens, limits, rng)
            for tensor in model.graph.input
        }


def _random_array(tensor: Any, rows: int, tokens: int, limits: dict[str, int], rng: np.random.Generator) -> Array:
    """Returns a random array for an input of a graph: normal numbers, or ids below the input's limit.

    A cache of earlier keys and values, `past...`, is empty.
    """
    axes = [(axis.dim_value, axis.dim_param) for axis in tensor.type.tensor_type.shape.dim]
    shape = [size or (rows if "batch" in name else 0 if name.startswith("past") else tokens) for size, name in axes]
    if tensor.type.tensor_type.elem_type == TensorProto.FLOAT:
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, limits.get(tensor.name, 1), shape)


def _id_limits(graph: Any) -> dict[str, int]:
    """Returns an upper limit of the ids in each input: the number of rows of the smallest table that it indexes."""
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    producers = {name: node for node in graph.node for name in node.output}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in rows:
            name = node.input[1]
            while name in producers and producers[name].input:
                name = producers[name].input[0]
            limits[name] = min(rows[node.input[0]], limits.get(name, rows[node.input[0]]))
    return limits
