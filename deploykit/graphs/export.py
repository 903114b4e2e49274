"""A module in memory becomes an ONNX graph, by torch's exporter that follows one run of it.

Attention is eager, and its masks are made here, in the form that the fusions of ONNX Runtime know: transformers would
build them with operations that cannot be traced, or in a form that is not fused. The other exporter of torch takes some
ten times as long and gives nodes and axes no names, and pruners export a graph for each of their candidates.
"""

import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

ROWS, TOKENS, PADDING = 2, 16, 3  # of the run that is followed; the second row ends with padding
AXES = {0: "batch_size", 1: "sequence_length"}
SHAPE_CHANGES = ("Expand", "Gather", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # of a mask
TWO_STACKS = "text2text-generation"
# Types of models whose graphs are compared with torch in the tests; others are tried before they are trained.
EXPORTED = {
    *("albert", "bart", "bert", "camembert", "deberta-v2", "distilbert", "electra", "ernie", "gpt2", "llama", "marian"),
    *("modernbert", "mpnet", "qwen2", "qwen3", "roberta", "t5", "xlm-roberta"),
}
READ_AXES = {**AXES, 1: "encoder_sequence_length"}  # of what a decoder is given of the text that was read
Array = npt.NDArray[Any]
Tensors = Mapping[str, torch.Tensor]
Answer = Callable[[Callable[..., Any], Tensors], Any]  # a model's forward pass and its arguments to one tensor


def write_graph(model: Any, folder: Path, task: str, opset: int) -> None:
    """Writes `model.onnx` with dynamic batch and sequence axes.

    A model that writes one text after reading another becomes two graphs without a cache, `encoder_model.onnx` and
    `decoder_model.onnx`.

    Args:
        model: in memory, with eager attention; its modes and methods are as before afterwards.
        folder: gets the graph.
        task: the exporter's name of the task.
        opset: of ONNX.
    """
    known, end = model.get_input_embeddings().num_embeddings, getattr(model.config, "eos_token_id", None)
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % known
    mask = torch.ones_like(ids)
    mask[-1, -PADDING:] = 0
    if isinstance(end, int) and 0 < end < known:  # some models read their answer at the one end that a text has
        ids = torch.where(ids == end, end - 1, ids).index_fill(1, torch.tensor(TOKENS - PADDING - 1), end)
    if task != TWO_STACKS:
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        names = [name for name in batch if name in input_names(model)]
        _write(model, _logits, {name: batch[name] for name in names}, "logits", folder / GRAPH, opset)
        return
    encoder, batch = model.get_encoder(), {"input_ids": ids, "attention_mask": mask}
    _write(encoder, _states, batch, "last_hidden_state", folder / "encoder_model.onnx", opset)
    with torch.inference_mode():
        states = encoder(**batch)[0].clone()
    batch = {"encoder_attention_mask": mask, "input_ids": ids[:, 1:], "encoder_hidden_states": states}
    _write(model, _decoded, batch, "logits", folder / "decoder_model.onnx", opset)


def _logits(run: Callable[..., Any], batch: Tensors) -> Any:
    return run(**batch, return_dict=True).logits


def _states(run: Callable[..., Any], batch: Tensors) -> Any:
    return run(**batch, return_dict=True).last_hidden_state


def _decoded(run: Callable[..., Any], batch: Tensors) -> Any:
    return run(
        encoder_outputs=(batch["encoder_hidden_states"],),
        attention_mask=batch["encoder_attention_mask"],
        decoder_input_ids=batch["input_ids"],
        use_cache=False,
        return_dict=True,
    ).logits


def _write(model: Any, answer: Answer, batch: Tensors, output: str, file: Path, opset: int) -> None:
    """Follows `answer(forward, batch)` and writes what was seen."""
    axes = {name: READ_AXES if name.startswith("encoder") else AXES for name in batch}
    with _traceable(model, answer, list(batch)) as run, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of what it cannot see; parity is measured instead
        torch.onnx.export(
            model,
            tuple(batch.values()),
            str(file),
            input_names=list(batch),
            output_names=[output],
            dynamic_axes={**axes, output: AXES if answer(run, batch).ndim > 2 else {0: AXES[0]}},
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
def _traceable(model: Any, answer: Answer, names: Sequence[str]) -> Iterator[Any]:
    """Gives a model a forward pass that takes tensors in order and returns one, and masks that can be traced.

    The model itself is traced, and no wrapper: names of nodes begin with its parts, and its mode stays evaluation.
    """
    run, training, table = model.forward, model.training, masking_utils.ALL_MASK_ATTENTION_FUNCTIONS

    def forward(_: Any, *tensors: torch.Tensor) -> Any:
        return answer(run, dict(zip(names, tensors, strict=True)))

    model.forward = types.MethodType(forward, model)
    table["eager"] = _mask
    model.eval()
    try:
        yield run
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
    """Makes a mask to add to the scores, `(batch or 1, 1, queries or 1, keys)`: 0 where attention is paid.

    Takes the place of `masking_utils.eager_mask`, and has the arguments of both versions: 4.57 gives the positions of
    the queries as `cache_position`, 5 their number.
    """
    queries = torch.arange(q_length) + q_offset if cache_position is None else cache_position
    keys = torch.arange(kv_length) + kv_offset
    least = torch.finfo(dtype).min
    padding = None if attention_mask is None else attention_mask[:, None, None, :].to(dtype)
    if _sees_all(mask_function):
        return None if padding is None else (1.0 - padding) * least
    seen = mask_function(torch.arange(1)[:, None, None, None], 0, queries[:, None], keys[None, :])
    seen = seen.to(dtype).reshape(1, 1, queries.shape[0], keys.shape[0])  # by `len` they would be frozen
    return (1.0 - (seen if padding is None else seen * padding)) * least


def _sees_all(mask_function: Callable[..., Any]) -> bool:
    """Says whether every token attends to every other."""
    return mask_function is getattr(masking_utils, "bidirectional_mask_function", None)


def _skip_boolean_masks(graph: Any) -> None:
    """Lets attention masks become float without being boolean first; they hold nothing but 0 and 1.

    OpenVINO keeps a boolean as a byte, and in a graph with int8 weights it takes `(1 - mask) * least` behind one for
    a dequantization: it divides the scores by `least` to bring both under one scale, and nothing is left of them.
    """
    inputs = {value.name for value in graph.input}
    for cast in [node for node in graph.node if _casts_to(node, TensorProto.BOOL) and node.input[0] in inputs]:
        readers, names = [], [cast.output[0]]
        while names:
            name = names.pop()
            readers += (behind := [node for node in graph.node if name in node.input])
            names += [node.output[0] for node in behind if node.op_type in SHAPE_CHANGES]
        if all(node.op_type in (*SHAPE_CHANGES, "Shape") or _casts_to(node, TensorProto.FLOAT) for node in readers):
            for node in readers:
                node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
            graph.node.remove(cast)


def _casts_to(node: Any, kind: int) -> bool:
    return node.op_type == "Cast" and any(entry.name == "to" and entry.i == kind for entry in node.attribute)


def _constants(graph: Any) -> dict[str, Array]:
    """Returns what is constant in a graph, by name; the tracer stores equal ones once and copies them."""
    found = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _write_heads(graph: Any, constants: Mapping[str, Array]) -> None:
    """Writes the heads of each attention into the shape that its queries, keys and values take.

    `(batch, tokens, -1, size)` becomes `(batch, tokens, heads, size)`: fusions read them there, and would otherwise
    take those of the configuration, which are wrong for a pruned layer.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        shape = makers.get(node.input[1])
        if shape is None or shape.op_type != "Concat" or len(shape.input) != 4:
            continue
        heads, size = (int(constants.get(name, np.zeros(1)).reshape(-1)[0]) for name in shape.input[2:])
        width = _width(node.input[0], makers, constants)
        if width and heads == -1 and size > 0:
            shape.input[2] = _constant(graph, f"heads_{width // size}", np.array([width // size]))


def _divide_scores(graph: Any, constants: Mapping[str, Array]) -> None:
    """Divides scores by the root of the head's size, where transformers 5 multiplies by one over it.

    A fusion that looks for the mask beside the scores, by the product that it is, would find the scores' own.
    """
    makers = {name: node for node in graph.node for name in node.output}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        total = makers.get(softmax.input[0])
        for scores in [makers.get(name) for name in (total.input if total and total.op_type == "Add" else [])]:
            if scores is None or scores.op_type != "Mul" or makers[scores.input[0]].op_type != "MatMul":
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
    """Yields the names of tensors that are read, also inside of branches."""
    yield from (found.name for found in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def _width(name: str, makers: Mapping[str, Any], constants: Mapping[str, Array]) -> int:
    """Returns the columns of the weight that a tensor is a product with; 0 if it is none."""
    node = makers.get(name)
    if node is not None and node.op_type == "Add":  # with a bias, on either side
        node = next((makers[found] for found in node.input if found in makers and found not in constants), None)
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return 0
    return int(constants[node.input[1]].shape[-1])


def _constant(graph: Any, name: str, value: Array) -> str:
    if all(found.name != name for found in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(value, name))
    return name
