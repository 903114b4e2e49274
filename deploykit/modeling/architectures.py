"""The table of architectures: the names of the prunable parts of each type of model.

`surgery` finds the parts by these names. To prune another type of model, add a row with the names of its modules and of
its configuration's settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import ModelError


@dataclass(frozen=True)
class Attention:
    """The attention of a layer, as dotted names below the layer: its module, and its four linear layers.

    Attributes:
        module: the module that holds the two attributes below.
        query: a linear layer.
        key: a linear layer.
        value: a linear layer.
        output_projection: the linear layer that joins the heads.
        heads_attribute: name of the module's attribute with the number of heads.
        width_attribute: name of the module's attribute with the number of heads times the size of a head.
    """

    module: str
    query: str
    key: str
    value: str
    output_projection: str
    heads_attribute: str = "num_attention_heads"
    width_attribute: str = "all_head_size"


@dataclass(frozen=True)
class Stack:
    """A stack of layers. Names of modules and parameters are dotted names below a layer.

    Attributes:
        path: dotted name of the stack below the base model.
        up_projections: linear layers into the feed-forward. A layer has some of these names, two if it is gated.
        down_projection: the linear layer out of the feed-forward.
        attention: None if heads cannot be pruned.
        depth_settings: settings of the configuration that hold the number of layers.
        first_layer_parameter: a parameter that only the first layer holds, but all layers use; empty if there is none.
        needs_decoder_layers: the number of layers must also be in the configuration as `decoder_layers`. Without it,
            transformers makes a cache with as many layers as the first stack has.
    """

    path: str
    up_projections: tuple[str, ...]
    down_projection: str
    attention: Attention | None = None
    depth_settings: tuple[str, ...] = ("num_hidden_layers",)
    first_layer_parameter: str = ""
    needs_decoder_layers: bool = False


@dataclass(frozen=True)
class Architecture:
    """The parts of a type of model.

    Attributes:
        stacks: the encoder, the decoder or both, in this order. A model may lack one of them.
        shares_layer: each stack has one layer, which runs as often as the depth in the configuration says.
        required_settings: values that the configuration must have; other models of the type cannot be pruned.
    """

    stacks: tuple[Stack, ...]
    shares_layer: bool = False
    required_settings: Mapping[str, object] = field(default_factory=dict)


BERT = Stack(
    path="encoder.layer",
    up_projections=("intermediate.dense",),
    down_projection="output.dense",
    attention=Attention(
        module="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output_projection="attention.output.dense",
    ),
)
DISTILBERT = Stack(
    path="transformer.layer",
    up_projections=("ffn.lin1",),
    down_projection="ffn.lin2",
    attention=Attention(
        module="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        output_projection="attention.out_lin",
        heads_attribute="n_heads",
        width_attribute="dim",
    ),
)
ALBERT = Stack(
    path="encoder.albert_layer_groups",
    up_projections=("albert_layers.0.ffn",),
    down_projection="albert_layers.0.ffn_output",
    attention=Attention(
        module="albert_layers.0.attention",
        query="albert_layers.0.attention.query",
        key="albert_layers.0.attention.key",
        value="albert_layers.0.attention.value",
        output_projection="albert_layers.0.attention.dense",
    ),
)
# Without attention: heads cannot be pruned, because all layers add the same relative position bias, with a column per
# head.
MPNET = Stack(path="encoder.layer", up_projections=("intermediate.dense",), down_projection="output.dense")
# Without attention: caches, grouped keys and rotary positions of decoders expect equally many heads in all layers.
GPT2 = Stack(path="h", up_projections=("mlp.c_fc",), down_projection="mlp.c_proj")
LLAMA = Stack(path="layers", up_projections=("mlp.gate_proj", "mlp.up_proj"), down_projection="mlp.down_proj")
T5_ENCODER = Stack(
    path="encoder.block",
    up_projections=tuple(f"layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1")),
    down_projection="layer.1.DenseReluDense.wo",
    depth_settings=("num_layers",),
    first_layer_parameter="layer.0.SelfAttention.relative_attention_bias.weight",
)
T5_DECODER = Stack(
    path="decoder.block",
    up_projections=tuple(f"layer.2.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1")),
    down_projection="layer.2.DenseReluDense.wo",
    depth_settings=("num_decoder_layers",),
    first_layer_parameter=T5_ENCODER.first_layer_parameter,
    needs_decoder_layers=True,
)
MARIAN_ENCODER = Stack(
    path="encoder.layers",
    up_projections=("fc1",),
    down_projection="fc2",
    depth_settings=("encoder_layers", "num_hidden_layers"),
)
MARIAN_DECODER = Stack(
    path="decoder.layers", up_projections=("fc1",), down_projection="fc2", depth_settings=("decoder_layers",)
)

ROBERTA = Architecture((BERT,))
ARCHITECTURES = {
    "albert": Architecture(
        (ALBERT,), shares_layer=True, required_settings={"num_hidden_groups": 1, "inner_group_num": 1}
    ),
    "bert": Architecture((BERT,)),
    "camembert": ROBERTA,
    "distilbert": Architecture((DISTILBERT,)),
    "electra": Architecture((BERT,)),
    "gpt2": Architecture((GPT2,)),
    "llama": Architecture((LLAMA,)),
    "marian": Architecture(
        (MARIAN_ENCODER, MARIAN_DECODER), required_settings={"share_encoder_decoder_embeddings": True}
    ),
    "mpnet": Architecture((MPNET,)),
    "roberta": ROBERTA,
    "t5": Architecture((T5_ENCODER, T5_DECODER)),
    "xlm-roberta": ROBERTA,
}

# Types of models, prunable or not, whose first token has the position after the padding token's id. They read fewer
# tokens than they have positions.
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
        settings = ARCHITECTURES[config.model_type].required_settings
        required = ", ".join(f"{name}: {value}" for name, value in settings.items())
        actual = ", ".join(str(getattr(config, name)) for name in settings)
        reason = f"{config.model_type} models are pruned only with {required}; this one has {actual}."
    raise ModelError(f"{reason} To keep the model as it is, set prune: null.")


def is_known(config: Any) -> bool:
    """Says whether the table has a row that covers a model's configuration."""
    row = ARCHITECTURES.get(config.model_type)
    return row is not None and all(getattr(config, name) == value for name, value in row.required_settings.items())
