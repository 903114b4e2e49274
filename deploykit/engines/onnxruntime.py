"""ONNX Runtime on the CPU.

Threads do not spin while they wait: a service shares its cores with the tokenizer and the event loop.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

KIND = "onnx"


class Session:
    """An inference session and the names of its inputs."""

    name = "onnxruntime"

    def __init__(self, graph: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.threads = threads
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = [found.name for found in self._session.get_inputs()]

    def run(self, batch: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Runs one padded batch and returns its logits."""
        (logits, *_) = self._session.run(None, {name: batch[name] for name in self._inputs})
        return cast("npt.NDArray[np.float32]", logits)


def load(model: Path, threads: int) -> Session:
    """Opens a graph.

    Args:
        model: an ONNX file.
        threads: intra-op threads, at least 1.
    """
    return Session(model, threads)


def versions() -> dict[str, Any]:
    """Returns the version of ONNX Runtime."""
    return {"onnxruntime": onnxruntime.__version__}
