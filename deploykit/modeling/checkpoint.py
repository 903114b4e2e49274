"""Checkpoints: saving and loading models that a stage made.

Only safetensors are read and written, never pickles. Layers of different sizes are described in a file of their own,
because a configuration has one width for all layers.
"""

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from deploykit.artifact import ARCHITECTURE, CONFIG, GENERATION, WEIGHTS
from deploykit.errors import ModelError
from deploykit.modeling import configuration, surgery
from deploykit.modeling.architectures import is_known
from deploykit.modeling.heads import EncoderWithHeads
from deploykit.modeling.image_text import ImageTextClassifier
from deploykit.modeling.surgery import Shape

OWN_CLASSES: dict[str, Any] = {own.__name__: own for own in (EncoderWithHeads, ImageTextClassifier)}
# No code that comes with a model, no pickles, and no question whether to run code.
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}


def save(model: torch.nn.Module, folder: Path) -> None:
    """Writes the configuration, the weights and, if layers differ from the configuration, their sizes."""
    config: Any = deepcopy(model.config)
    config.architectures = [type(model).__name__]  # for `load`; a base model's may name another class
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None):
        cast(Any, model).generation_config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in _without_aliases(model).items()}, folder / WEIGHTS)
    if is_known(config):
        sizes = surgery.shapes(model)
        with torch.device("meta"):
            regular = surgery.shapes(type(model)(config))
        (folder / ARCHITECTURE).unlink(missing_ok=True)
        if sizes != regular:
            content = {"layers": [asdict(size) for size in sizes]}
            (folder / ARCHITECTURE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_aliases(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state without further names of a shared tensor, which safetensors refuses."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            state[name] = tensor
            seen.add(tensor.data_ptr())
    return state


def load(folder: Path, attention: str | None = "eager") -> transformers.PreTrainedModel:
    """Loads a checkpoint; its logits are bitwise those of the model that was saved.

    Args:
        folder: the artifact's directory.
        attention: `eager` for export and reference; None is the fastest that the model supports, for training.

    Raises:
        ModelError: the weights do not have the sizes that are noted beside them.
    """
    config = configuration.read(folder, str(folder))
    model_class = _named_class(config, folder)
    attention = attention or fastest_attention(model_class)
    sizes = folder / ARCHITECTURE
    if not sizes.is_file() and model_class not in OWN_CLASSES.values():
        model = model_class.from_pretrained(
            folder, config=config, attn_implementation=attention, dtype=torch.float32, **SAFE
        )
        return copied(model)
    model = model_class._from_config(config, attn_implementation=attention, dtype=torch.float32)
    if sizes.is_file():
        content = json.loads(sizes.read_text(encoding="utf-8"))
        model = surgery.resized(model, [Shape(**layer) for layer in content["layers"]])
    aliases = set(model.state_dict()) - set(_without_aliases(model))
    try:
        missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except RuntimeError:  # a weight of another size
        missing, unexpected = [WEIGHTS], []
    if set(missing) - aliases or unexpected:
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG} and {ARCHITECTURE}: build the artifact again.")
    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _named_class(config: Any, folder: Path) -> Any:
    name = str((config.architectures or [""])[0])
    model_class = OWN_CLASSES.get(name) or getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / CONFIG} names no model class in `architectures`, found {name!r}.")
    return model_class


def fastest_attention(model_class: Any) -> str:
    """Names the attention to train with; unnamed, it would be the one that the configuration names."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def copied(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Copies weights out of the memory-mapped file, and returns the same model.

    In the file they are not aligned; some CPUs use other kernels then, which changes the last bit of the logits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def parameters(model: torch.nn.Module) -> int:
    """Counts the weights."""
    return sum(parameter.numel() for parameter in model.parameters())
