"""Surgery on models of transformers: fewer heads and neurons, fewer layers, fewer tokens.

Rows and columns are cut out of the weights, instead of masking them, so that every engine gains. The names of the parts
come from `architectures`.
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
# settings of a configuration that are ids of tokens
TOKEN_SETTINGS = re.compile(r"_token_id$|^(bad_words_ids|suppress_tokens|begin_suppress_tokens)$")
Linear: TypeAlias = nn.Linear | Conv1D


@dataclass(frozen=True)
class Shape:
    """The size of one layer: attention heads (0 if they cannot be pruned) and feed-forward neurons."""

    heads: int
    neurons: int


@dataclass(frozen=True)
class Kept:
    """The heads and neurons of one layer to keep, as ascending indices; no heads if they cannot be pruned."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The parts of one layer; those of the attention are None if its heads cannot be pruned.

    `ups` lead into the feed-forward and have the same neurons; `repeats` is how often the layer runs in a forward pass.
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
        """The current size."""
        heads = int(getattr(self.attention, self.names.heads)) if self.names else 0
        return Shape(heads, len(matrix(self.ups[0])))


def stacks(model: nn.Module) -> Iterator[tuple[Stack, str, nn.ModuleList]]:
    """Yields the stacks of a model: their names, their dotted path in the whole model, their layers."""
    paths = {id(module): name for name, module in model.named_modules()}
    for stack in architecture_of(cast(Any, model).config).stacks:
        try:
            modules = cast(Any, model).base_model.get_submodule(stack.path)
        except AttributeError:  # the model has only a decoder, or only an encoder
            continue
        yield stack, paths[id(modules)], modules


def layers(model: nn.Module) -> list[Layer]:
    """Returns the layers, of the encoder before the decoder; raises a ModelError if the architecture is unknown."""
    config = cast(Any, model).config
    repeats = config.num_hidden_layers if architecture_of(config).repeated else 1
    return [_layer(stack, module, repeats) for stack, _, modules in stacks(model) for module in modules]


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
    """Returns a smaller copy; each layer keeps at least one neuron, and one head if heads can be pruned."""
    small = deepcopy(model)
    for layer, keep in zip(layers(small), kept, strict=True):
        neurons = torch.tensor(keep.neurons)
        for linear in layer.ups:
            _select(linear, rows=neurons)
        _select(layer.down, columns=neurons)
        if layer.names:
            size = len(matrix(layer.query)) // layer.shape.heads
            columns = torch.tensor([head * size + column for head in keep.heads for column in range(size)])
            for linear in (layer.query, layer.key, layer.value):
                _select(linear, rows=columns)
            _select(layer.projection, columns=columns)
            setattr(layer.attention, layer.names.heads, len(keep.heads))
            setattr(layer.attention, layer.names.width, len(columns))
    return small


def resized(model: nn.Module, sizes: Sequence[Shape]) -> nn.Module:
    """Returns a copy with layers of these sizes, for weights that are loaded afterwards."""
    return shrunk(model, [Kept(tuple(range(size.heads)), tuple(range(size.neurons))) for size in sizes])


def matrix(linear: Linear) -> torch.Tensor:
    """Returns the weights of a linear layer, `(outputs, inputs)`; Conv1D stores them transposed."""
    return linear.weight.data.T if isinstance(linear, Conv1D) else linear.weight.data


def set_matrix(linear: Linear, weight: torch.Tensor) -> None:
    """Replaces the weights of a linear layer by `(outputs, inputs)` of any size, in place."""
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
    """Returns the number of layers that each stack runs, counting repetitions of a shared layer."""
    config = cast(Any, model).config
    return [getattr(config, stack.depth[0]) for stack, _, _ in stacks(model)]


def without(model: nn.Module, removed: Collection[int]) -> nn.Module:
    """Returns a copy without some layers.

    It is built from the changed configuration, so that caches and positions in them fit, and gets the kept weights.

    Args:
        model: is not changed.
        removed: indices over all stacks, as `depths` counts them; each stack keeps at least one layer. Of a shared
            layer, any repetition may be removed.
    """
    config, state, sizes, start = deepcopy(cast(Any, model).config), model.state_dict(), shapes(model), 0
    repeated = architecture_of(config).repeated
    for (stack, path, _), depth in zip(stacks(model), depths(model), strict=True):
        kept = [index for index in range(depth) if start + index not in removed]
        if not kept:
            raise ValueError(f"at least one layer of {path} must stay, got {sorted(removed)} to remove")
        for name in (*stack.depth, *(["decoder_layers"] if stack.cached else [])):
            setattr(config, name, len(kept))
        if not repeated:
            state = _renumber_layers(state, path, kept, stack.first)
        start += depth
    if not repeated:
        sizes = [size for index, size in enumerate(sizes) if index not in removed]
    small = _empty(model, config, sizes)
    small.load_state_dict(state)
    return small


def _renumber_layers(
    state: Mapping[str, torch.Tensor], path: str, kept: list[int], first: str
) -> dict[str, torch.Tensor]:
    """Returns the weights under the new numbers of their layers; the parameter `first` goes to the new first layer."""
    renumbered = {}
    for name, tensor in state.items():
        index, _, rest = name.removeprefix(f"{path}.").partition(".")
        if not name.startswith(f"{path}."):
            renumbered[name] = tensor
        elif rest == first:
            renumbered[f"{path}.0.{rest}"] = tensor
        elif int(index) in kept:
            renumbered[f"{path}.{kept.index(int(index))}.{rest}"] = tensor
    return renumbered


def with_tokens(model: nn.Module, ids: Sequence[int]) -> nn.Module:
    """Returns a copy with only the tokens `ids`, ascending, which are renumbered in this order.

    Weights whose size differs between models of the two vocabularies are indexed by token: embeddings, and an output
    layer with its bias.
    """
    config, new_ids = deepcopy(cast(Any, model).config), {old: new for new, old in enumerate(ids)}
    for name in ("vocab_size", "decoder_vocab_size"):
        if hasattr(config, name):
            setattr(config, name, len(ids))
    _renumber_tokens(config, new_ids)
    small, state = _empty(model, config, shapes(model)), {}
    expected = small.state_dict()
    for name, tensor in model.state_dict().items():
        axes = [axis for axis, size in enumerate(tensor.shape) if size != expected[name].shape[axis]]
        state[name] = tensor.index_select(axes[0], torch.tensor(ids)) if axes else tensor
    small.load_state_dict(state)
    if getattr(small, "generation_config", None):
        _renumber_tokens(cast(Any, small).generation_config, new_ids)
    return small


def token_ids(model: nn.Module) -> set[int]:
    """Returns the tokens that a model's configurations name, for example for padding or the end of a text."""
    configs = [getattr(model, name, None) for name in ("config", "generation_config")]
    settings = [setting for config in configs if config is not None for setting in vars(config).items()]
    return {token for name, value in settings if TOKEN_SETTINGS.search(name) for token in _flat(value)}


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    elif value is not None:
        yield value


def _renumber_tokens(config: Any, new_ids: Mapping[int, int]) -> None:
    for name, value in list(vars(config).items()):
        if TOKEN_SETTINGS.search(name):
            setattr(config, name, _renumber(value, new_ids))


def _renumber(value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_renumber(part, new_ids) for part in value]
    return new_ids.get(value)  # None for an id that the vocabulary does not have


def _empty(model: nn.Module, config: Any, sizes: Sequence[Shape]) -> nn.Module:
    """Returns a model of the same class for another configuration, for weights that are loaded afterwards."""
    whole = cast(Any, model)
    with INITIALIZATION.no_init_weights():  # drawing them would take most of the time
        small = type(whole)._from_config(config, dtype=whole.dtype)
    small.tie_weights()  # `no_init_weights` skips it
    if shapes(small) != list(sizes):
        small = resized(small, sizes)
    if whole.can_generate():
        small.generation_config = deepcopy(whole.generation_config)
    return cast(nn.Module, small.train(model.training))
