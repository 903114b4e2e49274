"""Saving what a base model needs to read images: its preprocessing, and its tokenizer if the task has texts, too."""

import json
from pathlib import Path
from typing import Any

from deploykit.artifact import CONFIG, PREPROCESSOR
from deploykit.errors import ModelError
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.images.preprocessing import Preprocessing
from deploykit.images.tokens import FIXED_LENGTH_TYPES, count_tokens
from deploykit.modeling import base_tokenizer, configuration
from deploykit.modeling.base_model import Base
from deploykit.modeling.image_text import TWO_TOWERS

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
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(settings, indent=2) + "\n"
    (folder / PREPROCESSOR).write_text(content, encoding="utf-8")
    text = base_tokenizer.save(base, folder, max_tokens) if "text" in reads else None
    vision = getattr(config, "vision_config", config).to_dict()
    image_tokens = count_tokens(vision, preprocessing.size)
    return ImageTokenizer(preprocessing, image_tokens, text, config.model_type in FIXED_LENGTH_TYPES)


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
