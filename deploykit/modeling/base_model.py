"""Finds a base model, and opens it with a head for the labels of the data.

Only safetensors are read, never pickles, and never code that comes with a model. A model that is used without training
keeps its own head, and its outputs get the names that the data has for them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from deploykit import process_state
from deploykit.artifact import ARCHITECTURE, CONFIG, WEIGHTS, sha256_of
from deploykit.errors import ModelError
from deploykit.modeling import checkpoint, configuration
from deploykit.modeling.architectures import POSITIONS_AFTER_PADDING, architecture_of
from deploykit.modeling.heads import HEADS_KEY, Heads, encoder_class, with_heads
from deploykit.modeling.image_text import TWO_TOWER_TYPES, with_image_text_head
from deploykit.modeling.output_labels import name_outputs

PACKAGE_SCHEME = "package://"
# How names of head weights begin in image models whose class has no module for the encoder.
IMAGE_HEAD_PREFIXES = ("classifier.", "cls_classifier.")
FILE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")  # configuration, weights, tokenizer; no code or pickles


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        folder: the directory of its files.
        name: the reference in the recipe.
        revision: the commit on the hub, the version of the package, or empty for a directory.
        fingerprint: a hash of its files.
    """

    folder: Path
    name: str
    revision: str
    fingerprint: str


def resolve(reference: str, revision: str | None = None) -> Base:
    """Finds a base model, downloads it from the hub if needed, and hashes its files.

    Args:
        reference: a directory, `package://MODULE/PATH` inside an installed package, or an id on the Hugging Face hub.
        revision: branch, tag or commit on the hub; ignored for other references.

    Raises:
        ModelError: there is no such model, or it has no configuration or no safetensors.
    """
    if reference.startswith("~"):
        reference = str(Path(reference).expanduser())
    if reference.startswith(PACKAGE_SCHEME):
        folder, revision = _locate_in_package(reference)
    elif Path(reference).is_dir():
        folder, revision = Path(reference), ""
    elif reference.startswith((".", "/")) or reference.count("/") > 1:
        raise ModelError(
            f"the model directory {reference} does not exist. Give a directory, {PACKAGE_SCHEME}… or a hub id."
        )
    else:
        folder = _download_from_hub(reference, revision)
        revision = folder.name  # the hub's cache names the directory after the commit
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is no model directory: expected {CONFIG} and {WEIGHTS}, found"
            f" {', '.join(sorted(file.name for file in folder.iterdir())[:8]) or 'nothing'}."
            " Pickled weights (pytorch_model.bin) are not read: save the model with safe_serialization=True."
        )
    files = sorted(file for pattern in FILE_PATTERNS for file in folder.glob(pattern))
    hashes = "\n".join(f"{file.name} {sha256_of(file)}" for file in files)
    return Base(folder, reference, revision, hashlib.sha256(hashes.encode()).hexdigest())


def _locate_in_package(reference: str) -> tuple[Path, str]:
    """Returns the directory of `package://MODULE/PATH`, and the version of the package; empty if it has none."""
    module, _, path = reference.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{reference}: the package {module!r} is not installed. Install it with pip; its name there is often"
            f" {module.replace('_', '-')!r}."
        )
    folder = Path(spec.submodule_search_locations[0]) / path
    if not folder.is_dir():
        raise ModelError(f"{reference}: the package {module!r} has no directory {path!r}.")
    distributions = packages_distributions().get(module, [])
    return folder, version(distributions[0]) if distributions else ""


def _download_from_hub(reference: str, revision: str | None) -> Path:
    """Downloads a model unless it is in the hub's cache, and returns its directory there."""
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(FILE_PATTERNS)))
    except Exception as error:  # network, permission and name errors of several libraries
        raise ModelError(
            f"the model {reference!r} is no directory here, and it could not be downloaded from the hub"
            f" ({type(error).__name__}). Check the name and the network, or give a directory."
        ) from error


def require_prunable(base: Base) -> None:
    """Raises a ModelError if no pruner supports a model; called before anything is trained."""
    architecture_of(configuration.read(base.folder, base.name))


def open_base(
    base: Base,
    auto_class: str,
    labels: Sequence[str],
    *,
    fine_tuned: bool,
    pad_id: int | None = None,
    heads: Heads | None = None,
) -> transformers.PreTrainedModel:
    """Loads a base model with a head for the labels.

    Args:
        base: from `resolve`.
        auto_class: the task's auto class in transformers.
        labels: names of the outputs, in their order.
        fine_tuned: the head must be in the files; otherwise a new one is initialized.
        pad_id: the tokenizer's padding token, for a model that counts positions from it but does not name it.
        heads: to put on the encoder, as `heads.heads_config` lists them; default: the head of the auto class.

    Raises:
        ModelError: the files do not hold such a model, or not with such a head.
    """
    config = configuration.read(base.folder, base.name)
    stored_heads, is_pruned = getattr(config, HEADS_KEY, None), (base.folder / ARCHITECTURE).is_file()
    if fine_tuned:
        _require_heads(base, stored_heads, heads)
        if is_pruned or stored_heads:
            return checkpoint.load(base.folder, attention=None)
    elif is_pruned:
        raise _retraining_error(base, "was pruned", "the unpruned model")
    elif stored_heads and config.model_type in TWO_TOWER_TYPES:
        raise _retraining_error(base, "reads images with texts", "its base model")
    name_outputs(config, labels)
    if config.model_type in POSITIONS_AFTER_PADDING and config.pad_token_id is None:
        config.pad_token_id = pad_id
    try:
        model_class = encoder_class(config) if heads else model_class_of(config, auto_class)
        with process_state.quiet_loggers("transformers"):  # which warns that the head is new
            model, info = model_class.from_pretrained(
                base.folder,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=not fine_tuned,
                dtype=torch.float32,
                attn_implementation=checkpoint.fastest_attention(model_class),
                **checkpoint.SAFE_LOADING,
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises errors of many types here
        raise loading_error(base, auto_class, error) from error
    _require_all_weights(base, model, info, has_new_head=not fine_tuned and not heads)
    if heads and config.model_type in TWO_TOWER_TYPES:
        return with_image_text_head(model, heads)
    if heads:
        reusable = [name for name in heads if heads[name] == (stored_heads or {}).get(name)]
        return with_heads(model, heads, _read_head_weights(base, reusable))
    return cast(transformers.PreTrainedModel, model)


def _require_heads(base: Base, stored_heads: Heads | None, heads: Heads | None) -> None:
    """Raises a ModelError if a fine-tuned model has other heads than the task needs."""
    if stored_heads != heads:
        raise ModelError(
            f"{base.name} does not have the heads of this task, with the labels of the data in their order. Train it,"
            " or use a model that this task was trained on."
        )


def _retraining_error(base: Base, reason: str, origin: str) -> ModelError:
    """Returns the error for a model that cannot be trained again, with the model to start from instead."""
    return ModelError(
        f"{base.name} {reason}, and such a model cannot be fine-tuned again. Start from {origin}, or use it as it is"
        " with train: null."
    )


def _read_head_weights(base: Base, heads: Sequence[str]) -> dict[str, torch.Tensor]:
    """Reads the weights of the named heads from a checkpoint that `checkpoint.save` wrote."""
    prefixes = tuple(f"heads.{name}." for name in heads)
    weights = load_file(base.folder / WEIGHTS) if heads else {}
    return {name: tensor for name, tensor in weights.items() if name.startswith(prefixes)}


def loading_error(base: Base, auto_class: str, error: Exception) -> ModelError:
    """Returns the error for a model that transformers cannot build."""
    return ModelError(
        f"{base.name} cannot be loaded as {auto_class}: {configuration.first_line(error)}."
        " Check that `task:` and `model:` of the recipe fit together."
    )


def model_class_of(config: Any, auto_class: str) -> Any:
    """Returns the model class for a configuration and a task's auto class.

    Raises:
        KeyError: transformers has no such class.
    """
    classes = getattr(transformers, auto_class)._model_mapping
    if type(config) not in classes:
        raise KeyError(f"models of type {config.model_type!r} have no such head")
    model_class = classes[type(config)]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _require_all_weights(base: Base, model: Any, info: dict[str, Any], *, has_new_head: bool) -> None:
    """Raises a ModelError if the files lack weights, or have them in another size.

    The pooler may be missing.

    Args:
        base: the model on disk.
        model: the loaded model.
        info: the loading info that `from_pretrained` returned.
        has_new_head: weights of the head may be missing, too.
    """
    missing = [name for name in info["missing_keys"] if "pooler" not in name.split(".")]
    # transformers 5 gives the sizes beside each name
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
    lacking = [name for name in (*missing, *mismatched) if not (has_new_head and _is_head_weight(model, name))]
    if lacking:
        raise ModelError(
            f"{base.name} lacks {len(lacking)} weights of a {model.config.model_type} model, or has them in another"
            f" size, first {min(lacking, key=_numeric_sort_key)}."
            " Check that `task:` and `model:` of the recipe fit together."
        )


def _is_head_weight(model: Any, name: str) -> bool:
    """Says whether a weight belongs to the head: to anything outside the encoder.

    Some image classes have no module for the encoder. There the names of the head's weights are known.
    """
    prefix = model.base_model_prefix
    return not name.startswith(f"{prefix}.") if hasattr(model, prefix) else name.startswith(IMAGE_HEAD_PREFIXES)


def _numeric_sort_key(name: str) -> list[str | int]:
    """Returns a sort key by which the weights of layer 2 come before those of layer 10."""
    return [int(part) if part.isdecimal() else part for part in name.split(".")]


def labels_of(base: Base) -> tuple[str, ...]:
    """Returns the names that a base model's configuration gives its outputs, in their order."""
    config = configuration.read(base.folder, base.name)
    return tuple(config.id2label[index] for index in range(config.num_labels))
