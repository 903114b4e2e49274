"""ONNX Runtime, on the CPU or on an NVIDIA GPU.

Threads do not spin while they wait, because the engine shares its cores with the service's tokenizer and event loop.
The option that treats denormal numbers as zero is not set, because it would change the arithmetic of all other code in
the calling thread: OpenVINO then returns no rows on some CPUs.
"""

from pathlib import Path
from typing import Any

import onnxruntime

from deploykit import hardware
from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.engines import Arrays, Float32, require_all_rows
from deploykit.errors import ModelError

EXTRA = "cpu"
KIND = "onnx"
FUSED = True
PRECISIONS: dict[Precision, tuple[str, ...]] = {"float32": ()}
PROVIDERS: dict[Device, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


class Session:
    """An inference session and the names of its inputs and outputs."""

    def __init__(self, graph: Path, execution: Execution) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = execution.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.execution = execution
        providers = PROVIDERS[execution.device]
        missing = set(providers) - set(onnxruntime.get_available_providers())
        if not missing:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
            missing = set(providers) - set(self._session.get_providers())
        if missing:  # the library would silently use the CPU
            raise ModelError(
                f"ONNX Runtime has no {', '.join(missing)} here. It needs the extra `gpu` in place of `cpu`, an NVIDIA"
                " driver and the CUDA libraries; or run on the CPU."
            )
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._outputs = [node.name for node in self._session.get_outputs()]

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch and returns its outputs by name."""
        arrays = self._session.run(self._outputs, {name: batch[name] for name in self._inputs})
        return require_all_rows("onnxruntime", batch, dict(zip(self._outputs, arrays, strict=True)))

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the same shape: no padding makes a batch faster."""
        return rows, tokens


def devices() -> tuple[Device, ...]:
    """Lists the CPU and, with the extra `gpu` on a machine that has one, the GPU."""
    has_gpu = PROVIDERS["cuda"][0] in onnxruntime.get_available_providers() and hardware.gpus()
    return ("cpu", "cuda") if has_gpu else ("cpu",)


def load(model: Path, execution: Execution) -> Session:
    """Opens an ONNX file; see `EngineModule.load`."""
    return Session(model, execution)


def versions() -> dict[str, Any]:
    """Returns the version of ONNX Runtime."""
    return {"onnxruntime": onnxruntime.__version__}
