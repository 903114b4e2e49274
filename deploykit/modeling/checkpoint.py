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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from deploykit import process_state
from deploykit.artifact import ARCHITECTURE, CONFIG, GENERATION, WEIGHTS, sha256_of
from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.architectures import ARCHITECTURES, architecture_of, is_known
from deploykit.modeling.surgery import Shape

PACKAGE = "package://"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # what a model is made of
SAFE: dict[str, Any] = {"trust_remote_code": False}  # never code that comes with a model, and never a question
NO_LIMIT = 512  # tokens that are read where neither model nor recipe sets a limit
UNBOUNDED = 1_000_000  # tokenizers without a limit carry a larger number than this


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


def open_base(base: Base, auto_class: str, labels: Sequence[str], *, fine_tuned: bool) -> transformers.PreTrainedModel:
    """Loads a base model with a head for the labels.

    Args:
        base: what `find` gave.
        auto_class: the task's class of transformers.
        labels: names of the outputs, in their order.
        fine_tuned: the head must be there already; otherwise a new one is made.

    Raises:
        ModelError: the model is of another kind, or has no such head.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    try:
        if (base.folder / ARCHITECTURE).is_file():
            return _open_pruned(base, fine_tuned)
        with process_state.quiet("transformers"):  # it warns of a new head, which is what was asked for
            model, info = getattr(transformers, auto_class).from_pretrained(
                base.folder,
                num_labels=len(labels),
                **names,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=not fine_tuned,
                dtype=torch.float32,
                **SAFE,
            )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{base.name} cannot be loaded as {auto_class}: {str(error).splitlines()[0][:200]}"
            " Check that `task:` and `model:` of the recipe fit together."
        ) from error
    _check_weights(base, model, info, fine_tuned)
    return model


def labels_of(base: Base) -> tuple[str, ...]:
    """Returns the names that a base model's configuration gives its outputs, in their order.

    Raises:
        ModelError: the configuration cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(base.folder, **SAFE)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"the {CONFIG} of {base.name} cannot be read: {str(error).splitlines()[0][:200]}") from error
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
    missing += [name for name in info["mismatched_keys"] if name.startswith(prefix)]
    if missing:
        raise ModelError(
            f"{base.name} lacks {len(missing)} weights of a {model.config.model_type} model, or has them in another"
            f" size, first {missing[0]}."
            " Check that `task:` and `model:` of the recipe fit together."
        )


def max_tokens(base: Base, wanted: int | None) -> int:
    """Returns the most tokens that the model reads: of the tokenizer, the positions, and the recipe."""
    config = AutoConfig.from_pretrained(base.folder, **SAFE)
    limits = [AutoTokenizer.from_pretrained(base.folder, **SAFE).model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        row = ARCHITECTURES.get(config.model_type)
        offset = config.pad_token_id + 1 if row and row.after_padding else 0
        limits.append(positions - offset)
    if wanted:
        limits.append(wanted)
    return int(min((limit for limit in limits if limit < UNBOUNDED), default=NO_LIMIT))


def require_prunable(base: Base) -> None:
    """Refuses a model that no pruner knows, before anything is trained.

    Raises:
        ModelError: lists the types that are known.
    """
    architecture_of(AutoConfig.from_pretrained(base.folder, **SAFE))


def save_tokenizer(base: Base, folder: Path) -> None:
    """Writes the base model's tokenizer in its fast form."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, use_fast=True, **SAFE)
    except (ValueError, OSError, TypeError) as error:  # the last where files that it needs are missing
        raise ModelError(f"{base.name} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{base.name} has no fast tokenizer (tokenizer.json); deploykit needs one.")
    tokenizer.save_pretrained(folder)


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
    config = AutoConfig.from_pretrained(folder, **SAFE)
    auto_class = getattr(transformers, config.architectures[0])
    if not (folder / ARCHITECTURE).is_file():
        return copied(auto_class.from_pretrained(folder, attn_implementation=attention, use_safetensors=True, **SAFE))
    content = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
    model = auto_class._from_config(config, attn_implementation=attention)
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
