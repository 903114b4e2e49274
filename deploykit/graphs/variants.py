"""Variants of one graph that compute the same and differ in speed: candidates for the selection to measure.

| variant | what it is |
|---|---|
| exported | the graph as it is |
| fused | normalizations with their sums, and activations with their biases, are single operators |
| attention | the same, and each attention is one operator that holds the weights of query, key and value |
| multi-head | the same, and each attention is one operator behind three products |
| merged | the products of query, key and value are one wider product |

The fusions are those of ONNX Runtime's tool for transformers, which Optimum's optimizer wraps; merging is surgery here.
Masks stay masks: the tool's default for BERT takes their sum for the length, which is wrong where padding is on the
left. What is written is compared with its source: how many attentions there are, their heads, and every output.
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
ATTENTION = {"attention": "Attention", "multi-head": "MultiHeadAttention"}
FUSED = (
    *("Attention", "MultiHeadAttention", "BiasGelu", "FastGelu", "Gelu"),
    *("SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
)
TOLERANCE = 1e-3  # the largest difference of an output that the order of sums in float32 explains
SHAPES = ((1, 9, "right"), (3, 12, "right"), (3, 12, "left"))  # rows, tokens, side of the padding


def write(variant: Variant, graph: Path, target: Path) -> dict[str, Any]:
    """Writes a variant of a graph.

    Args:
        variant: see the table above.
        graph: as exported.
        target: the file to write; nothing is left there when the variant is refused.

    Returns:
        How often each fused operator is in the graph (or how many products were `merged`), and the largest `difference`
        of an output.

    Raises:
        GraphError: the variant does not apply to this graph, or does not compute the same.
    """
    if variant == "exported":
        shutil.copy(graph, target)
        return {"difference": 0.0}
    model = matmuls.load(graph)
    attentions = sum(node.op_type == "Softmax" for node in model.graph.node)
    if variant == "merged":
        facts = {"merged": rewrites.merge_products(model.graph)}
        _require(variant, facts["merged"], attentions)
    else:
        heads = _heads(model) if variant in ATTENTION else []
        model = _fuse(model, variant)
        counts = Counter(node.op_type for node in model.graph.node)
        facts = {operator: counts[operator] for operator in FUSED if counts[operator]}
        if not facts:
            raise GraphError("the graph has nothing to fuse. Take it as exported.")
        if variant in ATTENTION:
            _require(variant, counts[ATTENTION[variant]], attentions)
            _check_heads(model, heads)
    OnnxModel.save(model, str(target))  # which adds the domain of fused operators
    difference = differs(graph, target)
    if not difference <= TOLERANCE:  # not a number, too
        target.unlink()
        raise GraphError(f"the variant {variant!r} does not compute the same: outputs differ by {difference:.2e}.")
    return {**facts, "difference": difference}


def differs(one: Path, other: Path) -> float:
    """Returns the largest difference of an output of two graphs on a few random batches, NaN if one is not a number.

    Args:
        one: a graph.
        other: one with the same inputs and outputs.
    """
    opened = [matmuls.session(graph) for graph in (one, other)]
    worst = np.float32(0)
    for batch in _random_batches(onnx.load(one)):
        for first, second in zip(*(found.run(None, batch) for found in opened), strict=True):
            worst = np.maximum(worst, np.abs(first - second).max())
    return float(worst)


def _check_heads(model: Any, heads: list[int]) -> None:
    nodes = [node for node in model.graph.node if node.op_type in ATTENTION.values()]
    found = [onnx.helper.get_node_attr_value(node, "num_heads") for node in nodes]
    if found != heads:
        raise GraphError(f"fusion changed the heads of the attentions: {heads} became {found}.")


def _fuse(model: Any, variant: str) -> Any:
    rewrites.add_masks(model.graph)
    options = FusionOptions("bert")
    options.use_raw_attention_mask()
    options.enable_embed_layer_norm = False  # tables inside of it could not be quantized
    options.enable_attention = variant in ATTENTION
    options.use_multi_head_attention = variant == "multi-head"
    try:
        with process_state.quiet("fusion_attention"):  # it warns of every layer with fewer heads
            fused = optimize_model(model, "bert", optimization_options=options, opt_level=0)
    except Exception as error:  # assertions and whatever else a pattern that it half knows runs into
        raise GraphError(f"the graph cannot be fused: {error!r}. Take it as exported.") from error
    fused.topological_sort()
    return fused.model


def _require(variant: str, found: int, expected: int) -> None:
    if found != expected or not expected:
        raise GraphError(
            f"the variant {variant!r} does not apply to this graph: {found} of {expected} attentions took it."
        )


def _heads(model: Any) -> list[int]:
    """Reads the heads of each attention from the shape that its queries take: `(batch, tokens, heads, size)`."""
    graph = OnnxModel(model)
    makers = graph.output_name_to_node()
    found = []
    for softmax in graph.get_nodes_by_op_type("Softmax"):
        node = softmax
        while node is not None and node.op_type != "Reshape":
            node = makers.get(node.input[2 if node.op_type == "Where" else 0]) if node.input else None
        shape = makers.get(node.input[1]) if node is not None else None
        sizes = list(shape.input) if shape is not None and shape.op_type == "Concat" else []
        heads = graph.get_constant_value(sizes[2]) if len(sizes) == 4 else None
        if heads is None:
            raise GraphError(f"attentions cannot be fused: the heads of {softmax.name} are not constants of the graph.")
        found.append(int(heads.item()))
    return found


def _random_batches(model: Any) -> Iterator[dict[str, Array]]:
    rng, limits = np.random.default_rng(0), _vocabularies(model.graph)
    for rows, tokens, side in SHAPES:
        lengths = np.array([tokens, *rng.integers(1, tokens, rows - 1)])
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        yield {
            found.name: mask[:, :: 1 if side == "right" else -1]
            if found.name.endswith("attention_mask")
            else _random_array(found, rows, tokens, limits, rng)
            for found in model.graph.input
        }


def _random_array(found: Any, rows: int, tokens: int, limits: dict[str, int], rng: np.random.Generator) -> Array:
    axes = [(axis.dim_value, axis.dim_param) for axis in found.type.tensor_type.shape.dim]
    shape = [size or (rows if "batch" in name else 0 if name.startswith("past") else tokens) for size, name in axes]
    if found.type.tensor_type.elem_type == TensorProto.FLOAT:
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, limits.get(found.name, 1), shape)


def _vocabularies(graph: Any) -> dict[str, int]:
    """Maps inputs to the rows of the smallest table that they are looked up in."""
    rows = {found.name: found.dims[0] for found in graph.initializer if len(found.dims) == 2}
    makers = {name: node for node in graph.node for name in node.output}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in rows:
            name = node.input[1]
            while name in makers and makers[name].input:
                name = makers[name].input[0]
            limits[name] = min(rows[node.input[0]], limits.get(name, rows[node.input[0]]))
    return limits
