"""OpenVINO on the CPU: runs the same ONNX file as ONNX Runtime, in bfloat16 if the CPU has it.

No other engine here uses the bfloat16 units of a CPU. Precision and threads are always set, because OpenVINO would
otherwise use bfloat16 wherever it can, and every core of the host.

OpenVINO compiles kernels for every new shape and keeps them. For a small encoder, a shape takes 14 to 40 ms and 4 MB,
and a few hundred shapes take gigabytes. Batches are therefore padded to about 200 shapes: the steps between their
lengths are an eighth to a quarter of the length, in multiples of 8 tokens, which cost no more than odd lengths below.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino
from openvino import properties
from openvino.properties import hint

from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.engines import Arrays, Float32, require_all_rows

EXTRA = "openvino"
KIND = "onnx"
FUSED = False
PRECISIONS: dict[Precision, tuple[str, ...]] = {"float32": (), "bfloat16": ("amx_bf16", "avx512_bf16")}
OPENVINO_TYPES: dict[Precision, openvino.Type] = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}
# Up to a number of rows or tokens (the key), batches are padded to the next multiple of a step (the value).
ROW_STEPS = {8: 1, 16: 2, 32: 4, 10**9: 8}
TOKEN_STEPS = {64: 8, 128: 16, 256: 32, 10**9: 64}


class CompiledModel:
    """A compiled model, and a reusable inference request for each stream."""

    def __init__(self, graph: Path, execution: Execution) -> None:
        self.execution = execution
        settings = {
            hint.inference_precision: OPENVINO_TYPES[execution.precision],
            hint.enable_cpu_pinning: False,  # other processes may be pinned to the same cores
            properties.num_streams: execution.streams,
            properties.inference_num_threads: execution.threads * execution.streams,
        }
        compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
        self._inputs = [_tensor_name(node) for node in compiled.inputs]
        self._outputs = [_tensor_name(node) for node in compiled.outputs]
        self._free_requests: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(execution.streams):
            self._free_requests.put(compiled.create_infer_request())

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch and returns its outputs by name."""
        request = self._free_requests.get()
        try:
            request.infer({name: batch[name] for name in self._inputs}, share_inputs=True)
            arrays = (request.get_output_tensor(index).data.astype(np.float32) for index in range(len(self._outputs)))
            return require_all_rows("openvino", batch, dict(zip(self._outputs, arrays, strict=True)))
        finally:
            self._free_requests.put(request)

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the smallest shape of the steps that holds a batch."""
        return _round_up(rows, ROW_STEPS), _round_up(tokens, TOKEN_STEPS)


def _tensor_name(tensor: Any) -> str:
    """Returns the name that an input or output has in the ONNX file.

    A tensor of the compiled model may carry several names, because tensors were merged.
    """
    name: str = tensor.node.get_friendly_name().partition("/sink_port_")[0]
    return name if name in tensor.names else tensor.get_any_name()


def _round_up(count: int, steps: Mapping[int, int]) -> int:
    """Returns the next multiple of the step that is valid for a count."""
    step = next(step for limit, step in steps.items() if count <= limit)
    return math.ceil(count / step) * step


def devices() -> tuple[Device, ...]:
    """Lists the CPU; other devices of OpenVINO are not supported, because nobody has tried them."""
    return ("cpu",)


def load(model: Path, execution: Execution) -> CompiledModel:
    """Compiles an ONNX file; see `EngineModule.load`."""
    return CompiledModel(model, execution)


def versions() -> dict[str, Any]:
    """Returns the version of OpenVINO."""
    return {"openvino": openvino.__version__.partition("-")[0]}
