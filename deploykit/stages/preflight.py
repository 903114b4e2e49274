"""What can be said of a base model before it is trained, so that hours of work do not end at the export.

`check` needs only the files and takes a second or two; it is a part of every plan. The trials run the model itself,
once, before the first step: on the longest input that it will be given, and through the exporter.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from deploykit import engines
from deploykit.artifact import ARCHITECTURE, GRAPH
from deploykit.artifact.execution import Execution
from deploykit.engines import input_names
from deploykit.errors import ModelError
from deploykit.evaluation import parity
from deploykit.graphs import export as exporter
from deploykit.inference.predictor import Predictor
from deploykit.modeling import base_tokenizer, checkpoint, configuration
from deploykit.modeling.checkpoint import Base
from deploykit.recipe import ExportSection
from deploykit.tasks import Example
from deploykit.tokenizer import Tokenizer

ENGINE = "onnxruntime"
INSTEAD = "Choose another model, or stop before the export with --until train."
LONGEST_TRIAL_TOKENS = 4096  # of models that read more; longer runs take minutes
FLOAT_BYTES = 4
LARGEST_GRAPH_BYTES = 2**31  # of a file in the format of ONNX
GRAPH_SHARE = 0.99  # of these are weights


def check(base: Base, auto_class: str, max_tokens: int | None, *, whole: bool) -> None:
    """Refuses a base model whose files show that the run cannot end well.

    Args:
        base: the model.
        auto_class: the task's class of transformers.
        max_tokens: the recipe's limit.
        whole: the model is exported as large as it is, and not pruned.

    Raises:
        ModelError: says what is wrong and what to do.
    """
    config = configuration.read(base.folder, base.name)
    with tempfile.TemporaryDirectory() as name:
        tokenizer = base_tokenizer.save(base, Path(name), max_tokens)
    count = _counted(base, auto_class, config)
    known = getattr(config, "vocab_size", None)
    if isinstance(known, int):
        require_embeddings(tokenizer, known, base.name)
    if whole:
        require_one_file(count, base.name)


def require_embeddings(tokenizer: Tokenizer, known: int, name: str) -> None:
    """Refuses a tokenizer with tokens for which the model has no embeddings.

    Raises:
        ModelError: names the first such token.
    """
    beyond = {place: token for token, place in tokenizer.backend.get_vocab().items() if place >= known}
    if beyond:
        raise ModelError(
            f"{name} has a tokenizer with the token {beyond[min(beyond)]!r} at {min(beyond)}, and embeddings for"
            f" {known} tokens only ({len(beyond)} tokens have none). Call resize_token_embeddings({max(beyond) + 1}) on"
            " the model and save it, or take the tokens out of the tokenizer."
        )


def require_one_file(count: int, name: str) -> None:
    """Refuses a model that does not fit one file of ONNX.

    Args:
        count: of its weights.
        name: what the message calls the model.

    Raises:
        ModelError: it is too large.
    """
    if count * FLOAT_BYTES > LARGEST_GRAPH_BYTES * GRAPH_SHARE:
        raise ModelError(
            f"{name} has {count * FLOAT_BYTES / 1e9:.2f} GB of weights in float32, and graphs of 2 GB and more are not"
            " supported. Choose a smaller model, or stop before the export with --until train."
        )


def _counted(base: Base, auto_class: str, config: Any) -> int:
    """Counts the weights of a model with the task's head, without making it."""
    if (base.folder / ARCHITECTURE).is_file():
        return stored(base.folder)
    try:
        with torch.device("meta"):
            model_class = checkpoint.class_of(config, auto_class)
            return checkpoint.parameters(model_class._from_config(config, attn_implementation="eager"))
    except Exception as error:  # the library checks in many places, each in its own way
        raise checkpoint.not_loaded(base, auto_class, error) from error


def stored(folder: Path) -> int:
    """Counts the weights in the files of a model, by their headers."""
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as opened:
            count += sum(int(np.prod(opened.get_slice(name).get_shape())) for name in opened.keys())  # noqa: SIM118
    return count


def try_out(model: Any, tokenizer: Tokenizer, name: str, *, pair: bool) -> None:
    """Runs a model once on the longest input that it will be given, with its last token and each type of token.

    Args:
        model: in memory; its mode is as before afterwards.
        tokenizer: the model's.
        name: what messages call the model.
        pair: inputs have two texts.

    Raises:
        ModelError: the model fails.
    """
    require_embeddings(tokenizer, model.get_input_embeddings().num_embeddings, name)
    tokens, last = min(tokenizer.max_tokens, LONGEST_TRIAL_TOKENS), max(tokenizer.backend.get_vocab().values())
    batch = {"input_ids": torch.full((1, tokens), last), "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
    types = torch.zeros(1, tokens, dtype=torch.long)
    types[:, tokens // 2 :] = int(pair and tokenizer.typed)
    batch |= {"token_type_ids": types}
    if isinstance(end := getattr(model.config, "eos_token_id", None), int) and end <= last:
        batch["input_ids"][:, -1] = end  # some models read their answer there
    training = model.training
    try:
        with torch.inference_mode():
            model.eval()(**{key: value for key, value in batch.items() if key in input_names(model)})
    except Exception as error:  # whatever the model runs into
        raise ModelError(
            f"{name} fails on an input of {tokens} tokens, the longest that it is to read"
            f" ({type(error).__name__}: {configuration.first_line(error)}). Set data.max_tokens to what the model"
            " reads, or check that its tokenizer belongs to it."
        ) from error
    finally:
        model.train(training)


def try_export(predictor: Predictor, model: Any, examples: Sequence[Example], export: ExportSection, name: str) -> None:
    """Exports a model before it is trained, if its type is not one of those that are known to work.

    Args:
        predictor: the model in torch with its tokenizer and task.
        model: the same, in memory; stays as it was.
        examples: real texts to compare on.
        export: the recipe's section.
        name: what messages call the model.

    Raises:
        ModelError: it cannot be exported, or the graph does not compute the same.
    """
    kind = model.config.model_type
    if kind in exporter.EXPORTED:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            checkpoint.save(model, folder)
            exporter.write_graph(checkpoint.load(folder), folder, predictor.task.OPTIMUM_TASK, export.opset)
            engine = engines.load(ENGINE).load(folder / GRAPH, Execution(engine=ENGINE))
            worst = max(parity.difference(predictor, engine, examples).values())
        except Exception as error:  # whatever the tracer runs into
            raise ModelError(
                f"{name} cannot be exported to ONNX: models of type {kind!r} fail with {type(error).__name__}:"
                f" {configuration.first_line(error)}. {INSTEAD}"
            ) from error
    if not worst <= export.tolerance:
        raise ModelError(
            f"{name} cannot be exported to ONNX: the graph of this {kind!r} model differs from torch by {worst:.2e},"
            f" allowed {export.tolerance:.0e}. {INSTEAD}"
        )
