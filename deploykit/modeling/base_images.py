"""Saving what a base model needs to read images: its preprocessing, and its tokenizer if the task has texts, too."""

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
from deploykit.modeling.image_text import TWO_TOWERS

PATCH_SIZE = 32  # pixels of a token's edge, for models that do not say, or whose patches are merged from layer to layer
PROCESSOR = "processor_config.json"  # where transformers 5 saves the preprocessing of a model that also reads texts


def save(base: Base, folder: Path, max_tokens: int | None, reads: frozenset[str]) -> AnyTokenizer:
    """Saves what turns inputs into arrays, and opens the saved files.

    Args:
        base: the model.
        folder: gets the files.
        max_tokens: the recipe's limit for texts; the model's own holds as well.
        reads: what an input consists of: `image`, `text` or both.

    Raises:
        ModelError: the model lacks the files, or reads no such inputs.
    """
    if "image" not in reads:
        return base_tokenizer.save(base, folder, max_tokens)
    config = configuration.read(base.folder, base.name)
    if "text" in reads and config.model_type not in TWO_TOWERS:
        raise ModelError(
            f"{base.name} is a model of type {config.model_type!r}, which reads no images with texts: known are"
            f" {', '.join(TWO_TOWERS)}. Choose one of these, or remove data.text for images alone."
        )
    settings = _settings(base)
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
    """Returns into how many tokens a model divides an image, the one for the whole image included.

    Args:
        config: of the model, or of the part of it that reads images.
        size: height and width of the pixels.
    """
    patch, merges = getattr(config, "patch_size", None), hasattr(config, "depths")
    patch = patch if isinstance(patch, int) and not merges else PATCH_SIZE
    return max(size[0] // patch, 1) * max(size[1] // patch, 1) + 1


def _settings(base: Base) -> dict[str, Any]:
    if (base.folder / PREPROCESSOR).is_file():
        settings = configuration.read_json(base.folder / PREPROCESSOR, base.name)
    elif (base.folder / PROCESSOR).is_file():
        settings = configuration.read_json(base.folder / PROCESSOR, base.name).get("image_processor") or {}
    else:
        raise ModelError(
            f"{base.name} has no {PREPROCESSOR}, which says how the model reads images. Copy it beside {CONFIG}, or"
            " save the model's image processor there."
        )
    configuration.refuse_code(settings, base.name, PREPROCESSOR)
    return settings
