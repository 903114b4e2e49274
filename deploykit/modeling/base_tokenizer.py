"""Saves the tokenizer of a base model without changing what it does.

`tokenizer.json` is copied byte by byte. Transformers would rebuild it as the class that `tokenizer_config.json` names,
and transformers 5 drops everything that this class does not have. `tokenizer_config.json` is written anew, with a class
that every version opens, and without chat templates, which may name files. If a model has no `tokenizer.json`,
transformers converts its vocabulary.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from deploykit.artifact import CONFIG, TOKENIZER, TOKENIZER_CONFIG
from deploykit.errors import ModelError
from deploykit.modeling import configuration
from deploykit.modeling.architectures import POSITIONS_AFTER_PADDING
from deploykit.modeling.base_model import Base
from deploykit.modeling.image_text import TWO_TOWER_TYPES
from deploykit.tokenizer import Tokenizer

SPECIAL_TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, "*.model")
DEFAULT_MAX_TOKENS = 512  # if neither the tokenizer nor the model sets a limit
UNLIMITED_TOKENS = 1_000_000  # `model_max_length` from this number on means that there is no limit


def save(base: Base, folder: Path, max_tokens: int | None = None) -> Tokenizer:
    """Saves a base model's tokenizer and opens the saved files.

    Args:
        base: the model.
        folder: `tokenizer.json` and `tokenizer_config.json` are written there.
        max_tokens: the recipe's limit; the lowest of this, the tokenizer's and the model's limit holds.

    Raises:
        ModelError: there is no tokenizer, or it cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, settings = configuration.read(base.folder, base.name), _settings(base)
    config = config.text_config if config.model_type in TWO_TOWER_TYPES else config
    if (base.folder / TOKENIZER).is_file():
        backend = _open(base)
        shutil.copyfile(base.folder / TOKENIZER, folder / TOKENIZER)
        special = _special_tokens(base, settings, backend, config)
    else:
        converted = _convert(base, settings, config.model_type)
        backend = converted.backend_tokenizer
        special = {role: token for role, token in converted.special_tokens_map.items() if role in SPECIAL_TOKEN_ROLES}
        settings = {"padding_side": converted.padding_side, **settings}
        (folder / TOKENIZER).write_text(backend.to_str(pretty=True), encoding="utf-8")
    has_token_types = (getattr(config, "type_vocab_size", 0) or 0) > 1
    limit = _max_tokens(config, settings, backend.token_to_id(special.get("pad_token", "")))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "padding_side": settings.get("padding_side") or "right",
        "model_input_names": ["input_ids", *(["token_type_ids"] if has_token_types else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.load(folder, min(limit, max_tokens or UNLIMITED_TOKENS))


def _settings(base: Base) -> dict[str, Any]:
    """Reads the settings of the tokenizer, from both files in which models have their special tokens."""
    settings: dict[str, Any] = {}
    for file in (SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG):
        if (base.folder / file).is_file():
            settings |= configuration.read_json(base.folder / file, base.name)
    configuration.refuse_code(settings, base.name, TOKENIZER_CONFIG)
    return settings


def _open(base: Base) -> tokenizers.Tokenizer:
    """Opens `tokenizer.json`; raises a ModelError if the installed library cannot read it."""
    try:
        return tokenizers.Tokenizer.from_file(str(base.folder / TOKENIZER))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(
            f"{base.name} has a {TOKENIZER} that tokenizers {tokenizers.__version__} cannot read:"
            f" {configuration.first_line(error)}. It is damaged, or was written by a newer version: download it again,"
            " or install a newer version of tokenizers."
        ) from error


def _special_tokens(
    base: Base, settings: Mapping[str, Any], backend: tokenizers.Tokenizer, config: Any
) -> dict[str, str]:
    """Returns the special tokens by role.

    They come from the settings, or else from the tokenizer's class. The padding token may also come from the model's
    configuration.

    Raises:
        ModelError: there is no padding token.
    """
    defaults = _class_defaults(settings.get("tokenizer_class"), config.model_type)
    special = {}
    for role in SPECIAL_TOKEN_ROLES:
        token = settings.get(role, defaults.get(role))
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and backend.token_to_id(token) is not None:
            special[role] = token
    if "pad_token" not in special and isinstance(config.pad_token_id, int) and config.pad_token_id >= 0:
        token = backend.id_to_token(config.pad_token_id)
        special |= {"pad_token": token} if token is not None else {}
    if "pad_token" not in special:
        raise ModelError(
            f"{base.name} has no padding token that is in its {TOKENIZER}. Add one to {TOKENIZER_CONFIG}, for example"
            ' the end token: "pad_token": "</s>".'
        )
    return special


def _class_defaults(class_name: object, model_type: str) -> dict[str, Any]:
    """Returns the special tokens by role that a tokenizer class of transformers has as defaults of its constructor.

    The class is `class_name`, or else the one that transformers uses for the type of model.
    """
    classes = TOKENIZER_MAPPING_NAMES.get(model_type) or ()
    names = [class_name, *(classes if isinstance(classes, tuple) else [classes])]  # transformers 4 has tuples
    for name in [name for name in names if isinstance(name, str)]:
        for variant in (name, f"{name.removesuffix('Fast')}Fast"):
            parameters = signature(getattr(transformers, variant, object).__init__).parameters
            defaults = {role: parameters[role].default for role in SPECIAL_TOKEN_ROLES if role in parameters}
            if any(isinstance(token, str) for token in defaults.values()):
                return defaults
    return {}


def _max_tokens(config: Any, settings: Mapping[str, Any], pad_id: int | None) -> int:
    """Returns the most tokens that both the tokenizer and the model's positions allow."""
    limits = [settings.get("model_max_length")]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        if config.model_type in POSITIONS_AFTER_PADDING:  # their first token has the position after the padding's id
            padding_id = pad_id if config.pad_token_id is None else config.pad_token_id
            positions -= (padding_id or 0) + 1
        limits.append(positions)
    usable = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < UNLIMITED_TOKENS]
    return min(usable, default=DEFAULT_MAX_TOKENS)


def _convert(base: Base, settings: Mapping[str, Any], model_type: str) -> Any:
    """Returns the fast tokenizer that transformers makes from a vocabulary.

    This happens in a temporary directory without any file that could name code.

    Raises:
        ModelError: there is no vocabulary, or transformers cannot convert it.
    """
    files = sorted(file for pattern in VOCABULARY_FILES for file in base.folder.glob(pattern))
    if not {file.name for file in files} - {ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE}:
        raise ModelError(
            f"{base.name} has no tokenizer: expected {TOKENIZER}, or a vocabulary such as vocab.txt or spm.model."
            " Copy the files of the tokenizer beside the model's."
        )
    # Settings with these endings may name files anywhere on the disk.
    safe = {key: value for key, value in settings.items() if not key.endswith(("_file", "_files", "chat_template"))}
    if isinstance(safe.get("extra_special_tokens"), list):  # the name in transformers 5
        safe["additional_special_tokens"] = safe.pop("extra_special_tokens")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in files:
            shutil.copyfile(file, folder / file.name)
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(safe), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name, use_fast=True, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # of many types, also for a missing library
            raise _conversion_error(base, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{base.name} has no fast tokenizer ({TOKENIZER}), and transformers cannot make one.")
    return tokenizer


def _conversion_error(base: Base, error: Exception) -> ModelError:
    """Returns the error for a vocabulary that transformers cannot convert."""
    sentencepiece_files = sorted(file.name for file in base.folder.glob("*.model"))
    if sentencepiece_files and not all(map(_is_installed, ("sentencepiece", "google.protobuf"))):
        return ModelError(
            f"{base.name} has its tokenizer as a SentencePiece model only ({sentencepiece_files[0]}), and reading it"
            " needs packages that are not installed: pip install sentencepiece protobuf"
        )
    if sentencepiece_files:
        return ModelError(
            f"{base.name} has no {TOKENIZER}, and its {sentencepiece_files[0]} cannot be read as a SentencePiece model."
            " Download the model again, or save its tokenizer in the fast form."
        )
    return ModelError(
        f"{base.name} has no {TOKENIZER}, and transformers cannot make one from its vocabulary"
        f" ({type(error).__name__}: {configuration.first_line(error)}). Save its tokenizer in the fast form."
    )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
