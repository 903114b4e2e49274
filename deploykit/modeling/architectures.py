"""The table of architectures: where each type of model keeps its prunable parts, as names.

To prune another type of model, add a row with the names that its modules and its configuration have. `surgery` changes
models by these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import ModelError


@dataclass(frozen=True)
class Attention:
    """The attention of a layer, as dotted names below the layer: its module, and its four linear layers.

    `heads` is the module's attribute with the number of heads, `width` the one with heads times head size.
    """

    module: str
    query: str
    key: str
    value: str
    projection: str
    heads: str = "num_attention_heads"
    width: str = "all_head_size"


@dataclass(frozen=True)
class Stack:
    """A stack of layers, as dotted names: `path` below the base model, all others below a layer.

    `depth` are the configuration's attributes with the number of layers. `ups` lead into the feed-forward; a layer has
    some of them, two if it is gated. `down` leads out of it. `attention` is None if heads cannot be pruned. `first` is
    a parameter that only the first layer holds, for all layers. `cached`: transformers would make a cache with as many
    layers as the first stack has, unless the configuration has this stack's depth as `decoder_layers`, too.
    """

    path: str
    ups: tuple[str, ...]
    down: str
    attention: Attention | None = None
    depth: tuple[str, ...] = ("num_hidden_layers",)
    first: str = ""
    cached: bool = False


@dataclass(frozen=True)
class Architecture:
    """The stacks of a type of model; a model may lack one of them, for example the decoder.

    `repeated`: the stack has one layer, which runs as often as the configuration's depth says. `only` are values that
    the configuration must have.
    """

    stacks: tuple[Stack, ...]
    repeated: bool = False
    only: Mapping[str, object] = field(default_factory=dict)


BERT = Stack(
    path="encoder.layer",
    ups=("intermediate.dense",),
    down="output.dense",
    attention=Attention(
        module="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        projection="attention.output.dense",
    ),
)
DISTILBERT = Stack(
    path="transformer.layer",
    ups=("ffn.lin1",),
    down="ffn.lin2",
    attention=Attention(
        module="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        projection="attention.out_lin",
        heads="n_heads",
        width="dim",
    ),
)
ALBERT = Stack(
    path="encoder.albert_layer_groups",
    ups=("albert_layers.0.ffn",),
    down="albert_layers.0.ffn_output",
    attention=Attention(
        module="albert_layers.0.attention",
        query="albert_layers.0.attention.query",
        key="albert_layers.0.attention.key",
        value="albert_layers.0.attention.value",
        projection="albert_layers.0.attention.dense",
    ),
)
# No heads: all layers add the same relative position bias, which has a column per head.
MPNET = Stack(path="encoder.layer", ups=("intermediate.dense",), down="output.dense")
# No heads of decoders either: caches, grouped keys and rotary positions expect the same number in every layer.
GPT2 = Stack(path="h", ups=("mlp.c_fc",), down="mlp.c_proj")
LLAMA = Stack(path="layers", ups=("mlp.gate_proj", "mlp.up_proj"), down="mlp.down_proj")
T5_ENCODER = Stack(
    path="encoder.block",
    ups=tuple(f"layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1")),
    down="layer.1.DenseReluDense.wo",
    depth=("num_layers",),
    first="layer.0.SelfAttention.relative_attention_bias.weight",
)
T5_DECODER = Stack(
    path="decoder.block",
    ups=tuple(f"layer.2.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1")),
    down="layer.2.DenseReluDense.wo",
    depth=("num_decoder_layers",),
    first=T5_ENCODER.first,
    cached=True,
)
MARIAN_ENCODER = Stack(path="encoder.layers", ups=("fc1",), down="fc2", depth=("encoder_layers", "num_hidden_layers"))
MARIAN_DECODER = Stack(path="decoder.layers", ups=("fc1",), down="fc2", depth=("decoder_layers",))

ROBERTA = Architecture((BERT,))
ARCHITECTURES = {
    "albert": Architecture((ALBERT,), repeated=True, only={"num_hidden_groups": 1, "inner_group_num": 1}),
    "bert": Architecture((BERT,)),
    "camembert": ROBERTA,
    "distilbert": Architecture((DISTILBERT,)),
    "electra": Architecture((BERT,)),
    "gpt2": Architecture((GPT2,)),
    "llama": Architecture((LLAMA,)),
    "marian": Architecture((MARIAN_ENCODER, MARIAN_DECODER), only={"share_encoder_decoder_embeddings": True}),
    "mpnet": Architecture((MPNET,)),
    "roberta": ROBERTA,
    "t5": Architecture((T5_ENCODER, T5_DECODER)),
    "xlm-roberta": ROBERTA,
}

# Types of models, prunable or not, that count positions from the padding token's id on, and so read fewer tokens.
POSITIONS_AFTER_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mluke", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def architecture_of(config: Any) -> Architecture:
    """Returns the row of the table for a model's configuration.

    Raises:
        ModelError: the table has no row for the type, or the row does not cover this configuration.
    """
    if is_known(config):
        return ARCHITECTURES[config.model_type]
    reason = f"models of type {config.model_type!r} cannot be pruned: known are {', '.join(ARCHITECTURES)}."
    if config.model_type in ARCHITECTURES:
        only = ARCHITECTURES[config.model_type].only
        required = ", ".join(f"{name}: {value}" for name, value in only.items())
        actual = ", ".join(str(getattr(config, name)) for name in only)
        reason = f"{config.model_type} models are pruned only with {required}; this one has {actual}."
    raise ModelError(f"{reason} To keep the model as it is, set prune: null.")


def is_known(config: Any) -> bool:
    """Says whether the table has a row for a model's configuration."""
    row = ARCHITECTURES.get(config.model_type)
    return row is not None and all(getattr(config, name) == value for name, value in row.only.items())
