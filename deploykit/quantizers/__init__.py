"""Ways to make a graph's weights smaller. One file a way: `Options` and `quantize`.

`quantize(graph, options, target)` writes another graph.
"""

from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods


class Quantizer(Protocol):
    """What a file of this folder provides. `PRECISION` names what the weights become."""

    Options: type[BaseModel]
    PRECISION: str

    def quantize(self, graph: Path, options: Any, target: Path) -> dict[str, Any]:
        """Writes the quantized graph to `target` and returns facts for the manifest."""


def load(name: str) -> Quantizer:
    """Imports a quantizer by name, for example `"dynamic"`."""
    return cast(Quantizer, methods.load("quantizer", name))
