"""A module in memory becomes an ONNX graph. A room of its own because pruners time the graphs of their candidates."""

import warnings
from pathlib import Path
from typing import Any

from optimum.exporters.onnx import onnx_export_from_model

from deploykit import process_state


def write_graph(model: Any, folder: Path, task: str, opset: int) -> None:
    """Writes `model.onnx` with dynamic batch and sequence axes.

    Args:
        model: in memory, with eager attention.
        folder: gets the graph.
        task: the exporter's name of the task.
        opset: of ONNX.
    """
    with (
        process_state.quiet("optimum"),
        warnings.catch_warnings(),
    ):  # the tracer warns of what it cannot see; parity is measured instead
        warnings.simplefilter("ignore")
        onnx_export_from_model(model, folder, task=task, opset=opset, do_validation=False, device="cpu")
