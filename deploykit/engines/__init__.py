"""What runs a graph. One file an engine; each has `KIND`, `FUSED`, `PRECISIONS`, `devices`, `load` and `versions`.

The same object serves evaluation, parity checks, benchmarks and requests.
"""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from deploykit import methods
from deploykit.artifact.execution import Device, Execution, Precision
from deploykit.errors import EngineError


class Engine(Protocol):
    """A loaded graph. `run` may be called from as many threads at once as the execution has streams."""

    execution: Execution

    def run(self, batch: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Runs one padded batch.

        Args:
            batch: `input_ids`, `attention_mask`, `token_type_ids`, each int64 of shape `(batch, tokens)`;
                what the graph does not take is left out.

        Returns:
            The logits, `(batch, labels)` or `(batch, tokens, labels)`.
        """

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the shape, no smaller, to which a batch of this one is best padded."""


class EngineModule(Protocol):
    """What a file of this folder provides.

    `KIND` is that of the artifact that it opens: `onnx` or `checkpoint`. `PRECISIONS` are the arithmetics
    that it knows, each with the CPU features of which one is needed for it to pay (none: always). `FUSED` says
    whether it knows the operators of fused graphs; one that does not fuses by itself.
    """

    KIND: str
    FUSED: bool
    PRECISIONS: Mapping[Precision, tuple[str, ...]]

    def devices(self) -> tuple[Device, ...]:
        """Lists where it runs models on this machine."""

    def load(self, model: Path, execution: Execution) -> Engine:
        """Opens a model: the path of a graph, or of a checkpoint's directory."""

    def versions(self) -> dict[str, Any]:
        """Names the libraries that do the work, with their versions."""


def whole(engine: str, batch: Mapping[str, npt.NDArray[Any]], logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns the logits of a batch if there is a row for each of its rows.

    Args:
        engine: its name, for the message.
        batch: what was run.
        logits: what came of it.

    Raises:
        EngineError: there are more rows or fewer.
    """
    expected, rows = len(next(iter(batch.values()))), len(logits) if logits.ndim else 0
    if rows != expected:
        raise EngineError(
            f"{engine} answered {rows} rows for a batch of {expected}: it does not compute this graph right on this"
            " machine. Use another engine, or export the model again."
        )
    return cast("npt.NDArray[np.float32]", logits)


def load(name: str) -> EngineModule:
    """Imports an engine by name, for example `"onnxruntime"`."""
    return cast(EngineModule, methods.load("engine", name))


def input_names(model: Any) -> tuple[str, ...]:
    """Returns what a model's forward pass takes.

    Token types only where the configuration counts any: GPT-2 would look them up among the words.
    """
    config = getattr(model, "config", None)
    typed = config is None or getattr(config, "type_vocab_size", 0) > 0
    return tuple(name for name in signature(model.forward).parameters if typed or name != "token_type_ids")
