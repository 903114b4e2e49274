"""PyTorch in eager mode, the reference for all other engines."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.engines import Arrays, Float32, input_names, require_all_rows
from deploykit.modeling import checkpoint
from deploykit.process_state import evaluation_mode, torch_threads

KIND = "checkpoint"
FUSED = False
PRECISIONS: dict[Precision, tuple[str, ...]] = {"float32": (), "bfloat16": ("amx_bf16", "avx512_bf16")}
TORCH_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchModel:
    """A module that runs in evaluation mode; if its weights have another precision than the execution, a copy runs."""

    def __init__(self, model: torch.nn.Module, execution: Execution) -> None:
        self.execution, dtype = execution, TORCH_DTYPES[execution.precision]
        floats = (tensor for tensor in model.state_dict().values() if tensor.is_floating_point())
        needs_copy = any(tensor.dtype != dtype for tensor in floats)
        self._model = deepcopy(model).to(dtype) if needs_copy else model
        self._inputs = input_names(model)

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch, and returns by name the outputs whose name ends in `logits`."""
        device = next(self._model.parameters()).device
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items() if name in self._inputs}
        with torch_threads(self.execution.threads), evaluation_mode(self._model), torch.inference_mode():
            outputs = self._model(**tensors)
        logits = {name: value.float().cpu().numpy() for name, value in outputs.items() if name.endswith("logits")}
        return require_all_rows("torch", batch, logits)

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the same shape: no padding makes a batch faster."""
        return rows, tokens


def devices() -> tuple[Device, ...]:
    """Lists the CPU only, because a reference needs no GPU."""
    return ("cpu",)


def load(model: Path, execution: Execution) -> TorchModel:
    """Opens a checkpoint; see `EngineModule.load`."""
    return TorchModel(checkpoint.load(model, attention=None).to(TORCH_DTYPES[execution.precision]), execution)


def versions() -> dict[str, Any]:
    """Returns the version of PyTorch."""
    return {"torch": torch.__version__}
