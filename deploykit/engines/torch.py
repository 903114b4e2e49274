"""PyTorch in float32 and eager mode: the reference that everything else is compared with."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from deploykit import checkpoint

KIND = "checkpoint"


class TorchModel:
    """A module in evaluation mode and the names of its inputs."""

    name = "torch"

    def __init__(self, model: torch.nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self.threads = threads
        self._model = model.eval()
        self._inputs = tuple(signature(model.forward).parameters)

    def run(self, batch: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Runs one padded batch and returns its logits."""
        tensors = {name: torch.from_numpy(array) for name, array in batch.items() if name in self._inputs}
        with torch.inference_mode():
            logits = self._model(**tensors).logits
        return cast("npt.NDArray[np.float32]", logits.float().numpy())


def load(model: Path, threads: int) -> TorchModel:
    """Opens a checkpoint.

    Args:
        model: the artifact's directory.
        threads: of the whole process: torch has one setting.
    """
    return TorchModel(checkpoint.load(model, attention=None), threads)


def versions() -> dict[str, Any]:
    """Returns the version of PyTorch."""
    return {"torch": torch.__version__}
