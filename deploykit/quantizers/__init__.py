"""Quantizers: methods to store a graph's weights in fewer bits. One file each: `Options`, a few constants, `quantize`.

The task's head always stays in float.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt
from pydantic import BaseModel

from deploykit import methods
from deploykit.artifact.execution import Device

Batch = Mapping[str, npt.NDArray[Any]]  # one padded batch: arrays by the names of the graph's inputs


class Quantizer(Protocol):
    """What a file of this folder provides.

    `PRECISION` is the type of the quantized weights by default: `float32`, `float16`, `int8` or `int4`. `ENGINES` are
    the engines that run the result well, and `OPERATORS` the operators whose constant weights are quantized. `DEVICES`
    are those that have kernels for it. `SEARCHED` says for which objectives a search tries the method unless a recipe
    names others, and with which options.
    """

    Options: type[BaseModel]
    PRECISION: str
    ENGINES: tuple[str, ...]
    OPERATORS: tuple[str, ...]
    DEVICES: tuple[Device, ...]
    SEARCHED: Mapping[str, Mapping[str, Any]]

    def quantize(
        self, graph: Path, options: Any, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Writes a quantized copy of a graph.

        Args:
            graph: in float32; is not changed.
            options: the method's own.
            target: the file to write.
            calibration: padded batches of training rows, for methods that measure activations beforehand.
            keep: names of nodes that stay in float, besides those outside the layers.

        Returns:
            At least the number of quantized MatMuls (`quantized`) and of weights that stayed in float (`float`).

        Raises:
            DeploykitError: there is nothing to quantize, or the number of quantized MatMuls is not the expected one.
        """


def writers() -> tuple[str, ...]:
    """Lists the quantizers that write graphs: all but `auto`, which chooses among them."""
    return tuple(name for name in methods.available("quantizer") if hasattr(load(name), "quantize"))


def load(name: str) -> Quantizer:
    """Imports a quantizer by name, for example `"dynamic"`."""
    return cast(Quantizer, methods.load("quantizer", name))
