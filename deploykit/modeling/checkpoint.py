"""Models of transformers on disk: finding a base model, loading and saving checkpoints.

Only safetensors are read and written, never pickles, and never code that comes with a model. Layers of
uneven size are described in a file of their own, because a configuration has one width for all layers.
"""

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from deploykit import process_state
from deploykit.artifact import ARCHITECTURE, CONFIG, GENERATION, WEIGHTS, sha256_of
from deploykit.errors import ModelError
from deploykit.modeling import configuration, surgery
from deploykit.modeling.architectures import AFTER_PADDING, architecture_of, is_known
from deploykit.modeling.surgery import Shape

PACKAGE = "package://"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # what a model is made of
# Never code that comes with a model, and never a question; never pickles.
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}


@dataclass(frozen=True)
class Base:
    """A base model that was found: where its files are, what it is called and a hash of its contents."""

    folder: Path
    name: str
    revision: str
    fingerprint: str


def find(reference: str, revision: str | None = None) -> Base:
    """Finds a base model.

    Args:
        reference: a directory, `package://MODULE/PATH` inside an installed package, or an id of the hub.
        revision: of the hub; the commit that it stands for is recorded.

    Raises:
        ModelError: there is no such model, or it holds no configuration or safetensors.
    """
    if reference.startswith("~"):
        reference = str(Path(reference).expanduser())
    if reference.startswith(PACKAGE):
        folder, found = _in_package(reference)
    elif Path(reference).is_dir():
        folder, found = Path(reference), ""
    elif reference.startswith((".", "/")) or reference.count("/") > 1:
        raise ModelError(f"the model directory {reference} does not exist. Give a directory, {PACKAGE}… or a hub id.")
    else:
        folder = _from_hub(reference, revision)
        found = folder.name
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / CONFIG).is_file() or not weights:
        raise ModelError(
            f"{folder} is no model directory: expected {CONFIG} and {WEIGHTS}, found"
            f" {', '.join(sorted(file.name for file in folder.iterdir())[:8]) or 'nothing'}."
            " Pickled weights (pytorch_model.bin) are not read: save the model with safe_serialization=True."
        )
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    hashes = [f"{file.name} {sha256_of(file)}" for file in files]
    return Base(folder, reference, found, hashlib.sha256("\n".join(hashes).encode()).hexdigest())


def _in_package(reference: str) -> tuple[Path, str]:
    module, _, inside = reference.removeprefix(PACKAGE).partition("/")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{reference}: the package {module!r} is not installed. Add it with pip; its name on the"
            f" registry is often {module.replace('_', '-')!r}."
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
            f"the model {reference!r} is no directory here, and the hub did not give it"
            f" ({type(error).__name__}). Check the name and the network, or give a directory."
        ) from error


def open_base(
    base: Base, auto_class: str, labels: Sequence[str], *, fine_tuned: bool, pad_id: int | None = None
) -> transformers.PreTrainedModel:
    """Loads a base model with a head for the labels.

    Args:
        base: what `find` gave.
        auto_class: the task's class of transformers.
        labels: names of the outputs, in their order.
        fine_tuned: the head must be there already; otherwise a new one is made.
        pad_id: the tokenizer's padding token, for a model that counts positions from it and does not say which it is.

    Raises:
        ModelError: the model is of another kind, or has no such head.
    """
    config = configuration.read(base.folder, base.name)
    if (base.folder / ARCHITECTURE).is_file():
        return _open_pruned(base, fine_tuned)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if config.pad_token_id is None and config.model_type in AFTER_PADDING:
        config.pad_token_id = pad_id
    try:
        with process_state.quiet("transformers"):  # it warns of a new head, which is what was asked for
            model, info = class_of(config, auto_class).from_pretrained(
                base.folder,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=not fine_tuned,
                dtype=torch.float32,
                attn_implementation=_fastest(class_of(config, auto_class)),
                **SAFE,
            )
    except Exception as error:  # the library checks in many places, each in its own way
        raise not_loaded(base, auto_class, error) from error
    _check_weights(base, model, info, fine_tuned)
    return cast(transformers.PreTrainedModel, model)


def not_loaded(base: Base, auto_class: str, error: Exception) -> ModelError:
    """Returns what to say of a model that the library cannot build."""
    return ModelError(
        f"{base.name} cannot be loaded as {auto_class}: {configuration.first_line(error)}."
        " Check that `task:` and `model:` of the recipe fit together."
    )


def class_of(config: Any, auto_class: str) -> Any:
    """Returns the class of models of a configuration with a task's head.

    Raises:
        KeyError: the library has none.
    """
    classes = getattr(transformers, auto_class)._model_mapping
    if type(config) not in classes:
        raise KeyError(f"models of type {config.model_type!r} have no such head")
    found = classes[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _fastest(model_class: Any) -> str:
    """Names the attention to train with; without a name the library would take what the configuration says."""
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def labels_of(base: Base) -> tuple[str, ...]:
    """Returns the names that a base model's configuration gives its outputs, in their order.

    Raises:
        ModelError: the configuration cannot be read.
    """
    config = configuration.read(base.folder, base.name)
    return tuple(config.id2label[index] for index in range(config.num_labels))


def _open_pruned(base: Base, fine_tuned: bool) -> transformers.PreTrainedModel:
    if not fine_tuned:
        raise ModelError(
            f"{base.name} was pruned, and a pruned model is not fine-tuned again. Start from the model before it,"
            " or take it as it is with train: null."
        )
    return load(base.folder, attention=None)


def _check_weights(base: Base, model: Any, info: dict[str, Any], fine_tuned: bool) -> None:
    prefix = f"{model.base_model_prefix}."
    missing = [name for name in info["missing_keys"] if fine_tuned or name.startswith(prefix)]
    missing = [name for name in missing if ".pooler." not in name]
    wrong = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]  # 5 gives sizes, too
    missing += [name for name in wrong if fine_tuned or name.startswith(prefix)]
    if missing:
        raise ModelError(
            f"{base.name} lacks {len(missing)} weights of a {model.config.model_type} model, or has them in another"
            f" size, first {min(missing, key=_in_order)}."
            " Check that `task:` and `model:` of the recipe fit together."
        )


def _in_order(name: str) -> list[str | int]:
    """Sorts names of weights by the numbers of their layers."""
    return [int(part) if part.isdecimal() else part for part in name.split(".")]


def require_prunable(base: Base) -> None:
    """Refuses a model that no pruner knows, before anything is trained.

    Raises:
        ModelError: lists the types that are known.
    """
    architecture_of(configuration.read(base.folder, base.name))


def save(model: torch.nn.Module, folder: Path) -> None:
    """Writes configuration, weights and, where layers differ in size from it, the layers' sizes."""
    config: Any = deepcopy(model.config)
    config.architectures = [type(model).__name__]  # what `load` opens; a base model's names the class it came from
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None):
        cast(Any, model).generation_config.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in _untied(model).items()}, folder / WEIGHTS)
    if is_known(config):
        sizes = surgery.shapes(model)
        with torch.device("meta"):
            regular = surgery.shapes(type(model)(config))
        (folder / ARCHITECTURE).unlink(missing_ok=True)
        if sizes != regular:
            content = {"layers": [asdict(size) for size in sizes]}
            (folder / ARCHITECTURE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _untied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the state without second names of the same tensor, which safetensors refuse."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            found[name] = tensor
            seen.add(tensor.data_ptr())
    return found


def load(folder: Path, attention: str | None = "eager") -> transformers.PreTrainedModel:
    """Loads a checkpoint, uneven layers included; its logits are those that it was saved with.

    Args:
        folder: the artifact's directory.
        attention: `eager` for export and reference; None, for training, is the fastest that the model has.

    Raises:
        ModelError: the weights do not have the sizes that stand beside them.
    """
    config = configuration.read(folder, str(folder))
    model_class = _named_class(config, folder)
    attention = attention or _fastest(model_class)
    if not (folder / ARCHITECTURE).is_file():
        model = model_class.from_pretrained(
            folder, config=config, attn_implementation=attention, dtype=torch.float32, **SAFE
        )
        return copied(model)
    content = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
    model = model_class._from_config(config, attn_implementation=attention, dtype=torch.float32)
    model = surgery.resized(model, [Shape(**layer) for layer in content["layers"]])
    tied = set(model.state_dict()) - set(_untied(model))
    try:
        missing, unexpected = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except RuntimeError:  # another size
        missing, unexpected = [WEIGHTS], []
    if set(missing) - tied or unexpected:
        raise ModelError(f"{folder / WEIGHTS} does not fit {ARCHITECTURE}: build the artifact again.")
    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _named_class(config: Any, folder: Path) -> Any:
    name = str((config.architectures or [""])[0])
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(f"{folder / CONFIG} names no class of a model in `architectures`, found {name!r}.")
    return found


def copied(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Copies weights that are read where they lie in a file.

    There they begin anywhere; some CPUs take other kernels for that, and the last bit of the logits changes.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def parameters(model: torch.nn.Module) -> int:
    """Counts the weights."""
    return sum(parameter.numel() for parameter in model.parameters())
