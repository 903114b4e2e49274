"""Engines, which run models: one file each, with the names of `EngineModule`.

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

Arrays = Mapping[str, npt.NDArray[Any]]
Float32 = npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model. `run` may be called from as many threads at once as the execution has streams."""

    execution: Execution

    def run(self, batch: Arrays) -> dict[str, Float32]:
        """Runs one padded batch.

        Args:
            batch: the inputs by name, for example `input_ids` and `attention_mask`, int64 of shape `(batch, tokens)`;
                those that the model does not take are ignored.

        Returns:
            The outputs by name, for example `logits`, of shape `(batch, labels)` or `(batch, tokens, labels)`.
        """

    def shape(self, rows: int, tokens: int) -> tuple[int, int]:
        """Returns the shape to which a batch of this shape is best padded."""


class EngineModule(Protocol):
    """The names of a file of this folder.

    `KIND` is the kind of artifact that it opens: `onnx` or `checkpoint`. `PRECISIONS` are the precisions of its
    arithmetic, each with the CPU features of which it needs one to be fast (none: always fast). `FUSED` says whether
    it runs the operators of fused graphs; an engine that does not fuses graphs itself. `EXTRA` is the pip extra that it
    needs, if it is not `train`. A quantizer names the engines that run its graphs well; `QUANTIZERS`, if an engine has
    it, names quantizers that do not know of it, for example `("none",)`.
    """

    KIND: str
    FUSED: bool
    PRECISIONS: Mapping[Precision, tuple[str, ...]]

    def devices(self) -> tuple[Device, ...]:
        """Lists the devices of this machine on which it runs models."""

    def load(self, model: Path, execution: Execution) -> Engine:
        """Opens a graph's file, or a checkpoint's directory.

        Raises:
            ModelError: the device is missing.
        """

    def versions(self) -> dict[str, Any]:
        """Returns the versions of its libraries."""


def whole(engine: str, batch: Arrays, outputs: dict[str, Float32]) -> dict[str, Float32]:
    """Returns the outputs of a batch, if each has as many rows as it; `engine` is named in the message.

    Raises:
        EngineError: there are more rows or fewer.
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
    """Returns the names of the arguments of a model's forward pass.

    Token types only if the configuration has any: GPT-2 would look them up among the words.
    """
    if hasattr(model, "input_names"):
        return tuple(model.input_names)
    config = getattr(model, "config", None)
    typed = config is None or getattr(config, "type_vocab_size", 0) > 0
    return tuple(name for name in signature(model.forward).parameters if typed or name != "token_type_ids")
