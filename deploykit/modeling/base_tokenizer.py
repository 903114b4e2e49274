"""The tokenizer of a base model, taken over as it is.

`tokenizer.json` is copied byte by byte: transformers would build it anew from the class that is named beside it, and
transformers 5 drops what differs from that class. `tokenizer_config.json` is written anew, with a class that every
version opens and only what is needed; templates of chats, whose names are file names, stay behind. Only a model
without `tokenizer.json` is opened by transformers, which converts it.
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
from deploykit.modeling.architectures import AFTER_PADDING
from deploykit.modeling.checkpoint import Base
from deploykit.tokenizer import Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPECIAL_TOKENS = "special_tokens_map.json"
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", SPECIAL_TOKENS, "*.model")
NO_LIMIT = 512  # tokens that are read where neither model nor recipe sets a limit
UNBOUNDED = 1_000_000  # tokenizers without a limit carry a larger number than this


def save(base: Base, folder: Path, max_tokens: int | None = None) -> Tokenizer:
    """Writes a base model's tokenizer and opens what was written.

    Args:
        base: the model.
        folder: gets `tokenizer.json` and `tokenizer_config.json`.
        max_tokens: the recipe's limit; tokenizer and positions of the model set others.

    Raises:
        ModelError: there is no tokenizer that can be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, settings = configuration.read(base.folder, base.name), _settings(base)
    if (base.folder / TOKENIZER).is_file():
        backend = _opened(base)
        shutil.copyfile(base.folder / TOKENIZER, folder / TOKENIZER)
        roles = _roles(base, settings, backend, config)
    else:
        converted = _converted(base, settings, config.model_type)
        backend = converted.backend_tokenizer
        roles = {role: token for role, token in converted.special_tokens_map.items() if role in ROLES}
        settings = {"padding_side": converted.padding_side, **settings}
        (folder / TOKENIZER).write_text(backend.to_str(pretty=True), encoding="utf-8")
    typed = (getattr(config, "type_vocab_size", 0) or 0) > 1
    limit = _limit(config, settings, backend.token_to_id(roles.get("pad_token", "")))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "padding_side": settings.get("padding_side") or "right",
        "model_input_names": ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return Tokenizer.load(folder, min(limit, max_tokens or UNBOUNDED))


def _settings(base: Base) -> dict[str, Any]:
    """Returns what stands beside the vocabulary; older models name their special tokens in a file of their own."""
    found: dict[str, Any] = {}
    for file in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        if (base.folder / file).is_file():
            found |= configuration.read_json(base.folder / file, base.name)
    configuration.refuse_code(found, base.name, TOKENIZER_CONFIG)
    return found


def _opened(base: Base) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(base.folder / TOKENIZER))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(
            f"{base.name} has a {TOKENIZER} that tokenizers {tokenizers.__version__} cannot read:"
            f" {configuration.first_line(error)}. It is damaged, or was written by a newer version: download it again,"
            " or install a newer version of tokenizers."
        ) from error


def _roles(base: Base, settings: Mapping[str, Any], backend: tokenizers.Tokenizer, config: Any) -> dict[str, str]:
    """Finds the special tokens: of the settings, of the class that these name, of the model's configuration."""
    defaults = _defaults(settings.get("tokenizer_class"), config.model_type)
    roles = {}
    for role in ROLES:
        token = settings.get(role, defaults.get(role))
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and backend.token_to_id(token) is not None:
            roles[role] = token
    if "pad_token" not in roles and isinstance(config.pad_token_id, int):
        token = backend.id_to_token(config.pad_token_id) if config.pad_token_id >= 0 else None
        roles |= {"pad_token": token} if token is not None else {}
    if "pad_token" not in roles:
        raise ModelError(
            f"{base.name} names no padding token that its {TOKENIZER} knows. Add one to {TOKENIZER_CONFIG}, for"
            ' example the end token: "pad_token": "</s>".'
        )
    return roles


def _defaults(named: object, kind: str) -> dict[str, Any]:
    """Returns the special tokens of a class of transformers, as its constructor has them."""
    known = TOKENIZER_MAPPING_NAMES.get(kind) or ()
    names = [named, *(known if isinstance(known, tuple) else [known])]
    for name in [name for name in names if isinstance(name, str)]:
        for variant in (name, f"{name.removesuffix('Fast')}Fast"):
            parameters = signature(getattr(transformers, variant, object).__init__).parameters
            found = {role: parameters[role].default for role in ROLES if role in parameters}
            if any(isinstance(token, str) for token in found.values()):
                return found
    return {}


def _limit(config: Any, settings: Mapping[str, Any], pad_id: int | None) -> int:
    """Returns the most tokens that the model reads, by its tokenizer and its positions."""
    limits = [settings.get("model_max_length")]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        after = pad_id if config.pad_token_id is None else config.pad_token_id
        limits.append(positions - ((after or 0) + 1 if config.model_type in AFTER_PADDING else 0))
    usable = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < UNBOUNDED]
    return min(usable, default=NO_LIMIT)


def _converted(base: Base, settings: Mapping[str, Any], kind: str) -> Any:
    """Opens a tokenizer without `tokenizer.json` with transformers, from a directory that holds nothing else."""
    files = sorted(file for pattern in VOCABULARIES for file in base.folder.glob(pattern))
    if not {file.name for file in files} - {"added_tokens.json", SPECIAL_TOKENS}:
        raise ModelError(
            f"{base.name} has no tokenizer: expected {TOKENIZER}, or a vocabulary such as vocab.txt or spm.model."
            " Copy the files of the tokenizer beside the model's."
        )
    safe = {key: value for key, value in settings.items() if not key.endswith(("_file", "_files", "chat_template"))}
    if isinstance(safe.get("extra_special_tokens"), list):  # as transformers 5 writes it
        safe["additional_special_tokens"] = safe.pop("extra_special_tokens")
    with tempfile.TemporaryDirectory() as name:
        for file in files:
            shutil.copyfile(file, Path(name) / file.name)
        (Path(name) / TOKENIZER_CONFIG).write_text(json.dumps(safe), encoding="utf-8")
        (Path(name) / CONFIG).write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        try:
            found = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever the classes run into, of a library that is missing, too
            raise _not_converted(base, error) from error
    if not getattr(found, "is_fast", False):
        raise ModelError(f"{base.name} has no fast tokenizer ({TOKENIZER}), and transformers cannot make one.")
    return found


def _not_converted(base: Base, error: Exception) -> ModelError:
    pieces = sorted(file.name for file in base.folder.glob("*.model"))
    if pieces and not all(map(_is_installed, ("sentencepiece", "google.protobuf"))):
        return ModelError(
            f"{base.name} has its tokenizer as a model of SentencePiece only ({pieces[0]}), and reading it needs"
            " packages that are not installed: pip install sentencepiece protobuf"
        )
    if pieces:
        return ModelError(
            f"{base.name} has no {TOKENIZER}, and its {pieces[0]} is no model of SentencePiece that can be read."
            " Download the model again, or save its tokenizer in the fast form."
        )
    return ModelError(
        f"{base.name} has no {TOKENIZER}, and transformers cannot make one of its vocabulary"
        f" ({type(error).__name__}: {configuration.first_line(error)}). Save its tokenizer in the fast form."
    )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be in is missing
        return False
