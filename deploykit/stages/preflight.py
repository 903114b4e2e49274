"""Checks of a base model before it is trained, so that hours of training do not end in a failed export.

`check` needs only the files and takes a second or two; every plan of a run includes it. `try_out` and `try_export` need
the model in memory: they run it on its longest input, and export it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from deploykit import engines
from deploykit.artifact import ARCHITECTURE, GRAPH, PREPROCESSOR
from deploykit.artifact.execution import Execution
from deploykit.engines import input_names
from deploykit.errors import ModelError
from deploykit.evaluation import parity
from deploykit.graphs import export as exporter
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.modeling import base_images, base_model, checkpoint, configuration
from deploykit.modeling.base_model import Base
from deploykit.recipe import ExportSection
from deploykit.tasks import Example
from deploykit.tokenizer import Tokenizer, lengthen

CHECK_ENGINE = "onnxruntime"  # runs the graph of the trial export
EXPORT_ADVICE = "Choose another model, or stop before the export with --until train."
MAX_TRIAL_TOKENS = 4096  # of the input in `try_out`; longer ones take minutes
FLOAT32_BYTES = 4
MAX_GRAPH_BYTES = 2**31  # protobuf's limit for a message, and so for an ONNX file
MAX_WEIGHTS_SHARE = 0.99  # of the bytes of a graph; the rest is left for its nodes
TEXT_ONLY = frozenset({"text"})  # what an input consists of, for most tasks


def check(
    base: Base, auto_class: str, max_tokens: int | None, *, is_exported_whole: bool, reads: frozenset[str] = TEXT_ONLY
) -> None:
    """Raises a ModelError if a base model's files show that the run will fail.

    Args:
        base: the model.
        auto_class: the task's auto class in transformers.
        max_tokens: the recipe's limit of tokens.
        is_exported_whole: the recipe exports the model without pruning it.
        reads: what an input consists of: `image`, `text` or both.
    """
    config = configuration.read(base.folder, base.name)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = base_images.save(base, Path(name), max_tokens, reads)
    parameters = _count_parameters(base, "AutoModel" if len(reads) > 1 else auto_class, config)
    text = tokenizer.text_tokenizer if isinstance(tokenizer, ImageTokenizer) else tokenizer
    embeddings = getattr(config.text_config if len(reads) > 1 else config, "vocab_size", None)
    if text and isinstance(embeddings, int):
        require_embeddings(text, embeddings, base.name)
    if is_exported_whole:
        require_one_file(parameters, base.name)


def require_embeddings(tokenizer: Tokenizer, embeddings: int, name: str) -> None:
    """Raises a ModelError if the tokenizer of the model `name` has tokens without an embedding.

    Args:
        tokenizer: of the model.
        embeddings: how many embeddings the model has.
        name: of the model in messages.
    """
    vocabulary = tokenizer.backend.get_vocab()
    lacking = {token_id: token for token, token_id in vocabulary.items() if token_id >= embeddings}
    if lacking:
        raise ModelError(
            f"{name} has a tokenizer with the token {lacking[min(lacking)]!r} at {min(lacking)}, and embeddings for"
            f" {embeddings} tokens only ({len(lacking)} tokens have none). Call"
            f" resize_token_embeddings({max(lacking) + 1}) on the model and save it, or remove the tokens from the"
            " tokenizer."
        )


def require_one_file(parameters: int, name: str) -> None:
    """Raises a ModelError if the model `name` has too many weights for one ONNX file."""
    weights_bytes = parameters * FLOAT32_BYTES
    if weights_bytes > MAX_GRAPH_BYTES * MAX_WEIGHTS_SHARE:
        raise ModelError(
            f"{name} has {weights_bytes / 1e9:.2f} GB of weights in float32, and graphs of 2 GB and more are not"
            " supported. Choose a smaller model, or stop before the export with --until train."
        )


def _count_parameters(base: Base, auto_class: str, config: Any) -> int:
    """Counts the weights of a model with the task's head, without allocating them."""
    if (base.folder / ARCHITECTURE).is_file():
        return count_stored_parameters(base.folder)
    try:
        with torch.device("meta"):
            model_class = base_model.model_class_of(config, auto_class)
            return checkpoint.count_parameters(model_class._from_config(config, attn_implementation="eager"))
    except Exception as error:  # transformers raises errors of many types here
        raise base_model.loading_error(base, auto_class, error) from error


def count_stored_parameters(folder: Path) -> int:
    """Counts the weights in a model's safetensors files; only the headers are read."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            count += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118
    return count


def try_out(model: Any, tokenizer: AnyTokenizer, name: str, *, is_pair: bool) -> None:
    """Runs a model once on the longest input that it may get, with the largest token id and all token types.

    Args:
        model: the model in memory.
        tokenizer: of the model.
        name: of the model in messages.
        is_pair: an input consists of two texts, the second one with another token type.

    Raises:
        ModelError: the model fails.
    """
    if isinstance(tokenizer, ImageTokenizer):
        _try_image(model, tokenizer, name)
        return
    require_embeddings(tokenizer, model.get_input_embeddings().num_embeddings, name)
    tokens, largest_id = min(tokenizer.max_tokens, MAX_TRIAL_TOKENS), max(tokenizer.backend.get_vocab().values())
    token_types = torch.zeros(1, tokens, dtype=torch.long)
    token_types[:, tokens // 2 :] = int(is_pair and tokenizer.uses_type_ids)
    batch = {
        "input_ids": torch.full((1, tokens), largest_id),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long),
        "token_type_ids": token_types,
    }
    end_id = getattr(model.config, "eos_token_id", None)
    if isinstance(end_id, int) and end_id <= largest_id:
        batch["input_ids"][:, -1] = end_id  # some models classify a text by the state at its end token
    advice = "Set data.max_tokens to what the model supports, or check that its tokenizer belongs to it."
    _run_once(model, batch, f"{name} fails on an input of {tokens} tokens, the longest that it may get", advice)


def _try_image(model: Any, tokenizer: ImageTokenizer, name: str) -> None:
    """Runs a model once on a blank image, with a text of full length if the model also reads texts."""
    longest = lengthen(tokenizer.blank_features(), tokenizer.max_tokens)
    (batch,) = pad_in_batches([longest], tokenizer, 1)
    height, width = tokenizer.preprocessing.size
    tensors = {key: torch.from_numpy(array) for key, array in batch.items()}
    problem = f"{name} fails on an image of {height} x {width} pixels, to which its {PREPROCESSOR} resizes all images"
    _run_once(model, tensors, problem, f"Check that its {PREPROCESSOR} and its tokenizer belong to it.")


def _run_once(model: Any, batch: dict[str, torch.Tensor], problem: str, advice: str) -> None:
    """Runs a batch in evaluation mode; raises a ModelError of the `problem` and the `advice` if the model fails."""
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(**{key: value for key, value in batch.items() if key in input_names(model)})
    except Exception as error:  # of any type
        raise ModelError(f"{problem} ({type(error).__name__}: {configuration.first_line(error)}). {advice}") from error
    finally:
        model.train(training)


def try_export(predictor: Predictor, model: Any, examples: Sequence[Example], export: ExportSection, name: str) -> None:
    """Exports a model before it is trained, unless its type is known to work.

    Args:
        predictor: runs the model.
        model: the model in memory; is not changed.
        examples: inputs on which the graph is compared with the model.
        export: the recipe's section.
        name: of the model in messages.

    Raises:
        ModelError: it cannot be exported, or the graph computes something else.
    """
    model_type = model.config.model_type
    if model_type in exporter.TESTED_MODEL_TYPES:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            checkpoint.save(model, folder)
            task, loaded = predictor.task, checkpoint.load(folder)
            exporter.write_graph(loaded, folder, task.OPTIMUM_TASK, export.opset, task.OUTPUTS)
            engine = engines.load(CHECK_ENGINE).load(folder / GRAPH, Execution(engine=CHECK_ENGINE))
            worst = max(parity.difference(predictor, engine, examples).values())
        except Exception as error:  # of any type
            raise ModelError(
                f"{name} cannot be exported to ONNX: models of type {model_type!r} fail with {type(error).__name__}:"
                f" {configuration.first_line(error)}. {EXPORT_ADVICE}"
            ) from error
    if not worst <= export.tolerance:
        raise ModelError(
            f"{name} cannot be exported to ONNX: the graph of this {model_type!r} model differs from torch by"
            f" {worst:.2e}, allowed {export.tolerance:.0e}. {EXPORT_ADVICE}"
        )
