"""Where the prunable parts of an encoder are, and how to make them smaller.

An architecture is a row of names, not a class. Surgery selects rows and columns of the linear layers;
masks and `prune_heads` are not used, so the result is smaller for every engine. A room of its own because
loading, pruning and exporting all need it, and it needs torch.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from deploykit.errors import ModelError


@dataclass(frozen=True)
class Names:
    """Dotted names below the base model (`layers`) and below a layer (the rest).

    `heads` is the attention's attribute with its head count, `width` the one with heads times head size.
    """

    layers: str
    attention: str
    query: str
    key: str
    value: str
    projection: str
    up: str
    down: str
    heads: str
    width: str


BERT = Names(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    projection="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    heads="num_attention_heads",
    width="all_head_size",
)
DISTILBERT = Names(
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    projection="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
    heads="n_heads",
    width="dim",
)
ARCHITECTURES = {
    "bert": BERT,
    "camembert": BERT,
    "distilbert": DISTILBERT,
    "electra": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
}


@dataclass(frozen=True)
class Shape:
    """The size of one layer: attention heads and feed-forward neurons."""

    heads: int
    neurons: int


@dataclass(frozen=True)
class Kept:
    """What stays of one layer: indices of heads and of feed-forward neurons, ascending."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One encoder layer's parts."""

    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    projection: nn.Linear
    up: nn.Linear
    down: nn.Linear
    names: Names

    @property
    def shape(self) -> Shape:
        """The layer's size now."""
        return Shape(int(getattr(self.attention, self.names.heads)), self.up.out_features)

    @property
    def head_size(self) -> int:
        """Columns of one head."""
        return self.query.out_features // self.shape.heads


def names_of(kind: str) -> Names:
    """Returns where a type of model, as its configuration names it, keeps its parts.

    Raises:
        ModelError: the type is not in the table.
    """
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"models of type {kind!r} cannot be pruned: known are {', '.join(ARCHITECTURES)}."
            " To keep the model as it is, set prune: null."
        )
    return ARCHITECTURES[kind]


def layers(model: nn.Module) -> list[Layer]:
    """Finds the encoder layers of a model of transformers.

    Raises:
        ModelError: the architecture is not in the table.
    """
    names = names_of(cast(Any, model).config.model_type)
    stack = cast(Any, model).base_model.get_submodule(names.layers)
    parts = ("attention", "query", "key", "value", "projection", "up", "down")
    return [
        Layer(**{part: layer.get_submodule(getattr(names, part)) for part in parts}, names=names) for layer in stack
    ]


def shapes(model: nn.Module) -> list[Shape]:
    """Returns the size of every layer."""
    return [layer.shape for layer in layers(model)]


def shrunk(model: nn.Module, kept: Sequence[Kept]) -> nn.Module:
    """Returns a smaller copy of the model that holds only what is kept.

    Args:
        model: stays as it was.
        kept: one entry a layer, at least one head and one neuron in each.
    """
    small = deepcopy(model)
    for layer, keep in zip(layers(small), kept, strict=True):
        size = layer.head_size
        columns = torch.tensor([head * size + column for head in keep.heads for column in range(size)])
        neurons = torch.tensor(keep.neurons)
        for linear in (layer.query, layer.key, layer.value):
            _select(linear, rows=columns)
        _select(layer.projection, columns=columns)
        _select(layer.up, rows=neurons)
        _select(layer.down, columns=neurons)
        setattr(layer.attention, layer.names.heads, len(keep.heads))
        setattr(layer.attention, layer.names.width, len(columns))
    return small


def resized(model: nn.Module, sizes: Sequence[Shape]) -> nn.Module:
    """Returns a copy with layers of the given sizes, for weights that are loaded next."""
    return shrunk(model, [Kept(tuple(range(size.heads)), tuple(range(size.neurons))) for size in sizes])


def _select(linear: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
    """Keeps rows (outputs, with their bias) or columns (inputs) of a linear layer, in place."""
    weight = linear.weight.data
    if rows is not None:
        weight = weight.index_select(0, rows)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data.index_select(0, rows))
    if columns is not None:
        weight = weight.index_select(1, columns)
    linear.weight = nn.Parameter(weight.contiguous())
    linear.out_features, linear.in_features = weight.shape
