"""Saves and loads the models that stages make.

Only safetensors are read and written, never pickles. A configuration has one size for all layers. If their sizes
differ, because heads or neurons were pruned, they are written to a file beside it.
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

# Model classes of deploykit by name; all others are classes of transformers.
DEPLOYKIT_CLASSES: dict[str, Any] = {cls.__name__: cls for cls in (EncoderWithHeads, ImageTextClassifier)}
# Arguments of `from_pretrained`: no code that comes with a model, no pickles, no downloads.
SAFE_LOADING: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}


def save(model: torch.nn.Module, folder: Path) -> None:
    """Writes the configuration and the weights, and the sizes of layers if the configuration says otherwise."""
    config: Any = deepcopy(model.config)
    config.architectures = [type(model).__name__]  # `load` opens this class; a base model's may name another one
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None):
        cast(Any, model).generation_config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in _without_aliases(model).items()}, folder / WEIGHTS)
    if is_known(config):
        shapes = surgery.shapes(model)
        with torch.device("meta"):
            configured_shapes = surgery.shapes(type(model)(config))
        (folder / ARCHITECTURE).unlink(missing_ok=True)
        if shapes != configured_shapes:
            content = {"layers": [asdict(shape) for shape in shapes]}
            (folder / ARCHITECTURE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _without_aliases(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state with each shared tensor under its first name only; safetensors refuses a second name."""
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
        attention: an implementation of attention in transformers: `eager` for export and reference; None for training,
            which takes the fastest one that the model supports.

    Raises:
        ModelError: the weights do not have the sizes in the files beside them.
    """
    config = configuration.read(folder, str(folder))
    model_class = _model_class(config, folder)
    attention = attention or fastest_attention(model_class)
    sizes_file = folder / ARCHITECTURE
    if not sizes_file.is_file() and model_class not in DEPLOYKIT_CLASSES.values():
        model = model_class.from_pretrained(
            folder, config=config, attn_implementation=attention, dtype=torch.float32, **SAFE_LOADING
        )
        return copy_out_of_mapped_file(model)
    model = model_class._from_config(config, attn_implementation=attention, dtype=torch.float32)
    if sizes_file.is_file():
        content = json.loads(sizes_file.read_text(encoding="utf-8"))
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


def _model_class(config: Any, folder: Path) -> Any:
    """Returns the model class that a configuration names, of deploykit or of transformers."""
    name = str((config.architectures or [""])[0])
    model_class = DEPLOYKIT_CLASSES.get(name) or getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / CONFIG} names no model class in `architectures`, found {name!r}.")
    return model_class


def fastest_attention(model_class: Any) -> str:
    """Returns the fastest attention that a model class supports; transformers would take the configuration's."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def copy_out_of_mapped_file(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Copies the weights of a model out of the memory-mapped file, in place, and returns the model.

    In the file they are not aligned. For such weights some CPUs use other kernels, which changes the last bit of the
    logits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
