"""The one way to read the configuration of a model that somebody else made.

`config.json` and the list of weight files are checked before transformers opens anything: a configuration can name
code to run, other repositories to fetch and files elsewhere on the disk, and not every version of transformers refuses
that. It can also have been written by another version: what transformers 5 renamed is translated for 4.57, which would
otherwise go on with defaults and say nothing.
"""

import json
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from deploykit.artifact import CONFIG
from deploykit.errors import ModelError
from deploykit.modeling.surgery import TRANSFORMERS_4

ADAPTER = "adapter_config.json"
HEADS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MASKED_LM", "CAUSAL_LM")
LABELS = ("id2label", "label2id")  # of dictionaries whose keys are the user's words
# Keys that make transformers run code, or read weights, that are not in the model's directory.
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
ELSEWHERE = ("_attn_implementation_internal", "_experts_implementation_internal", "transformers_weights")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset")
# What 4.57 calls the base of the rotary positions of one kind of layer.
THETAS = {
    "full_attention": ("global_rope_theta", "rope_theta"),
    "sliding_attention": ("local_rope_theta", "rope_local_base_freq"),
}


def read(folder: Path, name: str) -> Any:
    """Reads the configuration of a model.

    Args:
        folder: of the model.
        name: what messages call the model.

    Raises:
        ModelError: the configuration cannot be read, is of a type that is not known, or asks for code or files that are
            not a part of the model.
    """
    content = read_json(folder / CONFIG, name)
    _refuse_foreign_parts(content, name)
    _refuse_foreign_files(folder, name)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in _types():
        raise ModelError(
            f"{name} has the model type {kind!r} in {CONFIG}, which is no model of text that transformers"
            f" {transformers.__version__} knows. Choose another model, or a version of transformers that knows it."
        )
    content = {key: value for key, value in content.items() if key not in ATTENTION}
    config_class = CONFIG_MAPPING[kind]
    try:
        content = _for_4(content, signature(config_class.__init__).parameters) if TRANSFORMERS_4 else _for_5(content)
        return config_class.from_dict(content)
    except ModelError as error:
        raise ModelError(f"{name} {error}") from error
    except Exception as error:  # each class checks its values in its own way
        raise ModelError(
            f"{name} has a {CONFIG} that cannot be used: {first_line(error)}. Check its values."
        ) from error


def read_json(file: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object of a model.

    Args:
        file: of the model.
        name: what messages call the model.

    Raises:
        ModelError: it is missing or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{name} has a {file.name} that is not JSON: {first_line(error)}. Download or save the model again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{name} has a {file.name} that holds no JSON object. Download or save the model again.")
    return content


def first_line(error: BaseException) -> str:
    """Returns the beginning of what an error says, without the dot at its end."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].removesuffix(".")


def refuse_code(content: object, name: str, file: str) -> None:
    """Refuses settings that name code which comes with a model.

    Raises:
        ModelError: names the setting.
    """
    for key, value in _pairs(content):
        if key in CODE and value:
            raise ModelError(
                f"{name} needs code of its own ({key} in {file}), and deploykit runs no code that comes with a model."
                " Choose a model that transformers knows by itself."
            )


def _types() -> set[str]:
    """Returns the types of models that have a head of a task; of those that only write text, too."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    return {kind for table in (*tables, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) for kind in table}


def _pairs(content: object) -> Iterator[tuple[str, object]]:
    """Yields the keys and values of nested JSON, those of labels left out."""
    parts = list(content.items()) if isinstance(content, dict) else []
    yield from parts
    inside = [value for key, value in parts if key not in LABELS] if parts else content
    for value in inside if isinstance(inside, list) else []:
        yield from _pairs(value)


def _refuse_foreign_parts(content: dict[str, Any], name: str) -> None:
    refuse_code(content, name, CONFIG)
    for key, value in _pairs(content):
        if (key in ELSEWHERE and value) or (key in ATTENTION and "/" in str(value)):
            raise ModelError(
                f"{name} has {key} in {CONFIG}, which lets transformers fetch parts from elsewhere."
                f" If you trust the model, remove {key} from the file."
            )
        if key == "quantization_config" and value:
            raise ModelError(
                f"{name} holds quantized weights ({key} in {CONFIG}), which are neither trained nor exported."
                " Choose the model that it was made from, and quantize with deploykit."
            )


def _refuse_foreign_files(folder: Path, name: str) -> None:
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{name} is an adapter ({ADAPTER}), which takes its weights from another model."
            " Merge it into that model (merge_and_unload in peft) and save the whole."
        )
    for index in folder.glob("*.index.json"):
        files = read_json(index, name).get("weight_map", {})
        wrong = [file for file in files.values() if not isinstance(file, str) or Path(file).name != file]
        if wrong:
            raise ModelError(
                f"{name} has {wrong[0]!r} in {index.name}, which is no name of a file in its directory."
                " Download or save the model again."
            )


def _for_4(content: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Translates what transformers 5 wrote into what 4.57 reads."""
    content = dict(content)
    rope = content.pop("rope_parameters", None)
    if rope and "rope_parameters" not in known:
        nested = all(isinstance(value, dict) for value in rope.values())
        content |= _thetas(rope, known) if nested else _rope(rope, known)
    kinds = content.get("layer_types")
    if kinds and "layer_types" not in known and set(kinds) != {"full_attention"}:
        every = _period(kinds)
        if "global_attn_every_n_layers" not in known or not every:
            raise _of_transformers_5("layer_types")
        content["global_attn_every_n_layers"] = every
        del content["layer_types"]
    return content


def _rope(rope: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(rope)
    found: dict[str, Any] = {name: rest.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rest}
    if rest.get("rope_type", "default") != "default":
        found["rope_scaling"] = rest
    if set(found) - set(known):
        raise _of_transformers_5("rope_parameters")
    return found


def _thetas(rope: dict[str, dict[str, Any]], known: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, parameters in rope.items():
        name = next((name for name in THETAS.get(kind, ()) if name in known), None)
        plain = set(parameters) <= {"rope_theta", "rope_type"} and parameters.get("rope_type", "default") == "default"
        if name is None or not plain:
            raise _of_transformers_5("rope_parameters")
        found[name] = parameters["rope_theta"]
    return found


def _period(kinds: list[str]) -> int | None:
    """Returns after how many layers one with full attention comes again, from the first on; None if it is no rule."""
    for every in range(1, len(kinds) + 1):
        if kinds == ["sliding_attention" if index % every else "full_attention" for index in range(len(kinds))]:
            return every
    return None


def _of_transformers_5(key: str) -> ModelError:
    return ModelError(
        f"was saved by transformers 5, and transformers {transformers.__version__} does not know what its {key} means."
        " Install transformers 5, or save the model with 4.57."
    )


def _for_5(content: dict[str, Any]) -> dict[str, Any]:
    """Replaces the list of a T5 decoder's layers, of older checkpoints, which 5 holds against the encoder's depth."""
    content = dict(content)
    if content["model_type"] == "t5" and (kinds := content.pop("layer_types", None)):
        content["decoder_layers"] = len(kinds)
    return content
