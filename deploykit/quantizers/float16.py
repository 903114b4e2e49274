"""Weights and arithmetic in float16, for GPUs; inputs and outputs stay in float32.

Optimum offers float16 only together with its fusions, so ONNX Runtime's converter is used. On the CPU the graph stays
correct, for ONNX Runtime casts where it has no float16 kernel; OpenVINO computes in bf16 there, from half the bytes.
Constants beyond the range, such as the masks' -3.4e38, become -1e4. Activations that overflow (T5 is known for it) are
for the gates to catch.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.transformers.onnx_model import OnnxModel

from deploykit.graphs import matmuls
from deploykit.methods import Options
from deploykit.quantizers import Batch

__all__ = ["ENGINES", "OPERATORS", "PRECISION", "Options", "quantize"]

PRECISION = "float16"
ENGINES = ("onnxruntime", "openvino")
OPERATORS = ("MatMul", "Attention")


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a copy of a graph in float16.

    Args:
        graph: float32.
        options: none.
        target: the file to write.
        calibration: not needed.
        keep: names of nodes that stay in float besides the products outside of the layers.

    Returns:
        How many products were halved and how many weights stayed in float.

    Raises:
        DeploykitError: there is nothing to halve, or something else was halved than was to be.
    """
    model = matmuls.load(graph)
    names = matmuls.choose(model, keep, OPERATORS)
    halved = OnnxModel(model)
    halved.convert_float_to_float16(keep_io_types=True, node_block_list=[*matmuls.outside(model), *keep])
    halved.topological_sort()  # it puts its casts last
    onnx.save(halved.model, target)
    return matmuls.check(target, PRECISION, len(names))
