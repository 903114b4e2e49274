"""PyTorch in eager mode: the reference for all other engines."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.engines import Arrays, Float32, input_names, whole
from deploykit.modeling import checkpoint
from deploykit.process_state import evaluating, threads

KIND = "checkpoint"
FUSED = False
PRECISIONS: dict[Precision, tuple[str, ...]] = {"float32": (), "bfloat16": ("amx_bf16", "avx512_bf16")}
TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchModel:
    """A module, or a copy of it in the execution's precision, that runs in evaluation mode."""

    def __init__(self, model: torch.nn.Module, execution: Execution) -> None:
        self.execution, dtype = execution, TYPES[execution.precision]
        other = any(tensor.is_floating_point() and tensor.dtype != dtype for tensor in model.state_dict().values())
        self._model = deepcopy(model).to(dtype) if other else model
        self._inputs = input_names(model)

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch and returns its outputs by name: those whose name ends in `logits`."""
        device = next(self._model.parameters()).device
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items() if name in self._inputs}
        with threads(self.execution.threads), evaluating(self._model), torch.inference_mode():
            outputs = {name: value for name, value in self._model(**tensors).items() if name.endswith("logits")}
        return whole("torch", batch, {name: logits.float().cpu().numpy() for name, logits in outputs.items()})

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the same shape: no padding makes a batch faster."""
        return rows, tokens


def devices() -> tuple[Device, ...]:
    """Lists the CPU, which is enough for a reference."""
    return ("cpu",)


def load(model: Path, execution: Execution) -> TorchModel:
    """Opens a checkpoint; see `EngineModule.load`."""
    return TorchModel(checkpoint.load(model, attention=None).to(TYPES[execution.precision]), execution)


def versions() -> dict[str, Any]:
    """Returns the version of PyTorch."""
    return {"torch": torch.__version__}
