"""What runs a graph. One file an engine; each has `load(artifact, threads)` and `versions()`.

The same object serves evaluation, parity checks, benchmarks and requests.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from deploykit import methods


class Engine(Protocol):
    """A loaded graph."""

    name: str
    threads: int

    def run(self, batch: Mapping[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        """Runs one padded batch.

        Args:
            batch: `input_ids`, `attention_mask`, `token_type_ids`, each `(batch, tokens)`; what the graph
                does not take is left out.

        Returns:
            The logits, `(batch, labels)` or `(batch, tokens, labels)`.
        """


class EngineModule(Protocol):
    """What a file of this folder provides."""

    KIND: str

    def load(self, model: Path, threads: int) -> Engine:
        """Opens a model: the path of a graph, or of a checkpoint's directory."""

    def versions(self) -> dict[str, Any]:
        """Names the libraries that do the work, with their versions."""


def load(name: str) -> EngineModule:
    """Imports an engine by name, for example `"onnxruntime"`."""
    return cast(EngineModule, methods.load("engine", name))
