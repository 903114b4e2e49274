"""Reading `config.json` of a model from elsewhere safely.

It is checked before transformers opens anything, like the list of weight files: a configuration can name code to run,
repositories to download and files elsewhere on the disk, and not every version of transformers refuses that. Names that
transformers 5 changed are translated for 4.57, which would silently use defaults instead.
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
HEADS = (
    *("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MASKED_LM", "CAUSAL_LM"),
    "IMAGE_CLASSIFICATION",
)
FOREIGN_TYPES = {"timm_wrapper"}  # whose code and weights come from another library
LABELS = ("id2label", "label2id")  # dictionaries whose keys are labels, not settings
# Settings that make transformers run code, or read weights, from outside the model's directory.
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
OUTSIDE = ("_attn_implementation_internal", "_experts_implementation_internal", "transformers_weights")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset")
# Names in 4.57 of the base frequency of rotary positions, by the type of layer.
ROPE_THETAS = {
    "full_attention": ("global_rope_theta", "rope_theta"),
    "sliding_attention": ("local_rope_theta", "rope_local_base_freq"),
}


def read(folder: Path, name: str) -> Any:
    """Reads the configuration of a model, which messages call `name`.

    Raises:
        ModelError: the configuration cannot be read, its type is unknown, or it needs code or files from elsewhere.
    """
    content = read_json(folder / CONFIG, name)
    _refuse_foreign_parts(content, name)
    _refuse_foreign_files(folder, name)
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in _known_types():
        raise ModelError(
            f"{name} has the model type {model_type!r} in {CONFIG}, which is not a text or image model of transformers"
            f" {transformers.__version__}. Choose another model, or a version of transformers that has it."
        )
    content = {key: value for key, value in content.items() if key not in ATTENTION}
    config_class = CONFIG_MAPPING[model_type]
    try:
        content = _for_4(content, signature(config_class.__init__).parameters) if TRANSFORMERS_4 else _for_5(content)
        return config_class.from_dict(content)
    except ModelError as error:
        raise ModelError(f"{name} {error}") from error
    except Exception as error:  # each class raises errors of its own
        raise ModelError(
            f"{name} has a {CONFIG} that cannot be used: {first_line(error)}. Check its values."
        ) from error


def read_json(file: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object from a model's file; raises a ModelError if it is missing or holds something else."""
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
    """Returns the first line of an error's message, shortened and without a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].removesuffix(".")


def refuse_code(content: object, name: str, file: str) -> None:
    """Raises a ModelError if settings, read from `file`, name code that comes with a model."""
    for key, value in _pairs(content):
        if key in CODE and value:
            raise ModelError(
                f"{name} needs code of its own ({key} in {file}), and deploykit runs no code that comes with a model."
                " Choose a model that transformers supports by itself."
            )


def _known_types() -> set[str]:
    """Returns the types of models that have a head for texts or images, including those that only generate text."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    tables.append(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    return {model_type for table in tables for model_type in table} - FOREIGN_TYPES


def _pairs(content: object) -> Iterator[tuple[str, object]]:
    """Yields the keys and values of nested JSON, except those inside dictionaries of labels."""
    pairs = list(content.items()) if isinstance(content, dict) else []
    yield from pairs
    inner = [value for key, value in pairs if key not in LABELS] if pairs else content
    for value in inner if isinstance(inner, list) else []:
        yield from _pairs(value)


def _refuse_foreign_parts(content: dict[str, Any], name: str) -> None:
    refuse_code(content, name, CONFIG)
    for key, value in _pairs(content):
        if (key in OUTSIDE and value) or (key in ATTENTION and "/" in str(value)):
            raise ModelError(
                f"{name} has {key} in {CONFIG}, which lets transformers load parts from elsewhere."
                f" If you trust the model, remove {key} from the file."
            )
        if key == "quantization_config" and value:
            raise ModelError(
                f"{name} holds quantized weights ({key} in {CONFIG}), which can be neither trained nor exported."
                " Choose the model that was quantized, and quantize it with deploykit."
            )


def _refuse_foreign_files(folder: Path, name: str) -> None:
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{name} is an adapter ({ADAPTER}), which takes its weights from another model."
            " Merge it into that model (merge_and_unload in peft) and save the merged model."
        )
    for index in folder.glob("*.index.json"):
        files = read_json(index, name).get("weight_map", {})
        wrong = [file for file in files.values() if not isinstance(file, str) or Path(file).name != file]
        if wrong:
            raise ModelError(
                f"{name} has {wrong[0]!r} in {index.name}, which is not the name of a file in its directory."
                " Download or save the model again."
            )


def _for_4(content: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translates what transformers 5 wrote into the parameters of a configuration class of 4.57."""
    content = dict(content)
    rope = content.pop("rope_parameters", None)
    if rope and "rope_parameters" not in parameters:
        per_layer_type = all(isinstance(value, dict) for value in rope.values())
        content |= _rope_thetas(rope, parameters) if per_layer_type else _rope(rope, parameters)
    layer_types = content.get("layer_types")
    if layer_types and "layer_types" not in parameters and set(layer_types) != {"full_attention"}:
        every = _full_attention_period(layer_types)
        if "global_attn_every_n_layers" not in parameters or not every:
            raise _untranslatable("layer_types")
        content["global_attn_every_n_layers"] = every
        del content["layer_types"]
    return content


def _rope(rope: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(rope)
    names = ("rope_theta", "partial_rotary_factor")
    settings: dict[str, Any] = {name: scaling.pop(name) for name in names if name in scaling}
    if scaling.get("rope_type", "default") != "default":
        settings["rope_scaling"] = scaling
    if set(settings) - set(parameters):
        raise _untranslatable("rope_parameters")
    return settings


def _rope_thetas(rope: dict[str, dict[str, Any]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for layer_type, values in rope.items():
        name = next((name for name in ROPE_THETAS.get(layer_type, ()) if name in parameters), None)
        plain = set(values) <= {"rope_theta", "rope_type"} and values.get("rope_type", "default") == "default"
        if name is None or not plain:
            raise _untranslatable("rope_parameters")
        settings[name] = values["rope_theta"]
    return settings


def _full_attention_period(layer_types: list[str]) -> int | None:
    """Returns n if every n-th layer, from the first on, has full attention and the others sliding; None if not."""
    for every in range(1, len(layer_types) + 1):
        pattern = ["sliding_attention" if index % every else "full_attention" for index in range(len(layer_types))]
        if layer_types == pattern:
            return every
    return None


def _untranslatable(key: str) -> ModelError:
    return ModelError(
        f"was saved by transformers 5, and transformers {transformers.__version__} cannot read its {key}."
        " Install transformers 5, or save the model with 4.57."
    )


def _for_5(content: dict[str, Any]) -> dict[str, Any]:
    """Replaces `layer_types` of older T5 decoders by their number: 5 would compare it with the encoder's depth."""
    content = dict(content)
    if content["model_type"] == "t5" and (layer_types := content.pop("layer_types", None)):
        content["decoder_layers"] = len(layer_types)
    return content
