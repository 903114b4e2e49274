"""Weights in blocks of 4 or 8 bits, activations in float: for decoders that generate token by token.

There the time goes into reading weights, so that fewer bytes count for more than faster products; prompts and batches
get slower (onnxruntime#23004). `ORTQuantizer` knows no 4 bits: ONNX Runtime's `MatMulNBitsQuantizer` writes its
operator `MatMulNBits`. Embeddings and the head stay in float.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from deploykit.graphs import matmuls
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

_handler = logging.NullHandler()  # without any, the next import would set up logging for the whole process
logging.getLogger().addHandler(_handler)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # noqa: E402

logging.getLogger().removeHandler(_handler)

PRECISION = "int4"
ENGINES = ("onnxruntime", "openvino")
OPERATORS = ("MatMul",)


class Options(Base):
    """Weights in blocks of few bits."""

    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights of a column that share a scale."""
    accuracy_level: Literal[0, 1, 4] = 4
    """What the MatMuls are computed in: 4 is int8, 1 is float32, 0 leaves it to ONNX Runtime."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a copy of a graph with weights in blocks of few bits.

    Args:
        graph: float32.
        options: see `Options`.
        target: the file to write.
        calibration: not needed.
        keep: names of nodes that stay in float besides those outside of the layers.

    Returns:
        How many products were quantized, how many weights stayed in float, and the `bits`.

    Raises:
        DeploykitError: there is nothing to quantize, or something else was quantized than was to be.
    """
    model = matmuls.load(graph)
    names = matmuls.choose(model, keep, OPERATORS)
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in names]
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=options.bits,
        block_size=options.block_size,
        accuracy_level=options.accuracy_level,
        nodes_to_exclude=others,
    )
    quantizer.process()
    onnx.save(quantizer.model.model, target)
    return {**matmuls.check(target, f"int{options.bits}", len(names)), "bits": options.bits}
