"""Quantizers: methods to store a graph's weights in fewer bits, one file each; see the protocol `Quantizer`.

The task's head always stays in float.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy.typing as npt
from pydantic import BaseModel

from deploykit import methods
from deploykit.artifact.execution import Device

Batch = Mapping[str, npt.NDArray[Any]]  # a padded batch: an array for each input of the graph, by its name


class Quantizer(Protocol):
    """What a file of this folder provides.

    Attributes:
        Options: the options of the method in a recipe.
        PRECISION: type of the quantized weights with default options: `float32`, `float16`, `int8` or `int4`.
        ENGINES: engines that run the quantized graph well.
        OPERATORS: operators whose constant weights are quantized.
        DEVICES: devices that have kernels for the quantized graph.
        SEARCHED: objectives for which `auto` tries the method by default, each with the options for it.
    """

    Options: type[BaseModel]
    PRECISION: str
    ENGINES: tuple[str, ...]
    OPERATORS: tuple[str, ...]
    DEVICES: tuple[Device, ...]
    SEARCHED: Mapping[str, Mapping[str, Any]]

    def quantize(
        self,
        graph: Path,
        options: Any,
        target: Path,
        calibration: Sequence[Batch] = (),
        float_nodes: Collection[str] = (),
    ) -> dict[str, Any]:
        """Writes a quantized copy of a graph.

        Args:
            graph: in float32; is not changed.
            options: the method's own.
            target: the file to write.
            calibration: padded batches of training rows, for methods that measure activations beforehand.
            float_nodes: names of MatMuls that stay in float, besides those outside the layers.

        Returns:
            Facts for the manifest: at least the number of MatMuls that were `quantized`, and that stayed in `float`.

        Raises:
            DeploykitError: there is nothing to quantize, or the number of quantized MatMuls is not the expected one.
        """


def writers() -> tuple[str, ...]:
    """Lists the quantizers that write graphs: all but `auto`, which chooses among them."""
    return tuple(name for name in methods.available("quantizer") if hasattr(load(name), "quantize"))


def load(name: str) -> Quantizer:
    """Imports a quantizer by name, for example `"dynamic"`."""
    return cast(Quantizer, methods.load("quantizer", name))
