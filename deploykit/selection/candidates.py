"""Which candidates make sense on a machine: graphs, quantizers, engines, precisions, devices, ways to share cores."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

from deploykit import engines, methods, quantizers
from deploykit.artifact.execution import Device, Execution
from deploykit.errors import MissingExtraError
from deploykit.graphs.variants import VARIANTS
from deploykit.quantizers.auto import Graph, Objective, Options
from deploykit.selection.choice import Candidate

WRITERS = {  # what is tried unless a recipe names others
    "latency": ("none", "dynamic", "static"),
    "throughput": ("none", "dynamic", "static"),
    "size": ("none", "dynamic", "static", "weight-only", "float16"),
}
ON_GPU = ("none", "float16")  # int8 has kernels for CPUs
log = logging.getLogger(__name__)
SMALLEST = {"dynamic": (("embeddings", True),)}  # options where bytes count


@dataclass(frozen=True)
class Spec:
    """A candidate before anything is known of it; `keep` are nodes that stay in float."""

    graph: Graph = "exported"
    quantizer: str = "none"
    options: tuple[tuple[str, Any], ...] = ()
    execution: Execution = field(default_factory=Execution)
    keep: tuple[str, ...] = ()

    @property
    def file(self) -> tuple[Any, ...]:
        """What decides the graph's content."""
        return self.graph, self.quantizer, self.options, self.keep

    @property
    def kind(self) -> tuple[Any, ...]:
        """What decides the predictions: all but threads and streams."""
        return *self.file, *self.execution.place

    @property
    def name(self) -> str:
        """What reports call it."""
        weights = "float32" if self.quantizer == "none" else f"{self.quantizer} {self.precision}"
        graph = "" if self.graph == "exported" else self.graph
        kept = f"{len(self.keep)} MatMuls in float" if self.keep else ""
        return ", ".join(part for part in (weights, graph, kept, str(self.execution)) if part)

    @property
    def precision(self) -> str:
        """Of the weights."""
        return quantizers.load(self.quantizer).PRECISION


def specs(options: Options, cores: int, features: Iterable[str]) -> list[Spec]:
    """Lists the candidates that make sense on a machine: the float graph first, then plain ones, for time may run out.

    Args:
        options: narrow the search; the objective says how cores are shared, see `ways`.
        cores: of the machine.
        features: of the CPU.
    """
    places, objective = [], options.objective
    chosen = SMALLEST if objective == "size" else {}
    for engine in options.engines or installed():
        module = engines.load(engine)
        usable = [name for name, needs in module.PRECISIONS.items() if not needs or set(needs) & set(features)]
        variants: tuple[Graph, ...] = options.graphs or (VARIANTS if module.FUSED else VARIANTS[:1])
        for precision, device, graph in product(usable, module.devices(), variants):
            execution = Execution(engine=engine, precision=precision, device=device)
            places.append((ways(execution, cores, objective)[0], graph))
    found = [
        Spec(graph, way, chosen.get(way, ()), execution)
        for execution, graph in places
        for way in writers(options, execution.device)
        if execution.engine in quantizers.load(way).ENGINES
    ]
    first = Spec(execution=Execution(threads=cores))
    return [
        first,
        *sorted((spec for spec in found if spec != first), key=lambda spec: VARIANTS.index(spec.graph)),
    ]


def writers(options: Options, device: Device) -> tuple[str, ...]:
    """Returns the quantizers that are tried on a device: those that the recipe names, where it names some."""
    if device == "cpu":
        return options.quantizers or WRITERS[options.objective]
    return tuple(way for way in ON_GPU if way in (options.quantizers or ON_GPU))


def ways(execution: Execution, cores: int, objective: Objective) -> list[Execution]:
    """Returns the ways to share cores: all to one call, or one to each of as many calls; the likelier one first.

    A GPU does one call at a time.
    """
    engine, precision, device = execution.place
    shares = dict.fromkeys([(1, cores), (cores, 1)] if objective == "throughput" else [(cores, 1), (1, cores)])
    shares = {(cores, 1): None} if device == "cuda" else shares
    return [
        Execution(engine=engine, precision=precision, device=device, threads=threads, streams=streams)
        for threads, streams in shares
    ]


def otherwise(specs: Sequence[Spec], objective: Objective) -> list[Spec]:
    """Returns the same candidates with the cores shared in the other way, where that is not among them."""
    cores = max(spec.execution.threads * spec.execution.streams for spec in specs)
    both = [replace(spec, execution=way) for spec in specs for way in ways(spec.execution, cores, objective)]
    return [spec for spec in dict.fromkeys(both) if spec not in set(specs)]


def spec_of(candidate: Candidate, execution: Execution) -> Spec:
    """Returns what a reported candidate was made from, run in another way."""
    options = tuple(sorted(candidate.options.items()))
    return Spec(candidate.graph, candidate.quantizer, options, execution, candidate.keep)


def installed() -> list[str]:
    """Lists the engines that run graphs and can be imported here."""
    names = []
    for name in methods.available("engine"):
        try:
            if engines.load(name).KIND == "onnx":
                names.append(name)
        except MissingExtraError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):  # it is installed
                _warn(name, str(error))
        except Exception as error:  # of a package that is installed and broken, which may raise anything
            _warn(name, " ".join(str(error).split()))
    return names


@cache  # once for each
def _warn(engine: str, reason: str) -> None:
    log.warning("the engine %s cannot be imported here and is not tried: %s", engine, reason)
