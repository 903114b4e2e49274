"""One encoder of transformers with any number of heads, for tasks that transformers has no model class for.

The class of a head follows from the axes of its output:

- `("labels",)` scores the text, from the mean of its tokens' states.
- `("tokens", "labels")` scores each token.
- `("tokens", "tokens", "labels")` scores each ordered pair of tokens, by a biaffine product (Dozat and Manning, 2017,
  section 3.2).
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers.utils import ModelOutput

from deploykit.errors import ModelError
from deploykit.modeling.architectures import is_known

HEADS_KEY = "heads"  # the key of config.json under which `Heads` are stored
PAIR_WIDTH = 128  # columns to which the states of either token of a pair are projected
DROPOUT = 0.1  # of the inputs of heads
Heads = Mapping[str, Mapping[str, list[str]]]  # by name of the output: its `axes` and its `labels`


class EncoderWithHeads(transformers.PreTrainedModel):  # type: ignore[misc]
    """An encoder, and the heads that its configuration lists.

    The encoder is an attribute with the name that classes of transformers give it, for example `bert`. So they find it
    in a checkpoint of this class.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        encoder = encoder_class(config)
        attention = config._attn_implementation if getattr(encoder, "_supports_sdpa", False) else "eager"
        self.base_model_prefix = encoder.base_model_prefix
        self.add_module(
            self.base_model_prefix, _without_pooler(encoder._from_config(config, attn_implementation=attention))
        )
        embedding_width = self.base_model.get_input_embeddings().embedding_dim
        width = int(getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or embedding_width)
        heads = getattr(config, HEADS_KEY)
        self.heads = nn.ModuleDict({name: _new_head(heads[name], width) for name in heads})
        self.input_names = tuple(
            name
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in signature(self.base_model.forward).parameters
            and (name != "token_type_ids" or getattr(config, "type_vocab_size", 0) > 0)
        )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> ModelOutput:
        """Runs the encoder once, and every head on its states.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: 0 for padding, `(batch, tokens)`; default: no padding.
            token_type_ids: `(batch, tokens)`, for encoders that have them.
            output_hidden_states: adds `hidden_states`, the outputs of the embeddings and of each layer.

        Returns:
            The output of each head by name.
        """
        types = {"token_type_ids": token_type_ids} if "token_type_ids" in self.input_names else {}
        encoded = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **types,
        )
        states = encoded.last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        outputs: dict[str, Any] = {name: head(states, mask) for name, head in self.heads.items()}
        return ModelOutput({**outputs, "hidden_states": encoded.hidden_states} if output_hidden_states else outputs)

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes a module of a head; the encoder's class initializes its own modules."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, TextHead):
            nn.init.zeros_(module.center)
            nn.init.ones_(module.scale)


class TextHead(nn.Module):
    """Scores of a text, `(batch, labels)`: a linear layer on the mean of its tokens' states.

    The mean is standardized before, because the states of some encoders hardly differ between texts: `center` is
    subtracted, and the rest is divided by `scale`, both `(width,)`. `probing` measures these two.
    """

    center: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.dropout, self.output = nn.Dropout(DROPOUT), nn.Linear(width, labels)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores the mean of the states `(batch, tokens, width)` where the mask `(batch, tokens)` is 1."""
        standardized = (self.pooled(states, mask) - self.center) / self.scale
        return cast(torch.Tensor, self.output(self.dropout(standardized)))

    @staticmethod
    def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the tokens where the mask is 1, `(batch, width)`; see `forward`."""
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class TokenHead(nn.Module):
    """Scores of each token, `(batch, tokens, labels)`, padding included: a linear layer on its state."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.dropout, self.output = nn.Dropout(DROPOUT), nn.Linear(width, labels)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores the states `(batch, tokens, width)`; the mask is not used."""
        return cast(torch.Tensor, self.output(self.dropout(states)))


class PairHead(nn.Module):
    """Scores of each ordered pair of tokens, `(batch, tokens, tokens, labels)`: `x U y + A x + B y + c`.

    `x` and `y` are projections of the states of the two tokens, by the layers `first` and `second`. `U` is `product`,
    `A` and `c` are `of_first`, `B` is `of_second`.
    """

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, PAIR_WIDTH), nn.Linear(width, PAIR_WIDTH)
        self.product = nn.Linear(PAIR_WIDTH, labels * PAIR_WIDTH, bias=False)
        self.of_first, self.of_second = nn.Linear(PAIR_WIDTH, labels), nn.Linear(PAIR_WIDTH, labels, bias=False)
        self.dropout, self.labels = nn.Dropout(DROPOUT), labels

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores the states `(batch, tokens, width)`; the mask is not used."""
        projections = (self.first, self.second)
        first, second = (nn.functional.gelu(project(self.dropout(states))) for project in projections)
        batch, tokens = states.shape[0], states.shape[1]
        product = self.product(first).reshape(batch, tokens * self.labels, PAIR_WIDTH)
        # One matrix product for all labels; it gives (batch, first tokens, labels, second tokens).
        bilinear = torch.matmul(product, second.transpose(1, 2)).reshape(batch, tokens, self.labels, tokens)
        linear = self.of_first(first).unsqueeze(2) + self.of_second(second).unsqueeze(1)
        return cast(torch.Tensor, bilinear.transpose(2, 3) + linear)


HEAD_CLASSES: Mapping[tuple[str, ...], type[nn.Module]] = {
    ("labels",): TextHead,
    ("tokens", "labels"): TokenHead,
    ("tokens", "tokens", "labels"): PairHead,
}


def _new_head(setting: Mapping[str, Any], width: int) -> nn.Module:
    """Makes a head from its entry in `Heads`, for states of `width` columns."""
    return HEAD_CLASSES[tuple(setting["axes"])](width, len(setting["labels"]))


def _without_pooler(encoder: Any) -> Any:
    """Removes the pooler of an encoder in place, because no head reads it, and returns the encoder."""
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    return encoder


def encoder_class(config: Any) -> Any:
    """Returns the class of the encoder of a configuration.

    Raises:
        ModelError: it is an encoder-decoder model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"models of type {config.model_type!r} write a text after reading another, and this task puts several"
            " heads on an encoder. Choose a model such as BERT."
        )
    model_class = transformers.AutoModel._model_mapping[type(config)]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def is_bidirectional_encoder(config: Any) -> bool:
    """Says whether a model is an encoder whose tokens attend to the whole text, of a type that deploykit knows."""
    is_masked_lm = is_known(config) and type(config) in transformers.AutoModelForMaskedLM._model_mapping
    has_decoder = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    return is_masked_lm and not has_decoder


def heads_config(outputs: Mapping[str, tuple[str, ...]], labels: Mapping[str, tuple[str, ...]]) -> Heads:
    """Returns the entries of the configuration for heads.

    Args:
        outputs: axes by name of the output.
        labels: labels by name of the output; an output that is not in it gets no head.
    """
    return {name: {"axes": list(outputs[name]), "labels": list(labels[name])} for name in labels}


def with_heads(encoder: Any, heads: Heads, trained: Mapping[str, torch.Tensor] | None = None) -> EncoderWithHeads:
    """Puts heads on an encoder, which becomes a part of the model; its pooler is dropped.

    Args:
        encoder: the encoder.
        heads: the heads, as `heads_config` lists them.
        trained: weights of some heads, by their names in the model; the other heads are initialized at random.
    """
    setattr(encoder.config, HEADS_KEY, heads)
    with torch.device("meta"):
        model = EncoderWithHeads(encoder.config)
    setattr(model, model.base_model_prefix, _without_pooler(encoder))
    model.heads.to_empty(device="cpu")
    model.heads.apply(model._init_weights)
    model.load_state_dict(dict(trained or {}), strict=False)
    return model
