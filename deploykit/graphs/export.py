"""Exports a transformers model to ONNX, with torch's tracing exporter.

Attention is eager, and its masks are made here, in the form that ONNX Runtime's fusions recognize. The masks of
transformers use operations that cannot be traced, or have a form that is not fused. The newer exporter (`dynamo=True`)
is not used: it gives nodes and axes no names, and takes about ten times as long, and pruners export many graphs.
"""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import masking_utils

from deploykit.artifact import GRAPH
from deploykit.engines import input_names
from deploykit.graphs import traced_graph

TRACED_ROWS, TRACED_TOKENS = 2, 16  # of the batch that the model is traced with
TRACED_PADDING = 3  # tokens of padding at the end of its second row
DYNAMIC_AXES = {0: "batch_size", 1: "sequence_length"}  # names of the axes of any size, by index
ENCODER_AXES = {**DYNAMIC_AXES, 1: "encoder_sequence_length"}  # for inputs of a decoder that come from its encoder
ENCODER_DECODER, TOKEN_CLASSIFICATION = "text2text-generation", "token-classification"  # as Optimum names tasks
# Model types whose graphs the tests compare with torch. For a model of another type, a trial export precedes training.
TESTED_MODEL_TYPES = {
    *("albert", "bart", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "marian"),
    *("modernbert", "mpnet", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta"),
}
Tensors = Mapping[str, torch.Tensor]
TracedCall = Callable[[Callable[..., Any], Tensors], Any]  # (a model's forward, batch) -> one or several tensors
Outputs = Mapping[str, tuple[str, ...]]  # names of the axes after the batch, such as ("tokens", "labels"), by output


def write_graph(model: Any, folder: Path, task: str, opset: int, outputs: Outputs | None = None) -> None:
    """Writes `model.onnx`, whose inputs may have any batch size and sequence length.

    An encoder-decoder becomes two graphs, `encoder_model.onnx` and `decoder_model.onnx`, without a cache of keys and
    values.

    Args:
        model: with eager attention; it is not changed.
        folder: where to write.
        task: name of the task, as Optimum spells it.
        opset: ONNX opset version.
        outputs: the model's outputs to export; default: its logits.
    """
    if task == ENCODER_DECODER:
        _write_encoder_and_decoder(model, folder, opset)
        return
    outputs = outputs or {"logits": ("tokens", "labels") if task == TOKEN_CLASSIFICATION else ("labels",)}
    batch = _sample_images(model) if "pixel_values" in input_names(model) else _sample_texts(model)
    _trace(model, partial(_call_for_outputs, list(outputs)), batch, outputs, folder / GRAPH, opset)


def _write_encoder_and_decoder(model: Any, folder: Path, opset: int) -> None:
    """Writes the two graphs of an encoder-decoder; the decoder reads the encoder's states as an input."""
    encoder, texts = model.get_encoder(), _sample_texts(model)
    batch = {name: texts[name] for name in ("input_ids", "attention_mask")}
    outputs = {"last_hidden_state": ("tokens", "hidden")}
    _trace(encoder, _call_encoder, batch, outputs, folder / "encoder_model.onnx", opset)
    with torch.inference_mode():
        states = encoder(**batch)[0].clone()
    decoder_batch = {
        "encoder_attention_mask": batch["attention_mask"],
        "input_ids": batch["input_ids"][:, 1:],  # another length than the encoder's
        "encoder_hidden_states": states,
    }
    outputs = {"logits": ("tokens", "labels")}
    _trace(model, _call_decoder, decoder_batch, outputs, folder / "decoder_model.onnx", opset)


def _sample_texts(model: Any) -> dict[str, torch.Tensor]:
    """Returns a batch of texts, with the inputs that the model reads."""
    vocabulary_size, end_id = model.get_input_embeddings().num_embeddings, getattr(model.config, "eos_token_id", None)
    ids, mask = _sample_ids(vocabulary_size, TRACED_TOKENS)
    if isinstance(end_id, int) and 0 < end_id < vocabulary_size:  # BART and T5 classify at the only end token of a text
        ids = torch.where(ids == end_id, end_id - 1, ids)
        ids = ids.index_fill(1, torch.tensor(TRACED_TOKENS - TRACED_PADDING - 1), end_id)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: batch[name] for name in batch if name in input_names(model)}


def _sample_images(model: Any) -> dict[str, torch.Tensor]:
    """Returns a batch of images of the only size that the model reads, and texts if it reads any."""
    size = getattr(model.config, "vision_config", model.config).image_size
    height, width = (size, size) if isinstance(size, int) else size
    batch = {
        "pixel_values": torch.linspace(-1, 1, TRACED_ROWS * 3 * height * width).reshape(TRACED_ROWS, 3, height, width)
    }
    if "input_ids" in input_names(model):
        tokens = min(TRACED_TOKENS, model.config.text_config.max_position_embeddings)
        ids, mask = _sample_ids(model.get_input_embeddings().num_embeddings, tokens)
        batch |= {"input_ids": ids, "attention_mask": mask}
    return {name: batch[name] for name in batch if name in input_names(model)}


def _sample_ids(vocabulary_size: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and attention mask of `TRACED_ROWS` texts, `(rows, tokens)` each; the last row ends with padding."""
    ids = torch.arange(TRACED_ROWS * tokens).reshape(TRACED_ROWS, tokens) % vocabulary_size
    mask = torch.ones_like(ids)
    mask[-1, -TRACED_PADDING:] = 0
    return ids, mask


def _call_for_outputs(names: Sequence[str], forward: Callable[..., Any], batch: Tensors) -> Any:
    """Returns the named outputs of a model; with the names bound, a `TracedCall`."""
    outputs = forward(**batch, return_dict=True)
    return tuple(outputs[name] for name in names)


def _call_encoder(forward: Callable[..., Any], batch: Tensors) -> Any:
    """Returns the last states of an encoder; a `TracedCall`."""
    return forward(**batch, return_dict=True).last_hidden_state


def _call_decoder(forward: Callable[..., Any], batch: Tensors) -> Any:
    """Returns the logits of an encoder-decoder from the states of its encoder; a `TracedCall`."""
    return forward(
        encoder_outputs=(batch["encoder_hidden_states"],),
        attention_mask=batch["encoder_attention_mask"],
        decoder_input_ids=batch["input_ids"],
        use_cache=False,
        return_dict=True,
    ).logits


def _trace(model: Any, call: TracedCall, batch: Tensors, outputs: Outputs, file: Path, opset: int) -> None:
    """Traces `call(model.forward, batch)`, and writes the graph to a file."""
    axes = {name: ENCODER_AXES if name.startswith("encoder") else DYNAMIC_AXES for name in batch}
    axes |= {name: {0: DYNAMIC_AXES[0]} for name in batch if name == "pixel_values"}
    for name, row_axes in outputs.items():
        token_axes = {index: DYNAMIC_AXES[1] for index, axis in enumerate(row_axes, 1) if axis == "tokens"}
        axes[name] = {0: DYNAMIC_AXES[0], **token_axes}
    with _traceable(model, call, list(batch)), warnings.catch_warnings(), torch.no_grad():
        # The tracer warns about Python values that become constants; parity with torch is measured instead.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(batch.values()),
            str(file),
            input_names=list(batch),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    written = onnx.load(file)
    traced_graph.rewrite(written.graph)
    onnx.save(written, file)


@contextmanager
def _traceable(model: Any, call: TracedCall, names: Sequence[str]) -> Iterator[None]:
    """Replaces a model's `forward` by `call` with positional tensors, and its attention masks by traceable ones.

    The model itself is traced instead of a wrapper, so that the names of nodes begin with those of its submodules.

    Args:
        model: is put back into its former state in the end.
        call: computes the outputs; it gets the original `forward`.
        names: of the tensors, in the order of the positions.
    """
    original, training, mask_functions = model.forward, model.training, masking_utils.ALL_MASK_ATTENTION_FUNCTIONS

    def forward(_: Any, *tensors: torch.Tensor) -> Any:
        return call(original, dict(zip(names, tensors, strict=True)))

    model.forward = types.MethodType(forward, model)
    mask_functions["eager"] = _additive_mask
    model.eval()
    try:
        yield
    finally:
        del mask_functions["eager"], model.forward
        model.train(training)


def _additive_mask(
    *,
    kv_length: int,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    cache_position: torch.Tensor | None = None,
    q_length: int = 0,
    q_offset: int = 0,
    kv_offset: int = 0,
    **_: Any,
) -> Any:
    """Returns a mask to add to the attention scores, `(batch or 1, 1, queries or 1, keys)`.

    It is 0 where a query may attend to a key, and the lowest number elsewhere; None if every query may attend to every
    key. It replaces `masking_utils.eager_mask`, and takes the arguments of two versions of transformers: 4.57 passes
    the positions of the queries as `cache_position`, 5 their number as `q_length`.
    """
    queries = torch.arange(q_length) + q_offset if cache_position is None else cache_position
    keys = torch.arange(kv_length) + kv_offset
    lowest = torch.finfo(dtype).min
    unpadded = None if attention_mask is None else attention_mask[:, None, None, :].to(dtype)  # 1 for real tokens
    if _is_bidirectional(mask_function):
        return None if unpadded is None else (1.0 - unpadded) * lowest
    visible = mask_function(torch.arange(1)[:, None, None, None], 0, queries[:, None], keys[None, :])
    visible = visible.to(dtype).reshape(1, 1, queries.shape[0], keys.shape[0])  # the tracer makes `len` a constant
    return (1.0 - (visible if unpadded is None else visible * unpadded)) * lowest


def _is_bidirectional(mask_function: Callable[..., Any]) -> bool:
    """Says whether every token may attend to every other."""
    return mask_function is getattr(masking_utils, "bidirectional_mask_function", None)
