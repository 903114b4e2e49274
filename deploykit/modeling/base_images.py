"""Saves what turns the inputs of a task into arrays: a model's image preprocessing, its tokenizer, or both."""

import json
from pathlib import Path
from typing import Any

from deploykit.artifact import CONFIG, PREPROCESSOR
from deploykit.errors import ModelError
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.images.preprocessing import IMAGE_TOKENS_KEY, Preprocessing
from deploykit.images.tokens import FULL_LENGTH_MODEL_TYPES
from deploykit.modeling import base_tokenizer, configuration
from deploykit.modeling.base_model import Base
from deploykit.modeling.image_text import TWO_TOWER_TYPES

# Edge of a token in pixels, for models whose configuration does not say, or that merge patches from layer to layer.
DEFAULT_PATCH_SIZE = 32
# The file in which transformers 5 saves the preprocessing of a model that also reads texts.
PROCESSOR_CONFIG = "processor_config.json"


def save(base: Base, folder: Path, max_tokens: int | None, reads: frozenset[str]) -> AnyTokenizer:
    """Saves the preprocessing of images and the tokenizer, as far as the inputs need them, and opens the saved files.

    Args:
        base: the model.
        folder: the files are written there.
        max_tokens: the recipe's limit for texts; the model's own limit holds as well.
        reads: what an input consists of: `image`, `text` or both.

    Raises:
        ModelError: the model lacks the files, or cannot read such inputs.
    """
    if "image" not in reads:
        return base_tokenizer.save(base, folder, max_tokens)
    config = configuration.read(base.folder, base.name)
    if "text" in reads and config.model_type not in TWO_TOWER_TYPES:
        raise ModelError(
            f"{base.name} is a model of type {config.model_type!r}, which reads no images with texts: known are"
            f" {', '.join(TWO_TOWER_TYPES)}. Choose one of these, or remove data.text for images alone."
        )
    settings = _preprocessing_settings(base)
    try:
        preprocessing = Preprocessing.of(settings)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{base.name} has a {PREPROCESSOR} that cannot be used: {reason}.") from error
    image_tokens = count_tokens(getattr(config, "vision_config", config), preprocessing.size)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**settings, IMAGE_TOKENS_KEY: image_tokens}, indent=2) + "\n"
    (folder / PREPROCESSOR).write_text(content, encoding="utf-8")
    text = base_tokenizer.save(base, folder, max_tokens) if "text" in reads else None
    return ImageTokenizer(preprocessing, image_tokens, text, config.model_type in FULL_LENGTH_MODEL_TYPES)


def count_tokens(config: Any, size: tuple[int, int]) -> int:
    """Returns how many tokens a model makes of an image, including the one that stands for the whole image.

    Args:
        config: of the model, or of its part that reads images.
        size: height and width of the image in pixels.
    """
    patch_size = getattr(config, "patch_size", None)
    merges_patches = hasattr(config, "depths")
    if merges_patches or not isinstance(patch_size, int):
        patch_size = DEFAULT_PATCH_SIZE
    height, width = size
    return max(height // patch_size, 1) * max(width // patch_size, 1) + 1


def _preprocessing_settings(base: Base) -> dict[str, Any]:
    """Reads the settings of a model's image preprocessing, from either of the files that transformers writes."""
    if (base.folder / PREPROCESSOR).is_file():
        settings = configuration.read_json(base.folder / PREPROCESSOR, base.name)
    elif (base.folder / PROCESSOR_CONFIG).is_file():
        settings = configuration.read_json(base.folder / PROCESSOR_CONFIG, base.name).get("image_processor") or {}
    else:
        raise ModelError(
            f"{base.name} has no {PREPROCESSOR}, which says how the model reads images. Copy it beside {CONFIG}, or"
            " save the model's image processor there."
        )
    configuration.refuse_code(settings, base.name, PREPROCESSOR)
    return settings
