"""Keeps the graph in float32: the candidate with which all others are compared."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from deploykit.graphs import matmuls
from deploykit.methods import Options
from deploykit.quantizers import Batch

__all__ = ["ENGINES", "OPERATORS", "PRECISION", "Options", "quantize"]

PRECISION = "float32"
ENGINES = ("onnxruntime", "openvino")
OPERATORS: tuple[str, ...] = ()


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
) -> dict[str, Any]:
    """Copies the graph."""
    shutil.copy(graph, target)
    return {"quantized": 0, "float": len(matmuls.precisions(matmuls.load(graph)))}
