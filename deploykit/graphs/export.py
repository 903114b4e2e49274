"""Exports a torch module to ONNX, with torch's tracing exporter.

Attention is eager and its masks are made here, in the form that ONNX Runtime's fusions recognize: transformers would
build them with operations that cannot be traced, or in a form that is not fused. The newer exporter (`dynamo=True`)
takes about ten times as long and gives nodes and axes no names, and pruners export a graph for each candidate.
"""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper
from transformers import masking_utils

from deploykit.artifact import GRAPH
from deploykit.engines import input_names

ROWS, TOKENS, PADDING_TOKENS = 2, 16, 3  # of the traced batch; the second row ends with padding
AXES = {0: "batch_size", 1: "sequence_length"}
SHAPE_OPERATORS = ("Expand", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
ENCODER_DECODER, TOKEN_CLASSIFICATION = "text2text-generation", "token-classification"
# Model types whose graphs the tests compare with torch; of others a trial export is made before training.
EXPORTED = {
    *("albert", "bart", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "marian"),
    *("modernbert", "mpnet", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta"),
}
ENCODER_AXES = {**AXES, 1: "encoder_sequence_length"}
Array = npt.NDArray[Any]
Tensors = Mapping[str, torch.Tensor]
Call = Callable[[Callable[..., Any], Tensors], Any]  # (forward, batch) -> the output tensor, or several
Outputs = Mapping[str, tuple[str, ...]]


def write_graph(model: Any, folder: Path, task: str, opset: int, outputs: Outputs | None = None) -> None:
    """Writes `model.onnx` with dynamic batch and sequence axes.

    An encoder-decoder becomes two graphs without a cache, `encoder_model.onnx` and `decoder_model.onnx`.

    Args:
        model: with eager attention; it is not changed.
        folder: where to write.
        task: name of the task, as Optimum spells it.
        opset: ONNX opset version.
        outputs: of the model, each with its axes after the batch, as the task names them; default: its logits.
    """
    outputs = outputs or {"logits": ("tokens", "labels") if task == TOKEN_CLASSIFICATION else ("labels",)}
    if "pixel_values" in input_names(model):
        _write(model, partial(_named_outputs, list(outputs)), _sample_images(model), outputs, folder / GRAPH, opset)
        return
    vocabulary_size, end_id = model.get_input_embeddings().num_embeddings, getattr(model.config, "eos_token_id", None)
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % vocabulary_size
    mask = torch.ones_like(ids)
    mask[-1, -PADDING_TOKENS:] = 0
    if isinstance(end_id, int) and 0 < end_id < vocabulary_size:  # BART and T5 classify at the only end token of a text
        ids = torch.where(ids == end_id, end_id - 1, ids)
        ids = ids.index_fill(1, torch.tensor(TOKENS - PADDING_TOKENS - 1), end_id)
    if task != ENCODER_DECODER:
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        names = [name for name in batch if name in input_names(model)]
        read = partial(_named_outputs, list(outputs))
        _write(model, read, {name: batch[name] for name in names}, outputs, folder / GRAPH, opset)
        return
    encoder, batch = model.get_encoder(), {"input_ids": ids, "attention_mask": mask}
    states_output = {"last_hidden_state": ("tokens", "hidden")}
    _write(encoder, _states, batch, states_output, folder / "encoder_model.onnx", opset)
    with torch.inference_mode():
        states = encoder(**batch)[0].clone()
    batch = {"encoder_attention_mask": mask, "input_ids": ids[:, 1:], "encoder_hidden_states": states}
    _write(model, _decoded, batch, {"logits": ("tokens", "labels")}, folder / "decoder_model.onnx", opset)


def _sample_images(model: Any) -> dict[str, torch.Tensor]:
    """Returns a batch of images, with texts if the model reads any; the size of the images is fixed."""
    size = getattr(model.config, "vision_config", model.config).image_size
    height, width = (size, size) if isinstance(size, int) else size
    batch = {"pixel_values": torch.linspace(-1, 1, ROWS * 3 * height * width).reshape(ROWS, 3, height, width)}
    if "input_ids" in input_names(model):
        tokens = min(TOKENS, model.config.text_config.max_position_embeddings)
        ids = torch.arange(ROWS * tokens).reshape(ROWS, tokens) % model.get_input_embeddings().num_embeddings
        batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batch["attention_mask"][-1, -PADDING_TOKENS:] = 0
    return {name: batch[name] for name in batch if name in input_names(model)}


def _named_outputs(names: Sequence[str], forward: Callable[..., Any], batch: Tensors) -> Any:
    outputs = forward(**batch, return_dict=True)
    return tuple(outputs[name] for name in names)


def _states(forward: Callable[..., Any], batch: Tensors) -> Any:
    return forward(**batch, return_dict=True).last_hidden_state


def _decoded(forward: Callable[..., Any], batch: Tensors) -> Any:
    return forward(
        encoder_outputs=(batch["encoder_hidden_states"],),
        attention_mask=batch["encoder_attention_mask"],
        decoder_input_ids=batch["input_ids"],
        use_cache=False,
        return_dict=True,
    ).logits


def _write(model: Any, call: Call, batch: Tensors, outputs: Outputs, file: Path, opset: int) -> None:
    """Traces `call(forward, batch)` and writes the graph."""
    axes = {name: ENCODER_AXES if name.startswith("encoder") else AXES for name in batch}
    axes |= {name: {0: AXES[0]} for name in batch if name == "pixel_values"}
    for name, of_row in outputs.items():
        tokens = {index: AXES[1] for index, axis in enumerate(of_row, 1) if axis == "tokens"}
        axes[name] = {0: AXES[0], **tokens}
    with _traceable(model, call, list(batch)), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # about Python values that become constants; parity with torch is measured instead
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
    model_file = onnx.load(file)
    _skip_boolean_masks(model_file.graph)
    constants = _constants(model_file.graph)
    _write_heads(model_file.graph, constants)
    _divide_scores(model_file.graph, constants)
    _drop_unread(model_file.graph)
    onnx.save(model_file, file)


@contextmanager
def _traceable(model: Any, call: Call, names: Sequence[str]) -> Iterator[None]:
    """Replaces a model's forward pass by one from positional tensors to tensors, and its masks by traceable ones.

    The model itself is traced instead of a wrapper, so that names of nodes begin with its submodules.
    """
    original, training, table = model.forward, model.training, masking_utils.ALL_MASK_ATTENTION_FUNCTIONS

    def forward(_: Any, *tensors: torch.Tensor) -> Any:
        return call(original, dict(zip(names, tensors, strict=True)))

    model.forward = types.MethodType(forward, model)
    table["eager"] = _mask
    model.eval()
    try:
        yield
    finally:
        del table["eager"], model.forward
        model.train(training)


def _mask(
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
    """Returns a mask to add to the scores, `(batch or 1, 1, queries or 1, keys)`: 0 where a query may attend.

    Replaces `masking_utils.eager_mask` and takes the arguments of both versions: transformers 4.57 passes the positions
    of the queries as `cache_position`, 5 their number.
    """
    queries = torch.arange(q_length) + q_offset if cache_position is None else cache_position
    keys = torch.arange(kv_length) + kv_offset
    lowest = torch.finfo(dtype).min
    padding = None if attention_mask is None else attention_mask[:, None, None, :].to(dtype)
    if _is_bidirectional(mask_function):
        return None if padding is None else (1.0 - padding) * lowest
    visible = mask_function(torch.arange(1)[:, None, None, None], 0, queries[:, None], keys[None, :])
    visible = visible.to(dtype).reshape(1, 1, queries.shape[0], keys.shape[0])  # `len` would become a constant
    return (1.0 - (visible if padding is None else visible * padding)) * lowest


def _is_bidirectional(mask_function: Callable[..., Any]) -> bool:
    """Says whether every token attends to every other."""
    return mask_function is getattr(masking_utils, "bidirectional_mask_function", None)


def _skip_boolean_masks(graph: Any) -> None:
    """Converts attention masks, which hold only 0 and 1, to float directly and not by way of a boolean.

    OpenVINO stores a boolean as a byte. In a graph with int8 weights it takes the `(1 - mask) * lowest` that follows
    for a dequantization, and divides the scores by `lowest` to bring both to one scale: all scores become 0.
    """
    inputs = {value.name for value in graph.input}
    for cast in [node for node in graph.node if _casts_to(node, TensorProto.BOOL) and node.input[0] in inputs]:
        readers, names = [], [cast.output[0]]
        while names:
            name = names.pop()
            readers += (consumers := [node for node in graph.node if name in node.input])
            names += [node.output[0] for node in consumers if node.op_type in SHAPE_OPERATORS]
        if all(node.op_type in (*SHAPE_OPERATORS, "Shape") or _casts_to(node, TensorProto.FLOAT) for node in readers):
            for node in readers:
                node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
            graph.node.remove(cast)


def _casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(entry.name == "to" and entry.i == kind for entry in node.attribute)


def _constants(graph: Any) -> dict[str, Array]:
    """Returns the constants of a graph by name; the tracer stores equal ones once, and copies them by Identity."""
    values = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    return values


def _write_heads(graph: Any, constants: Mapping[str, Array]) -> None:
    """Writes the number of heads into the shape of each layer's queries, keys and values.

    `(batch, tokens, -1, size)` becomes `(batch, tokens, heads, size)`: fusions read the number there, and would
    otherwise take that of the configuration, which is wrong for a pruned layer.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        shape = producers.get(node.input[1])
        if shape is None or shape.op_type != "Concat" or len(shape.input) != 4:
            continue
        heads, size = (int(constants.get(name, np.zeros(1)).reshape(-1)[0]) for name in shape.input[2:])
        width = _width(node.input[0], producers, constants)
        if width and heads == -1 and size > 0:
            shape.input[2] = _constant(graph, f"heads_{width // size}", np.array([width // size]))


def _divide_scores(graph: Any, constants: Mapping[str, Array]) -> None:
    """Divides attention scores by the root of the head size, where transformers 5 multiplies by its inverse.

    ONNX Runtime's fusions find the mask, a product, beside the scores, and would take scaled scores for it.
    """
    producers = {name: node for node in graph.node for name in node.output}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        total = producers.get(softmax.input[0])
        for scores in [producers.get(name) for name in (total.input if total and total.op_type == "Add" else [])]:
            if scores is None or scores.op_type != "Mul" or producers[scores.input[0]].op_type != "MatMul":
                continue
            factor = constants.get(scores.input[1])
            if factor is not None and factor.size == 1:
                scores.op_type = "Div"
                scores.input[1] = _constant(graph, f"{scores.input[1]}_divisor", (1 / factor).astype(factor.dtype))


def _drop_unread(graph: Any) -> None:
    read = set(_read(graph))
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)


def _read(graph: Any) -> Iterator[str]:
    """Yields the names of tensors that are read, also inside branches."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def _width(name: str, producers: Mapping[str, Any], constants: Mapping[str, Array]) -> int:
    """Returns the columns of the constant weight whose product a tensor is; 0 for other tensors."""
    node = producers.get(name)
    if node is not None and node.op_type == "Add":  # with a bias, on either side
        node = next((producers[part] for part in node.input if part in producers and part not in constants), None)
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return 0
    return int(constants[node.input[1]].shape[-1])


def _constant(graph: Any, name: str, value: Array) -> str:
    if all(existing.name != name for existing in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name
