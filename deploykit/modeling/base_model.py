"""Base models: finding one, and opening it with a head for the labels of the data.

Only safetensors are read, never pickles, and never code that comes with a model. A model that is used without training
keeps its own head, whose outputs get the names that the data has for them.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
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
from deploykit.methods import did_you_mean
from deploykit.modeling import checkpoint, configuration
from deploykit.modeling.architectures import POSITIONS_AFTER_PADDING, architecture_of
from deploykit.modeling.heads import CONFIG_KEY, Heads, encoder_class, with_heads
from deploykit.modeling.image_text import TWO_TOWERS, with_head

PACKAGE = "package://"
IMAGE_HEADS = ("classifier.", "cls_classifier.")  # of models without a module that is the base model
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # configuration, weights and tokenizer; no code, no pickles


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    `name` is the reference in the recipe. `revision` is the commit on the hub, the version of the package, or empty for
    a directory. `fingerprint` is a hash of its files.
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
    if reference.startswith(PACKAGE):
        folder, revision = _in_package(reference)
    elif Path(reference).is_dir():
        folder, revision = Path(reference), ""
    elif reference.startswith((".", "/")) or reference.count("/") > 1:
        raise ModelError(f"the model directory {reference} does not exist. Give a directory, {PACKAGE}… or a hub id.")
    else:
        folder = _from_hub(reference, revision)
        revision = folder.name  # the hub's cache names it after the commit
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is no model directory: expected {CONFIG} and {WEIGHTS}, found"
            f" {', '.join(sorted(file.name for file in folder.iterdir())[:8]) or 'nothing'}."
            " Pickled weights (pytorch_model.bin) are not read: save the model with safe_serialization=True."
        )
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    hashes = "\n".join(f"{file.name} {sha256_of(file)}" for file in files)
    return Base(folder, reference, revision, hashlib.sha256(hashes.encode()).hexdigest())


def _in_package(reference: str) -> tuple[Path, str]:
    """Returns a directory inside an installed package, and the package's version."""
    module, _, inside = reference.removeprefix(PACKAGE).partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{reference}: the package {module!r} is not installed. Install it with pip; its name there is often"
            f" {module.replace('_', '-')!r}."
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ModelError(f"{reference}: the package {module!r} has no directory {inside!r}.")
    names = packages_distributions().get(module, [])
    return folder, version(names[0]) if names else ""


def _from_hub(reference: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # network, permission and name errors of several libraries
        raise ModelError(
            f"the model {reference!r} is no directory here, and it could not be downloaded from the hub"
            f" ({type(error).__name__}). Check the name and the network, or give a directory."
        ) from error


def require_prunable(base: Base) -> None:
    """Raises a ModelError if no pruner supports a model, before anything is trained."""
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
        heads: several of them in place of that of the auto class, which opens the encoder alone.

    Raises:
        ModelError: the files do not hold such a model, or not with such a head.
    """
    config = configuration.read(base.folder, base.name)
    own_heads, is_pruned = getattr(config, CONFIG_KEY, None), (base.folder / ARCHITECTURE).is_file()
    if fine_tuned and own_heads != heads:
        raise ModelError(
            f"{base.name} does not have the heads of this task, with the labels of the data in their order. Train it,"
            " or use a model that this task was trained on."
        )
    if fine_tuned and (is_pruned or own_heads):
        return checkpoint.load(base.folder, attention=None)
    if is_pruned or (own_heads and config.model_type in TWO_TOWERS):
        state, other = (
            ("was pruned", "the unpruned model") if is_pruned else ("reads images with texts", "its base model")
        )
        raise ModelError(
            f"{base.name} {state}, and such a model cannot be fine-tuned again. Start from {other}, or use it as it is"
            " with train: null."
        )
    name_outputs(config, labels)
    if config.model_type in POSITIONS_AFTER_PADDING and config.pad_token_id is None:
        config.pad_token_id = pad_id
    try:
        model_class = encoder_class(config) if heads else class_of(config, auto_class)
        with process_state.quiet("transformers"):  # it warns of the new head
            model, info = model_class.from_pretrained(
                base.folder,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=not fine_tuned,
                dtype=torch.float32,
                attn_implementation=checkpoint.fastest_attention(model_class),
                **checkpoint.SAFE,
            )
    except ModelError:
        raise
    except Exception as error:  # transformers raises errors of many types here
        raise not_loaded(base, auto_class, error) from error
    _check_weights(base, model, info, headless=not fine_tuned and not heads)
    if heads and config.model_type in TWO_TOWERS:
        return with_head(model, heads)
    if heads:
        same = [name for name in heads if heads[name] == (own_heads or {}).get(name)]
        return with_heads(model, heads, _head_weights(base, same))
    return cast(transformers.PreTrainedModel, model)


def _head_weights(base: Base, heads: Sequence[str]) -> dict[str, torch.Tensor]:
    """Reads the weights of heads, without those of the encoder, from a checkpoint that `checkpoint.save` wrote."""
    prefixes = tuple(f"heads.{name}." for name in heads)
    stored = load_file(base.folder / WEIGHTS) if heads else {}
    return {name: tensor for name, tensor in stored.items() if name.startswith(prefixes)}


def not_loaded(base: Base, auto_class: str, error: Exception) -> ModelError:
    """Returns the error for a model that transformers cannot build."""
    return ModelError(
        f"{base.name} cannot be loaded as {auto_class}: {configuration.first_line(error)}."
        " Check that `task:` and `model:` of the recipe fit together."
    )


def class_of(config: Any, auto_class: str) -> Any:
    """Returns the model class for a configuration and a task's auto class.

    Raises:
        KeyError: transformers has none.
    """
    classes = getattr(transformers, auto_class)._model_mapping
    if type(config) not in classes:
        raise KeyError(f"models of type {config.model_type!r} have no such head")
    model_class = classes[type(config)]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _check_weights(base: Base, model: Any, info: dict[str, Any], *, headless: bool) -> None:
    """Refuses a model with weights that are missing or of another size, unless they are a new head's or a pooler's.

    `headless`: a head, which is whatever lies outside the base model, may be missing in the files.
    """
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]  # 5 adds sizes
    absent = [*(name for name in info["missing_keys"] if "pooler" not in name.split(".")), *mismatched]
    absent = [name for name in absent if not headless or not _in_head(model, name)]
    if absent:
        raise ModelError(
            f"{base.name} lacks {len(absent)} weights of a {model.config.model_type} model, or has them in another"
            f" size, first {min(absent, key=_by_layer)}. Check that `task:` and `model:` of the recipe fit together."
        )


def _in_head(model: Any, name: str) -> bool:
    """Says whether a weight lies outside the base model; some classes for images keep its parts beside their head."""
    prefix = model.base_model_prefix
    return not name.startswith(f"{prefix}.") if hasattr(model, prefix) else name.startswith(IMAGE_HEADS)


def _by_layer(name: str) -> list[str | int]:
    """Returns a sort key by which the weights of layer 2 come before those of layer 10."""
    return [int(part) if part.isdecimal() else part for part in name.split(".")]


def labels_of(base: Base) -> tuple[str, ...]:
    """Returns the names that a base model's configuration gives its outputs, in their order."""
    config = configuration.read(base.folder, base.name)
    return tuple(config.id2label[index] for index in range(config.num_labels))


def match_labels(own: Sequence[str], data: Sequence[str], renamed: Mapping[str, str], model: str) -> tuple[str, ...]:
    """Returns the data's names for a model's labels, in the model's order.

    Args:
        own: the model's labels, in the order of its outputs.
        data: the labels of the data.
        renamed: the recipe's `labels`, which maps labels of the model to labels of the data.
        model: the model's name in messages.

    Raises:
        ModelError: the two do not have the same labels; names the difference and the nearest labels.
    """
    for names, owner, labels in ((renamed.keys(), model, own), (renamed.values(), "the data", data)):
        for name in names:
            if name not in labels:
                nearest = did_you_mean(name, list(labels))
                raise ModelError(f"labels: {owner} has no label {name!r}{nearest}. It has {', '.join(labels)}.")
    matched = tuple(renamed.get(label, label) for label in own)
    repeated = [name for name, count in Counter(matched).items() if count > 1]
    if repeated:
        raise ModelError(f"labels: several labels of the model become {repeated[0]!r}. Name each label once.")
    if set(matched) != set(data):
        raise ModelError(_mismatch(own, matched, data, model))
    return matched


def _mismatch(own: Sequence[str], matched: Sequence[str], data: Sequence[str], model: str) -> str:
    only_model = [name for name in matched if name not in data]
    only_data = [name for name in data if name not in matched]
    sides = (("model", only_model), ("data", only_data))
    differences = " ".join(f"Only the {side} has {', '.join(names)}." for side, names in sides if names)
    advice = "Remove the rows with labels that the model does not have, or choose another model."
    if only_model and only_data:
        example = f"{own[matched.index(only_model[0])]}: {only_data[0]}"
        advice = f"Map labels in the recipe, for example `labels: {{{example}}}`, or choose another model."
    return f"{model} has the labels {', '.join(own)}, the data has {', '.join(data)}. {differences} {advice}"


def reorder_outputs(model: torch.nn.Module, order: Sequence[int]) -> None:
    """Reorders the outputs of a classifier in place; `order` holds the old index of each new output."""
    linear = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    *_, head = (module for module in linear if module.out_features == len(order))
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            tensor.data = tensor.data[list(order)].clone()


def name_outputs(config: Any, labels: Sequence[str]) -> None:
    """Writes the names of a model's outputs into its configuration, in place; none leaves it as it is."""
    if not labels:
        return
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
