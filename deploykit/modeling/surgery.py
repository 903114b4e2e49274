"""Makes smaller copies of models of transformers: with fewer heads and neurons, fewer layers or fewer tokens.

Rows and columns are cut out of the weights and not only masked, so that every engine becomes faster. The names of the
parts come from `architectures`.
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
# The module with `no_init_weights`.
INITIALIZATION = import_module(f"transformers.{'modeling_utils' if TRANSFORMERS_4 else 'initialization'}")
# Settings of a configuration that hold ids of tokens.
TOKEN_ID_SETTINGS = re.compile(r"_token_id$|^(bad_words_ids|suppress_tokens|begin_suppress_tokens)$")
Linear: TypeAlias = nn.Linear | Conv1D


@dataclass(frozen=True)
class Shape:
    """The size of one layer: attention heads (0 if they cannot be pruned) and feed-forward neurons."""

    heads: int
    neurons: int


@dataclass(frozen=True)
class KeptUnits:
    """The heads and neurons of one layer to keep, as ascending indices; no heads if they cannot be pruned."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The parts of one layer; those of the attention are None if its heads cannot be pruned.

    Attributes:
        up_projections: lead into the feed-forward; one output of each belongs to a neuron.
        down_projection: leads out of the feed-forward; each of its inputs belongs to a neuron.
        runs: how often the layer runs in a forward pass.
        attention_names: the row of `architectures`.
        attention: the module that holds the number of heads.
        query: has consecutive outputs for each head.
        key: the same.
        value: the same.
        output_projection: has consecutive inputs for each head.
    """

    up_projections: tuple[Linear, ...]
    down_projection: Linear
    runs: int = 1
    attention_names: Attention | None = None
    attention: nn.Module | None = None
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    output_projection: Linear | None = None

    @property
    def shape(self) -> Shape:
        """The current size."""
        heads = int(getattr(self.attention, self.attention_names.heads_attribute)) if self.attention_names else 0
        return Shape(heads, len(matrix(self.up_projections[0])))


def stacks(model: nn.Module) -> Iterator[tuple[Stack, str, nn.ModuleList]]:
    """Yields for each stack of a model its row of `architectures`, its dotted path in the model, and its layers."""
    paths = {id(module): name for name, module in model.named_modules()}
    for stack in architecture_of(cast(Any, model).config).stacks:
        try:
            modules = cast(Any, model).base_model.get_submodule(stack.path)
        except AttributeError:  # the model has only a decoder, or only an encoder
            continue
        yield stack, paths[id(modules)], modules


def layers(model: nn.Module) -> list[Layer]:
    """Returns the layers, those of the encoder first; raises a ModelError if the architecture is unknown."""
    config = cast(Any, model).config
    runs = config.num_hidden_layers if architecture_of(config).shares_layer else 1
    return [_layer(stack, module, runs) for stack, _, modules in stacks(model) for module in modules]


def _layer(stack: Stack, module: nn.Module, runs: int) -> Layer:
    """Finds the parts of one layer, which is `module`, by the names of its stack."""
    submodules = dict(module.named_modules())
    linears = ("query", "key", "value", "output_projection")
    return Layer(
        up_projections=tuple(cast(Linear, submodules[name]) for name in stack.up_projections if name in submodules),
        down_projection=submodules[stack.down_projection],
        runs=runs,
        attention_names=stack.attention,
        attention=submodules[stack.attention.module] if stack.attention else None,
        **{name: submodules[getattr(stack.attention, name)] for name in linears if stack.attention},
    )


def shapes(model: nn.Module) -> list[Shape]:
    """Returns the size of every layer."""
    return [layer.shape for layer in layers(model)]


def shrunk(model: nn.Module, kept: Sequence[KeptUnits]) -> nn.Module:
    """Returns a copy with fewer heads and neurons.

    Args:
        model: is not changed.
        kept: what each layer keeps: at least one neuron, and at least one head if heads can be pruned.
    """
    small = deepcopy(model)
    for layer, units in zip(layers(small), kept, strict=True):
        neurons = torch.tensor(units.neurons)
        for linear in layer.up_projections:
            _select(linear, rows=neurons)
        _select(layer.down_projection, columns=neurons)
        if layer.attention_names:
            head_size = len(matrix(layer.query)) // layer.shape.heads
            starts = [head * head_size for head in units.heads]
            attention_columns = torch.tensor([start + column for start in starts for column in range(head_size)])
            for linear in (layer.query, layer.key, layer.value):
                _select(linear, rows=attention_columns)
            _select(layer.output_projection, columns=attention_columns)
            setattr(layer.attention, layer.attention_names.heads_attribute, len(units.heads))
            setattr(layer.attention, layer.attention_names.width_attribute, len(attention_columns))
    return small


def resized(model: nn.Module, shapes: Sequence[Shape]) -> nn.Module:
    """Returns a copy whose layers have these shapes; each keeps its first heads and neurons."""
    return shrunk(model, [KeptUnits(tuple(range(shape.heads)), tuple(range(shape.neurons))) for shape in shapes])


def matrix(linear: Linear) -> torch.Tensor:
    """Returns the weights of a linear layer, `(outputs, inputs)`; Conv1D stores them transposed."""
    return linear.weight.data.T if isinstance(linear, Conv1D) else linear.weight.data


def set_matrix(linear: Linear, weight: torch.Tensor) -> None:
    """Replaces the weights of a linear layer, `(outputs, inputs)`, in place; their number may change."""
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
    """Returns for each stack how many layers run; each run of a shared layer counts."""
    config = cast(Any, model).config
    return [getattr(config, stack.depth_settings[0]) for stack, _, _ in stacks(model)]


def without_layers(model: nn.Module, removed: Collection[int]) -> nn.Module:
    """Returns a copy without some layers.

    The copy is built from the changed configuration, so that its caches have the right number of layers. Then it gets
    the kept weights.

    Args:
        model: is not changed.
        removed: indices over all stacks, as `depths` counts them; each stack keeps at least one layer. Of a shared
            layer, any run may be removed.
    """
    config, state, sizes = deepcopy(cast(Any, model).config), model.state_dict(), shapes(model)
    shares_layer = architecture_of(config).shares_layer
    first_index = 0  # of the stack, over all stacks
    for (stack, path, _), depth in zip(stacks(model), depths(model), strict=True):
        kept = [index for index in range(depth) if first_index + index not in removed]
        if not kept:
            raise ValueError(f"at least one layer of {path} must stay, got {sorted(removed)} to remove")
        for name in (*stack.depth_settings, *(["decoder_layers"] if stack.needs_decoder_layers else [])):
            setattr(config, name, len(kept))
        if not shares_layer:
            state = _renumber_layers(state, path, kept, stack.first_layer_parameter)
        first_index += depth
    if not shares_layer:
        sizes = [size for index, size in enumerate(sizes) if index not in removed]
    small = _uninitialized(model, config, sizes)
    small.load_state_dict(state)
    return small


def _renumber_layers(
    state: Mapping[str, torch.Tensor], path: str, kept: list[int], first_layer_parameter: str
) -> dict[str, torch.Tensor]:
    """Returns the weights of a model, with new numbers for the kept layers of one stack and without its other layers.

    Args:
        state: weights by name.
        path: dotted name of the stack.
        kept: old numbers of the kept layers, in their new order.
        first_layer_parameter: name below a layer of a parameter that goes to the new first layer, kept or not.
    """
    renumbered = {}
    for name, tensor in state.items():
        index, _, rest = name.removeprefix(f"{path}.").partition(".")
        if not name.startswith(f"{path}."):
            renumbered[name] = tensor
        elif rest == first_layer_parameter:
            renumbered[f"{path}.0.{rest}"] = tensor
        elif int(index) in kept:
            renumbered[f"{path}.{kept.index(int(index))}.{rest}"] = tensor
    return renumbered


def with_tokens(model: nn.Module, ids: Sequence[int]) -> nn.Module:
    """Returns a copy that knows only some tokens.

    Args:
        model: is not changed.
        ids: old ids of the kept tokens, ascending. Their new ids are 0, 1, and so on.
    """
    config, new_ids = deepcopy(cast(Any, model).config), {old: new for new, old in enumerate(ids)}
    for name in ("vocab_size", "decoder_vocab_size"):
        if hasattr(config, name):
            setattr(config, name, len(ids))
    _renumber_tokens(config, new_ids)
    small, state = _uninitialized(model, config, shapes(model)), {}
    expected = small.state_dict()
    for name, tensor in model.state_dict().items():
        # An axis whose size differs between the two models is indexed by token, as in embeddings and an output layer.
        token_axes = [axis for axis, size in enumerate(tensor.shape) if size != expected[name].shape[axis]]
        state[name] = tensor.index_select(token_axes[0], torch.tensor(ids)) if token_axes else tensor
    small.load_state_dict(state)
    if getattr(small, "generation_config", None):
        _renumber_tokens(cast(Any, small).generation_config, new_ids)
    return small


def configured_token_ids(model: nn.Module) -> set[int]:
    """Returns the ids of tokens that a model's configurations name, for example for padding or the end of a text."""
    configs = [getattr(model, name, None) for name in ("config", "generation_config")]
    settings = [setting for config in configs if config is not None for setting in vars(config).items()]
    return {token_id for name, value in settings if TOKEN_ID_SETTINGS.search(name) for token_id in _flatten(value)}


def _flatten(value: Any) -> Iterator[int]:
    """Yields the ids of a setting: of one id, of nested lists of ids, or none for None."""
    if isinstance(value, list):
        for item in value:
            yield from _flatten(item)
    elif value is not None:
        yield value


def _renumber_tokens(config: Any, new_ids: Mapping[int, int]) -> None:
    """Replaces the ids of tokens in a configuration by new ones, in place."""
    for name, value in list(vars(config).items()):
        if TOKEN_ID_SETTINGS.search(name):
            setattr(config, name, _renumber(value, new_ids))


def _renumber(value: Any, new_ids: Mapping[int, int]) -> Any:
    """Returns the new id, or nested lists of new ids; None for an id that the vocabulary does not have."""
    if isinstance(value, list):
        return [_renumber(item, new_ids) for item in value]
    return new_ids.get(value)


def _uninitialized(model: nn.Module, config: Any, layer_shapes: Sequence[Shape]) -> nn.Module:
    """Returns a model of the same class with another configuration; its weights must be loaded afterwards."""
    original = cast(Any, model)
    with INITIALIZATION.no_init_weights():  # drawing random weights would take most of the time
        small = type(original)._from_config(config, dtype=original.dtype)
    small.tie_weights()  # `no_init_weights` skips it
    if shapes(small) != list(layer_shapes):
        small = resized(small, layer_shapes)
    if original.can_generate():
        small.generation_config = deepcopy(original.generation_config)
    return cast(nn.Module, small.train(model.training))
