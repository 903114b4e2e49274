"""One encoder of transformers with any number of heads, for tasks that transformers has no model class for.

The form of a head follows from the axes of its output: `("labels",)` gives scores of the text, from the mean of its
tokens' states; `("tokens", "labels")` gives scores of each token; `("tokens", "tokens", "labels")` gives scores of each
ordered pair of tokens, by a biaffine product (Dozat and Manning, 2017, section 3.2) of 128 columns for each side.
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

CONFIG_KEY = "heads"  # of the configuration: the outputs by name, each with its `axes` and `labels`
PAIR_SIZE = 128
DROPOUT = 0.1
Heads = Mapping[str, Mapping[str, list[str]]]


class EncoderWithHeads(transformers.PreTrainedModel):  # type: ignore[misc]
    """An encoder, and the heads that its configuration lists.

    The encoder has the name that it has in the classes of transformers, for example `bert`, so that they find it in a
    checkpoint.
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
        width = self.base_model.get_input_embeddings().embedding_dim
        width = int(getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or width)
        heads = getattr(config, CONFIG_KEY)
        self.heads = nn.ModuleDict({name: _head(heads[name], width) for name in heads})
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
            attention_mask: 0 for padding, `(batch, tokens)`.
            token_type_ids: `(batch, tokens)`, for encoders that have them.
            output_hidden_states: adds `hidden_states`.

        Returns:
            The outputs by name.
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
        """Draws the weights of the heads; the encoder's class draws its own."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, TextHead):
            nn.init.zeros_(module.center)
            nn.init.ones_(module.scale)


class TextHead(nn.Module):
    """Scores of a text, `(batch, labels)`: a linear layer on the mean of its tokens' states.

    The mean is standardized by `center` and `scale`, `(width,)`, which `probing` measures; states of some encoders
    hardly differ between texts.
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
        return cast(torch.Tensor, self.output(self.dropout((self.pooled(states, mask) - self.center) / self.scale)))

    @staticmethod
    def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the mean, `(batch, width)`."""
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class TokenHead(nn.Module):
    """Scores of each token, `(batch, tokens, labels)`; padding is scored, too."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.dropout, self.output = nn.Dropout(DROPOUT), nn.Linear(width, labels)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores the states `(batch, tokens, width)`."""
        return cast(torch.Tensor, self.output(self.dropout(states)))


class PairHead(nn.Module):
    """Scores of each ordered pair of tokens, `(batch, tokens, tokens, labels)`: `x U y + A x + B y + c`."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, PAIR_SIZE), nn.Linear(width, PAIR_SIZE)
        self.product = nn.Linear(PAIR_SIZE, labels * PAIR_SIZE, bias=False)
        self.of_first, self.of_second = nn.Linear(PAIR_SIZE, labels), nn.Linear(PAIR_SIZE, labels, bias=False)
        self.dropout, self.labels = nn.Dropout(DROPOUT), labels

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores the states `(batch, tokens, width)`.

        `x` and `y` are projections of the two tokens, `U` is `product`, `A` and `c` are `of_first`, `B` is `of_second`.
        """
        projections = (self.first, self.second)
        first, second = (nn.functional.gelu(project(self.dropout(states))) for project in projections)
        batch, tokens = states.shape[0], states.shape[1]
        product = self.product(first).reshape(batch, tokens * self.labels, PAIR_SIZE)
        # One product for all labels: (batch, tokens, labels, tokens).
        scores = torch.matmul(product, second.transpose(1, 2)).reshape(batch, tokens, self.labels, tokens)
        both = self.of_first(first).unsqueeze(2) + self.of_second(second).unsqueeze(1)
        return cast(torch.Tensor, scores.transpose(2, 3) + both)


HEADS: Mapping[tuple[str, ...], type[nn.Module]] = {
    ("labels",): TextHead,
    ("tokens", "labels"): TokenHead,
    ("tokens", "tokens", "labels"): PairHead,
}


def _head(setting: Mapping[str, Any], width: int) -> nn.Module:
    return HEADS[tuple(setting["axes"])](width, len(setting["labels"]))


def _without_pooler(encoder: Any) -> Any:
    """Removes the layer that some encoders put on their first token, which no head reads."""
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


def reads_both_ways(config: Any) -> bool:
    """Says whether a model is an encoder, so that the state of each token knows the whole text."""
    known = is_known(config) and type(config) in transformers.AutoModelForMaskedLM._model_mapping
    return known and not getattr(config, "is_encoder_decoder", False) and not getattr(config, "is_decoder", False)


def heads_config(outputs: Mapping[str, tuple[str, ...]], labels: Mapping[str, tuple[str, ...]]) -> Heads:
    """Returns heads as the configuration lists them, from the axes and the labels of each output."""
    return {name: {"axes": list(outputs[name]), "labels": list(labels[name])} for name in labels}


def with_heads(encoder: Any, heads: Heads, trained: Mapping[str, torch.Tensor] | None = None) -> EncoderWithHeads:
    """Puts heads on an encoder, which becomes a part of the model; its pooler is dropped.

    Args:
        encoder: the encoder.
        heads: the heads, as `heads_config` lists them.
        trained: weights of some heads, by their names in the model; the others are drawn.
    """
    setattr(encoder.config, CONFIG_KEY, heads)
    with torch.device("meta"):
        model = EncoderWithHeads(encoder.config)
    setattr(model, model.base_model_prefix, _without_pooler(encoder))
    model.heads.to_empty(device="cpu")
    model.heads.apply(model._init_weights)
    model.load_state_dict(dict(trained or {}), strict=False)
    return model
