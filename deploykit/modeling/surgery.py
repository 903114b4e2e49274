"""Surgery on models of transformers: narrower layers, fewer layers, fewer tokens.

Rows and columns of the weights are selected; masks and `prune_heads` are not used, so the result is smaller
for every engine. What has what name stands in `layouts`. A room of its own because loading, pruning and
exporting all need it, and it needs torch.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias, cast

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from deploykit.modeling.architectures import Attention, Stack, architecture_of

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
INITIALIZATION = import_module(f"transformers.{'modeling_utils' if TRANSFORMERS_4 else 'initialization'}")
TOKENS = re.compile(r"_token_id$|^(bad_words_ids|suppress_tokens|begin_suppress_tokens)$")  # of configurations


@dataclass(frozen=True)
class Shape:
    """The size of one layer: attention heads (0 where they are not pruned) and feed-forward neurons."""

    heads: int
    neurons: int


@dataclass(frozen=True)
class Kept:
    """What stays of one layer: indices of heads (none where they are not pruned) and of neurons, ascending."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


Linear: TypeAlias = nn.Linear | Conv1D


@dataclass(frozen=True)
class Layer:
    """One layer's parts; those of the attention are None where heads are not pruned.

    `ups` are cut alike; `repeats` is how often the layer runs in one forward pass.
    """

    ups: tuple[Linear, ...]
    down: Linear
    repeats: int = 1
    names: Attention | None = None
    attention: nn.Module | None = None
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    projection: Linear | None = None

    @property
    def shape(self) -> Shape:
        """The layer's size now."""
        heads = int(getattr(self.attention, self.names.heads)) if self.names else 0
        return Shape(heads, len(matrix(self.ups[0])))

    @property
    def head_size(self) -> int:
        """Columns of one head."""
        return len(matrix(self.query)) // self.shape.heads


def stacks(model: nn.Module) -> Iterator[tuple[Stack, str, nn.ModuleList]]:
    """Yields the stacks that a model has: names, dotted path in the whole model, layers.

    Raises:
        ModelError: the architecture is not in the table.
    """
    places = {id(module): name for name, module in model.named_modules()}
    for stack in architecture_of(cast(Any, model).config).stacks:
        try:
            found = cast(Any, model).base_model.get_submodule(stack.path)
        except AttributeError:  # a decoder alone, or an encoder
            continue
        yield stack, places[id(found)], found


def layers(model: nn.Module) -> list[Layer]:
    """Finds the layers of a model of transformers, the encoder's before the decoder's.

    Raises:
        ModelError: the architecture is not in the table.
    """
    config = cast(Any, model).config
    repeats = config.num_hidden_layers if architecture_of(config).repeated else 1
    return [_layer(stack, module, repeats) for stack, _, found in stacks(model) for module in found]


def _layer(stack: Stack, module: nn.Module, repeats: int) -> Layer:
    names = dict(module.named_modules())
    parts = ("query", "key", "value", "projection")
    return Layer(
        ups=tuple(cast(Linear, names[name]) for name in stack.ups if name in names),
        down=names[stack.down],
        repeats=repeats,
        names=stack.attention,
        attention=names[stack.attention.module] if stack.attention else None,
        **{part: names[getattr(stack.attention, part)] for part in parts if stack.attention},
    )


def shapes(model: nn.Module) -> list[Shape]:
    """Returns the size of every layer."""
    return [layer.shape for layer in layers(model)]


def shrunk(model: nn.Module, kept: Sequence[Kept]) -> nn.Module:
    """Returns a smaller copy of the model that holds only what is kept.

    Args:
        model: stays as it was.
        kept: one entry a layer, at least one neuron in each, and one head where there are any.
    """
    small = deepcopy(model)
    for layer, keep in zip(layers(small), kept, strict=True):
        neurons = torch.tensor(keep.neurons)
        for linear in layer.ups:
            _select(linear, rows=neurons)
        _select(layer.down, columns=neurons)
        if layer.names:
            size = layer.head_size
            columns = torch.tensor([head * size + column for head in keep.heads for column in range(size)])
            for linear in (layer.query, layer.key, layer.value):
                _select(linear, rows=columns)
            _select(layer.projection, columns=columns)
            setattr(layer.attention, layer.names.heads, len(keep.heads))
            setattr(layer.attention, layer.names.width, len(columns))
    return small


def resized(model: nn.Module, sizes: Sequence[Shape]) -> nn.Module:
    """Returns a copy with layers of the given sizes, for weights that are loaded next."""
    return shrunk(model, [Kept(tuple(range(size.heads)), tuple(range(size.neurons))) for size in sizes])


def matrix(linear: Linear) -> torch.Tensor:
    """Returns the weights of a linear layer, `(outputs, inputs)`; Conv1D stores them the other way round."""
    return linear.weight.data.T if isinstance(linear, Conv1D) else linear.weight.data


def set_matrix(linear: Linear, weight: torch.Tensor) -> None:
    """Gives a linear layer other weights, `(outputs, inputs)`, of any size."""
    if isinstance(linear, Conv1D):
        linear.nf, linear.nx = weight.shape
        linear.weight = nn.Parameter(weight.T.contiguous())
    else:
        linear.out_features, linear.in_features = weight.shape
        linear.weight = nn.Parameter(weight.contiguous())


def _select(linear: Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> None:
    """Keeps rows (outputs, with their bias) or columns (inputs) of a linear layer, in place."""
    weight = matrix(linear)
    if rows is not None:
        weight = weight.index_select(0, rows)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data.index_select(0, rows))
    if columns is not None:
        weight = weight.index_select(1, columns)
    set_matrix(linear, weight)


def depths(model: nn.Module) -> list[int]:
    """Returns how many layers each stack runs, repetitions of a shared layer included."""
    config = cast(Any, model).config
    return [getattr(config, stack.depth[0]) for stack, _, _ in stacks(model)]


def without(model: nn.Module, gone: Collection[int]) -> nn.Module:
    """Returns a copy that lacks some layers.

    It is built from the changed configuration, so all that counts layers (caches, positions in them) counts
    anew, and gets the weights that stay.

    Args:
        model: stays as it was.
        gone: indices over all stacks, as `depths` counts them; at least one layer of each stack stays. Which
            repetition of a shared layer goes makes no difference.
    """
    config, state, sizes, start = deepcopy(cast(Any, model).config), model.state_dict(), shapes(model), 0
    repeated = architecture_of(config).repeated
    for (stack, place, _), depth in zip(stacks(model), depths(model), strict=True):
        stay = [index for index in range(depth) if start + index not in gone]
        if not stay:
            raise ValueError(f"at least one layer of {place} must stay, {sorted(gone)} are to go")
        for name in stack.depth:
            setattr(config, name, len(stay))
        if stack.cached:
            config.decoder_layers = len(stay)
        if not repeated:
            state = _renumbered(state, place, stay, stack.first)
        start += depth
    if not repeated:
        sizes = [size for index, size in enumerate(sizes) if index not in gone]
    small = _empty(model, config, sizes)
    small.load_state_dict(state)
    return small


def _renumbered(state: Mapping[str, torch.Tensor], place: str, stay: list[int], first: str) -> dict[str, torch.Tensor]:
    """Moves the weights of layers that stay to their new places, and what the first holds to the new first."""
    found = {}
    for name, tensor in state.items():
        index, _, rest = name.removeprefix(f"{place}.").partition(".")
        if not name.startswith(f"{place}."):
            found[name] = tensor
        elif rest == first:
            found[f"{place}.0.{rest}"] = tensor
        elif int(index) in stay:
            found[f"{place}.{stay.index(int(index))}.{rest}"] = tensor
    return found


def with_tokens(model: nn.Module, ids: Sequence[int]) -> nn.Module:
    """Returns a copy that knows only some tokens, renumbered in the order given.

    What differs in size between models of the two vocabularies is indexed by token, wherever it stands: in
    embeddings, in an output layer, in its bias.

    Args:
        model: stays as it was.
        ids: of the tokens that stay, ascending.
    """
    config, places = deepcopy(cast(Any, model).config), {old: new for new, old in enumerate(ids)}
    for name in ("vocab_size", "decoder_vocab_size"):
        if hasattr(config, name):
            setattr(config, name, len(ids))
    _renumber_tokens(config, places)
    small, state = _empty(model, config, shapes(model)), {}
    wanted = small.state_dict()
    for name, tensor in model.state_dict().items():
        axes = [axis for axis, size in enumerate(tensor.shape) if size != wanted[name].shape[axis]]
        state[name] = tensor.index_select(axes[0], torch.tensor(ids)) if axes else tensor
    small.load_state_dict(state)
    if getattr(small, "generation_config", None):
        _renumber_tokens(cast(Any, small).generation_config, places)
    return small


def token_ids(model: nn.Module) -> set[int]:
    """Returns the tokens that a model's configurations name: of padding, of the end, those not to be generated."""
    found = [getattr(model, name, None) for name in ("config", "generation_config")]
    fields = [field for config in found if config is not None for field in vars(config).items()]
    return {token for name, value in fields if TOKENS.search(name) for token in _flat(value)}


def _flat(value: Any) -> Iterator[int]:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, list):
            yield from _flat(part)
        elif part is not None:
            yield part


def _renumber_tokens(config: Any, places: Mapping[int, int]) -> None:
    for name, value in list(vars(config).items()):
        if TOKENS.search(name):
            setattr(config, name, _renumber(value, places))


def _renumber(value: Any, places: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_renumber(part, places) for part in value]
    return places.get(value)  # a token that the vocabulary never had is none


def _empty(model: nn.Module, config: Any, sizes: Sequence[Shape]) -> nn.Module:
    """Returns a model of the same class for another configuration, for weights that are loaded next."""
    whole = cast(Any, model)
    with INITIALIZATION.no_init_weights():  # drawing them would take longer than all else
        small = type(whole)._from_config(config, dtype=whole.dtype)
    small.tie_weights()  # which is left out with them
    if shapes(small) != list(sizes):
        small = resized(small, sizes)
    if whole.can_generate():
        small.generation_config = deepcopy(whole.generation_config)
    return cast(nn.Module, small.train(model.training))
