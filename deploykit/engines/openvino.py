"""OpenVINO on the CPU: the same ONNX file, with bfloat16 arithmetic where the CPU has it.

The only engine here that uses the bfloat16 units of a CPU. Precision and threads are always set: by default it takes
bfloat16 wherever it can, and every core of the host.

It compiles kernels for every new shape and keeps them: 14 to 40 ms and 4 MB for a shape of a small encoder, gigabytes
for a few hundred. Batches are therefore padded to about 200 shapes; a step is an eighth to a quarter of the length, and
a multiple of 8 tokens costs no more than the odd length below it.
"""

from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
from openvino import properties
from openvino.properties import hint

from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.engines import Arrays, Float32, whole

EXTRA = "openvino"
KIND = "onnx"
FUSED = False
PRECISIONS: dict[Precision, tuple[str, ...]] = {"float32": (), "bfloat16": ("amx_bf16", "avx512_bf16")}
TYPES: dict[Precision, openvino.Type] = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}
ROW_STEPS = {8: 1, 16: 2, 32: 4, 10**9: 8}  # largest number of rows: size of the step
TOKEN_STEPS = {64: 8, 128: 16, 256: 32, 10**9: 64}


class CompiledModel:
    """A compiled model and one request for each stream."""

    def __init__(self, graph: Path, execution: Execution) -> None:
        self.execution = execution
        settings = {
            hint.inference_precision: TYPES[execution.precision],
            hint.enable_cpu_pinning: False,  # another process may have the same cores
            properties.num_streams: execution.streams,
            properties.inference_num_threads: execution.threads * execution.streams,
        }
        compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
        self._inputs = [_name(node) for node in compiled.inputs]
        self._outputs = [_name(node) for node in compiled.outputs]
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(execution.streams):
            self._free.put(compiled.create_infer_request())

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch and returns its outputs by name."""
        request = self._free.get()
        try:
            request.infer({name: batch[name] for name in self._inputs}, share_inputs=True)
            arrays = (request.get_output_tensor(index).data.astype(np.float32) for index in range(len(self._outputs)))
            return whole("openvino", batch, dict(zip(self._outputs, arrays, strict=True)))
        finally:
            self._free.put(request)

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the next larger of the shapes that are compiled."""
        return _round_up(rows, ROW_STEPS), _round_up(tokens, TOKEN_STEPS)


def _name(tensor: Any) -> str:
    """Returns the name that an input or output has in the file; one may carry those of tensors merged into it, too."""
    name: str = tensor.node.get_friendly_name().partition("/sink_port_")[0]
    return name if name in tensor.names else tensor.get_any_name()


def _round_up(count: int, steps: Mapping[int, int]) -> int:
    step = next(step for largest, step in steps.items() if count <= largest)
    return -(-count // step) * step


def devices() -> tuple[Device, ...]:
    """Lists the CPU; other devices were not tried."""
    return ("cpu",)


def load(model: Path, execution: Execution) -> CompiledModel:
    """Compiles an ONNX file; see `EngineModule.load`."""
    return CompiledModel(model, execution)


def versions() -> dict[str, Any]:
    """Returns the version of OpenVINO."""
    return {"openvino": openvino.__version__.partition("-")[0]}
