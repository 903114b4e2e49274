"""Safe reading of the `config.json` that comes with a base model.

A configuration can name code to run, repositories to download and files elsewhere on the disk, and not every version of
transformers refuses that. So the configuration and the index of weight files are checked before transformers opens any
file. Settings that transformers 5 renamed are translated for 4.57, which would otherwise silently use its defaults.
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

ADAPTER_CONFIG = "adapter_config.json"  # peft writes it beside the weights of an adapter
# Models with one of these heads are supported. Transformers lists them in tables with these names, such as
# `MODEL_FOR_MASKED_LM_MAPPING_NAMES`.
SUPPORTED_HEADS = (
    *("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MASKED_LM", "CAUSAL_LM"),
    *("SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_CLASSIFICATION"),
)
EXCLUDED_MODEL_TYPES = {"timm_wrapper"}  # its code and weights come from another library, timm
# Keys of config.json that name Python code to run.
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
# Keys that name kernels to download, or files of weights anywhere on the disk.
EXTERNAL_PART_KEYS = ("_attn_implementation_internal", "_experts_implementation_internal", "transformers_weights")
# Keys that choose an implementation of attention; a value with a slash is a repository of kernels on the hub. `read`
# drops these keys, because deploykit chooses the implementation itself.
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_autoset")
# Keys of dictionaries whose own keys are labels, not settings.
LABEL_MAP_KEYS = ("id2label", "label2id")
# Parameters of configuration classes in transformers 4.57 for the base frequency of rotary positions, by type of layer.
ROPE_THETA_PARAMETERS = {
    "full_attention": ("global_rope_theta", "rope_theta"),
    "sliding_attention": ("local_rope_theta", "rope_local_base_freq"),
}


def read(folder: Path, name: str) -> Any:
    """Reads the configuration of a model.

    Args:
        folder: the model's directory.
        name: the model's name in messages.

    Returns:
        An instance of the model's configuration class in transformers.

    Raises:
        ModelError: the configuration cannot be read, its type is unknown, or it needs code or files from elsewhere.
    """
    content = read_json(folder / CONFIG, name)
    _refuse_unsafe_settings(content, name)
    _refuse_external_weights(folder, name)
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in _known_types():
        raise ModelError(
            f"{name} has the model type {model_type!r} in {CONFIG}, which is not a text or image model of transformers"
            f" {transformers.__version__}. Choose another model, or a version of transformers that has it."
        )
    content = {key: value for key, value in content.items() if key not in ATTENTION_KEYS}
    config_class = CONFIG_MAPPING[model_type]
    try:
        if TRANSFORMERS_4:
            content = _translated_to_4(content, signature(config_class.__init__).parameters)
        else:
            content = _adapted_to_5(content)
        return config_class.from_dict(content)
    except ModelError as error:  # from `_untranslatable_key`, whose message lacks the name
        raise ModelError(f"{name} {error}") from error
    except Exception as error:  # each configuration class raises errors of its own
        raise ModelError(
            f"{name} has a {CONFIG} that cannot be used: {first_line(error)}. Check its values."
        ) from error


def read_json(file: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object from a file of the model `name`.

    Raises:
        ModelError: the file is missing, or does not hold a JSON object.
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
    """Returns the first line of an error's message, shortened and without a full stop."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].removesuffix(".")


def refuse_code(content: object, name: str, file: str) -> None:
    """Raises a ModelError if the settings that were read from `file` name code that comes with the model `name`."""
    for key, value in _settings(content):
        if key in CODE_KEYS and value:
            raise ModelError(
                f"{name} needs code of its own ({key} in {file}), and deploykit runs no code that comes with a model."
                " Choose a model that transformers supports by itself."
            )


def _known_types() -> set[str]:
    """Returns the types of models for which transformers has at least one of the supported heads."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in SUPPORTED_HEADS]
    return {model_type for table in tables for model_type in table} - EXCLUDED_MODEL_TYPES


def _settings(content: object) -> Iterator[tuple[str, object]]:
    """Yields every key of nested JSON with its value, except those inside the dictionaries of labels."""
    if isinstance(content, dict):
        yield from content.items()
        nested = [value for key, value in content.items() if key not in LABEL_MAP_KEYS]
    else:
        nested = content if isinstance(content, list) else []
    for value in nested:
        yield from _settings(value)


def _refuse_unsafe_settings(content: dict[str, Any], name: str) -> None:
    """Raises a ModelError for settings that load code, kernels or files from elsewhere, and for quantized weights."""
    refuse_code(content, name, CONFIG)
    for key, value in _settings(content):
        is_kernel = key in ATTENTION_KEYS and "/" in str(value)
        if is_kernel or (key in EXTERNAL_PART_KEYS and value):
            raise ModelError(
                f"{name} has {key} in {CONFIG}, which lets transformers load parts from elsewhere."
                f" If you trust the model, remove {key} from the file."
            )
        if key == "quantization_config" and value:
            raise ModelError(
                f"{name} holds quantized weights ({key} in {CONFIG}), which can be neither trained nor exported."
                " Choose the model that was quantized, and quantize it with deploykit."
            )


def _refuse_external_weights(folder: Path, name: str) -> None:
    """Raises a ModelError if the weights, or some of them, lie outside the model's directory."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{name} is an adapter ({ADAPTER_CONFIG}), which takes its weights from another model."
            " Merge it into that model (merge_and_unload in peft) and save the merged model."
        )
    for index in folder.glob("*.index.json"):
        files = read_json(index, name).get("weight_map", {})
        outside = [file for file in files.values() if not isinstance(file, str) or Path(file).name != file]
        if outside:
            raise ModelError(
                f"{name} has {outside[0]!r} in {index.name}, which is not the name of a file in its directory."
                " Download or save the model again."
            )


def _translated_to_4(content: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translates settings that transformers 5 wrote for a configuration class of 4.57.

    Args:
        content: of config.json.
        parameters: of the class's constructor.

    Raises:
        ModelError: see `_untranslatable_key`.
    """
    content = dict(content)
    rope = content.pop("rope_parameters", None)
    if rope and "rope_parameters" not in parameters:
        per_layer_type = all(isinstance(value, dict) for value in rope.values())
        translate = _translated_rope_by_layer_type if per_layer_type else _translated_rope
        content |= translate(rope, parameters)
    layer_types = content.get("layer_types")
    if layer_types and "layer_types" not in parameters and set(layer_types) != {"full_attention"}:
        period = _full_attention_period(layer_types)
        if "global_attn_every_n_layers" not in parameters or not period:
            raise _untranslatable_key("layer_types")
        content["global_attn_every_n_layers"] = period
        del content["layer_types"]
    return content


def _translated_rope(rope: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translates `rope_parameters` that hold for all layers."""
    scaling = dict(rope)
    names = ("rope_theta", "partial_rotary_factor")
    settings: dict[str, Any] = {name: scaling.pop(name) for name in names if name in scaling}
    if scaling.get("rope_type", "default") != "default":
        settings["rope_scaling"] = scaling
    if set(settings) - set(parameters):
        raise _untranslatable_key("rope_parameters")
    return settings


def _translated_rope_by_layer_type(rope: dict[str, dict[str, Any]], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translates `rope_parameters` that hold a dictionary for each type of layer."""
    settings: dict[str, Any] = {}
    for layer_type, values in rope.items():
        name = next((name for name in ROPE_THETA_PARAMETERS.get(layer_type, ()) if name in parameters), None)
        has_only_theta = set(values) <= {"rope_theta", "rope_type"} and values.get("rope_type", "default") == "default"
        if name is None or not has_only_theta:
            raise _untranslatable_key("rope_parameters")
        settings[name] = values["rope_theta"]
    return settings


def _full_attention_period(layer_types: list[str]) -> int | None:
    """Returns n if layers 0, n, 2n, ... have full attention and all others sliding attention; None if there is no n."""
    for period in range(1, len(layer_types) + 1):
        pattern = ["sliding_attention" if index % period else "full_attention" for index in range(len(layer_types))]
        if layer_types == pattern:
            return period
    return None


def _untranslatable_key(key: str) -> ModelError:
    """Returns the error for a setting without an equivalent in 4.57; `read` puts the model's name before it."""
    return ModelError(
        f"was saved by transformers 5, and transformers {transformers.__version__} cannot read its {key}."
        " Install transformers 5, or save the model with 4.57."
    )


def _adapted_to_5(content: dict[str, Any]) -> dict[str, Any]:
    """Replaces the `layer_types` of older T5 decoders by their number.

    They describe the decoder, and transformers 5 would compare their number with the encoder's depth.
    """
    content = dict(content)
    if content["model_type"] == "t5" and (layer_types := content.pop("layer_types", None)):
        content["decoder_layers"] = len(layer_types)
    return content
