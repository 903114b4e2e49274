"""Weights in blocks of 4 or 8 bits, activations in float: for decoders that generate token by token.

Such decoders spend most of their time reading weights, so fewer bytes help more than faster arithmetic. But prompts and
batches get slower (onnxruntime#23004). Optimum's `ORTQuantizer` does not support 4 bits, so ONNX Runtime's
`MatMulNBitsQuantizer` is used, which writes the operator `MatMulNBits`. Embeddings and the head stay in float.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from deploykit.artifact.execution import Device
from deploykit.graphs import matmuls
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

# The next import configures logging for the whole process, unless there is a handler.
_handler = logging.NullHandler()
logging.getLogger().addHandler(_handler)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: E402

logging.getLogger().removeHandler(_handler)

PRECISION = "int4"  # with the default `bits`
ENGINES = ("onnxruntime", "openvino")
DEVICES: tuple[Device, ...] = ("cpu",)
SEARCHED: Mapping[str, Mapping[str, Any]] = {"size": {}}
OPERATORS = ("MatMul",)


class Options(Base):
    """Weights in blocks of few bits."""

    bits: Literal[4, 8] = 4
    """Bits per weight."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Consecutive weights of a column that share a scale."""
    accuracy_level: Literal[0, 1, 4] = 4
    """Arithmetic of the MatMuls: 4 is int8, 1 is float32, 0 lets ONNX Runtime choose."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a copy with weights in blocks of few bits; see `Quantizer.quantize`. The facts also have the `bits`."""
    model = matmuls.load(graph)
    names = matmuls.choose(model, float_nodes, OPERATORS)
    float_matmuls = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in names]
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=options.bits,
        block_size=options.block_size,
        accuracy_level=options.accuracy_level,
        nodes_to_exclude=float_matmuls,
    )
    quantizer.process()
    onnx.save(quantizer.model.model, target)
    return {**matmuls.check(target, f"int{options.bits}", len(names)), "bits": options.bits}
