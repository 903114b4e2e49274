"""A classifier of an image with a text: two encoders, such as those of CLIP, and a head on their embeddings.

The head reads both embeddings and their product, element by element. The embeddings are scaled to the root mean square
1 before, because their size differs between checkpoints.
"""

from typing import Any

import torch
import transformers
from torch import nn

from deploykit.images.tokens import FULL_LENGTH_MODEL_TYPES
from deploykit.modeling.heads import DROPOUT, HEADS_KEY, Heads, encoder_class

TWO_TOWER_TYPES = ("clip", "siglip")  # types of models with a `vision_model` and a `text_model`


class ImageTextClassifier(transformers.PreTrainedModel):  # type: ignore[misc]
    """Two encoders and a head; its output is `logits`, `(batch, labels)`."""

    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = encoder_class(config)._from_config(config, attn_implementation=config._attn_implementation)
        self.head = _ImageTextHead(_embedding_width(config), len(getattr(config, HEADS_KEY)["logits"]["labels"]))
        masks = [] if config.model_type in FULL_LENGTH_MODEL_TYPES else ["attention_mask"]
        self.input_names = ("pixel_values", "input_ids", *masks)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the text's tokens."""
        embeddings: nn.Module = self.encoder.text_model.embeddings.token_embedding
        return embeddings

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """Runs both encoders, and the head on their embeddings.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            input_ids: `(batch, tokens)`.
            attention_mask: 0 for padding, `(batch, tokens)`; default: no padding.
        """
        image = self.encoder.vision_model(pixel_values=pixel_values).pooler_output
        text = self.encoder.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        if hasattr(self.encoder, "visual_projection"):
            image, text = self.encoder.visual_projection(image), self.encoder.text_projection(text)
        return {"logits": self.head(_scale_to_unit_rms(image), _scale_to_unit_rms(text))}

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes a module of the head; the encoders' class initializes its own modules."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class _ImageTextHead(nn.Module):
    """Scores of an image with a text, `(batch, labels)`: a hidden layer and an output layer."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.dense, self.output = nn.Linear(3 * width, width), nn.Linear(width, labels)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Scores the embeddings of an image and of a text, `(batch, width)` each."""
        features = torch.cat([image, text, image * text], dim=-1)
        scores: torch.Tensor = self.output(self.dropout(torch.tanh(self.dense(features))))
        return scores


def _scale_to_unit_rms(embedding: torch.Tensor) -> torch.Tensor:
    """Scales each row of an embedding, `(batch, width)`, to the root mean square 1."""
    mean_square = embedding.square().mean(dim=-1, keepdim=True)
    return embedding / torch.sqrt(mean_square + 1e-12)  # the addend prevents a division by zero


def _embedding_width(config: Any) -> int:
    """Returns the width of the embeddings."""
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)


def with_image_text_head(encoder: Any, heads: Heads) -> ImageTextClassifier:
    """Puts a new head on a model with two encoders, which becomes a part of the classifier.

    Args:
        encoder: a model of one of `TWO_TOWER_TYPES`.
        heads: the labels of the output `logits`, as `heads_config` lists them.
    """
    setattr(encoder.config, HEADS_KEY, heads)
    with torch.device("meta"):
        model = ImageTextClassifier(encoder.config)
    model.encoder = encoder
    model.head.to_empty(device="cpu")
    model.head.apply(model._init_weights)
    return model
