"""Keeps the graph in float32: the candidate with which all others are compared."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.artifact.execution import Device
from deploykit.graphs import matmuls
from deploykit.methods import Options
from deploykit.quantizers import Batch

__all__ = ["DEVICES", "ENGINES", "OPERATORS", "PRECISION", "SEARCHED", "Options", "quantize"]

PRECISION = "float32"
ENGINES = ("onnxruntime", "openvino")
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
SEARCHED: Mapping[str, Mapping[str, Any]] = {"latency": {}, "throughput": {}, "size": {}}
OPERATORS: tuple[str, ...] = ()


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Copies the graph; see `Quantizer.quantize`."""
    shutil.copy(graph, target)
    return {"quantized": 0, "float": len(matmuls.precisions(matmuls.load(graph)))}
