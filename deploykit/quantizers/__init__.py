"""Ways to make a graph's weights smaller. One file a way: `Options`, a few constants and `quantize`.

`quantize(graph, options, target, calibration, keep)` writes another graph. The task's head always stays in float.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt
from pydantic import BaseModel

from deploykit import methods

Batch = Mapping[str, npt.NDArray[Any]]  # one padded batch: arrays by the names of the graph's inputs


class Quantizer(Protocol):
    """What a file of this folder provides.

    `PRECISION` names what the weights become by default: `float32`, `float16`, `int8` or `int4`; `ENGINES` names
    the engines that run the result well, `OPERATORS` those whose constant weights are quantized.
    """

    Options: type[BaseModel]
    PRECISION: str
    ENGINES: tuple[str, ...]
    OPERATORS: tuple[str, ...]

    def quantize(
        self, graph: Path, options: Any, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Writes a quantized copy of a graph.

        Args:
            graph: float32; it stays as it was.
            options: the method's own.
            target: the file to write.
            calibration: padded batches of real rows, for the methods that look at activations beforehand.
            keep: names of nodes that stay in float besides those that the method keeps anyway.

        Returns:
            At least how many products were quantized (`quantized`) and how many weights stayed in float (`float`).

        Raises:
            DeploykitError: there is nothing to quantize, or another number of products was quantized.
        """


def writers() -> tuple[str, ...]:
    """Lists the quantizers that write graphs: all but `auto`, which chooses among them."""
    return tuple(name for name in methods.available("quantizer") if hasattr(load(name), "quantize"))


def load(name: str) -> Quantizer:
    """Imports a quantizer by name, for example `"dynamic"`."""
    return cast(Quantizer, methods.load("quantizer", name))
