"""Weights and arithmetic in float16, for GPUs; inputs and outputs stay in float32.

Optimum offers float16 only together with its fusions, so ONNX Runtime's converter is used. The graph is also correct on
a CPU: ONNX Runtime inserts casts where it has no float16 kernel, and OpenVINO computes in bfloat16. Constants beyond
the range of float16, such as the -3.4e38 of masks, become -1e4. If activations overflow, as in T5, the gates stop the
graph.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.transformers.onnx_model import OnnxModel

from deploykit.artifact.execution import Device
from deploykit.graphs import matmuls
from deploykit.methods import Options
from deploykit.quantizers import Batch

__all__ = ["DEVICES", "ENGINES", "OPERATORS", "PRECISION", "SEARCHED", "Options", "quantize"]

PRECISION = "float16"
ENGINES = ("onnxruntime", "openvino")
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
SEARCHED: Mapping[str, Mapping[str, Any]] = {"size": {}}
OPERATORS = ("MatMul", "Attention")


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a copy with weights and arithmetic in float16; see `Quantizer.quantize`."""
    model = matmuls.load(graph)
    names = matmuls.choose(model, float_nodes, OPERATORS)
    converted = OnnxModel(model)
    in_float = [*matmuls.outside_layers(model), *float_nodes]
    converted.convert_float_to_float16(keep_io_types=True, node_block_list=in_float)
    converted.topological_sort()  # the converter appends its casts
    onnx.save(converted.model, target)
    return matmuls.check(target, PRECISION, len(names))
