"""Engines, which run models: one file each, with the names of `EngineModule`.

Evaluation, parity checks, benchmarks and services all run models through the same objects.
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

Arrays = Mapping[str, npt.NDArray[Any]]  # by name of the input
Float32 = npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model. As many threads may call `run` at once as the execution has streams."""

    execution: Execution

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch.

        Args:
            batch: the inputs by name, for example `input_ids` and `attention_mask`, int64 of shape `(batch, tokens)`;
                inputs that the model does not have are ignored.

        Returns:
            The outputs by name, for example `logits`, of shape `(batch, labels)` or `(batch, tokens, labels)`.
        """

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the rows and tokens to which a batch of this shape is best padded."""


class EngineModule(Protocol):
    """The names of a file of this folder.

    Attributes:
        KIND: the kind of artifact that it opens: `onnx` or `checkpoint`.
        FUSED: whether it runs the operators of fused graphs. An engine that does not run them fuses graphs itself.
        PRECISIONS: the precisions of its arithmetic, each with CPU features. A precision is fast if the CPU has one of
            its features, or if it has none to need.

    A file may also have `EXTRA`, the pip extra that the engine needs (default: `train`), and `QUANTIZERS`. A quantizer
    names the engines that run its graphs well; `QUANTIZERS` names further quantizers that do not know this engine, for
    example `("none",)`.
    """

    KIND: str
    FUSED: bool
    PRECISIONS: Mapping[Precision, tuple[str, ...]]

    def devices(self) -> tuple[Device, ...]:
        """Lists the devices of this machine on which the engine runs models."""

    def load(self, model: Path, execution: Execution) -> Engine:
        """Opens a graph's file, or a checkpoint's directory.

        Raises:
            ModelError: the device is missing.
        """

    def versions(self) -> dict[str, Any]:
        """Returns the versions of the engine's libraries by name."""


def require_all_rows(engine: str, batch: Arrays, outputs: dict[str, Float32]) -> dict[str, Float32]:
    """Returns the outputs of a batch if each has as many rows as the batch.

    Args:
        engine: name of the engine, for the message.
        batch: the inputs by name.
        outputs: by name.

    Raises:
        EngineError: an output has more or fewer rows.
    """
    expected = len(next(iter(batch.values())))
    for name, output in outputs.items():
        rows = len(output) if output.ndim else 0
        if rows != expected:
            raise EngineError(
                f"{engine} answered {rows} rows of {name} for a batch of {expected}: it does not compute this graph"
                " right on this machine. Use another engine, or export the model again."
            )
    return outputs


def load(name: str) -> EngineModule:
    """Imports an engine by name, for example `"onnxruntime"`."""
    return cast(EngineModule, methods.load("engine", name))


def input_names(model: Any) -> tuple[str, ...]:
    """Returns the names of the inputs of a torch model: its own `input_names`, or the arguments of its forward pass.

    Token types are left out if the configuration has none, because GPT-2 would look them up among the words.
    """
    if hasattr(model, "input_names"):
        return tuple(model.input_names)
    config = getattr(model, "config", None)
    has_token_types = config is None or getattr(config, "type_vocab_size", 0) > 0
    return tuple(name for name in signature(model.forward).parameters if has_token_types or name != "token_type_ids")
