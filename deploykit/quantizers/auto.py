"""The method `auto`, which measures combinations of graph, quantizer, engine and threads, and keeps the best.

This file has only its options. `selection` does the search.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from deploykit import methods
from deploykit.methods import Options as Base

Objective = Literal["latency", "throughput", "size"]
Graph = Literal["exported", "fused", "attention", "multi-head", "merged"]


class Options(Base):
    """The candidates of the search, and its objective and duration."""

    objective: Objective = "latency"
    """`latency` (one text at a time), `throughput` (mixed lengths, sorted and batched) or `size`."""
    minutes: float = Field(default=5.0, gt=0)
    """Approximate duration of the search."""
    lengths: Path | None = None
    """A saved page of a running service's metrics; latency is measured at its histogram of input lengths. null: at the
    lengths of the training texts."""
    engines: tuple[str, ...] | None = None
    """Engines to try; null: all that are installed."""
    graphs: tuple[Graph, ...] | None = None
    """Graph variants to try; null: all."""
    quantizers: tuple[str, ...] | None = None
    """Quantizers to try; null: all."""
    fallback: bool = True
    """If an int8 graph would be best but fails a gate, its most damaging MatMuls return to float."""

    @field_validator("engines", "quantizers")
    @classmethod
    def _exist(cls, names: tuple[str, ...] | None, field: ValidationInfo) -> tuple[str, ...] | None:
        """Refuses names of engines and quantizers that do not exist."""
        kind = str(field.field_name).removesuffix("s")
        known = [name for name in methods.available(kind) if name not in ("auto", "torch")]
        for name in names or ():
            if name not in known:
                raise ValueError(f"no {kind} is called {name!r}. There are: {', '.join(known)}")
        return names
