"""The candidates for a machine: combinations of graphs, quantizers, engines, precisions, devices and thread layouts."""

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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """A candidate before it is measured; `keep` names nodes that stay in float."""

    graph: Graph = "exported"
    quantizer: str = "none"
    options: tuple[tuple[str, Any], ...] = ()
    execution: Execution = field(default_factory=Execution)
    keep: tuple[str, ...] = ()

    @property
    def file(self) -> tuple[Any, ...]:
        """What the graph's content depends on."""
        return self.graph, self.quantizer, self.options, self.keep

    @property
    def kind(self) -> tuple[Any, ...]:
        """What the predictions depend on: everything except threads and streams."""
        return *self.file, *self.execution.backend

    @property
    def name(self) -> str:
        """Its name in reports."""
        weights = "float32" if self.quantizer == "none" else f"{self.quantizer} {self.precision}"
        graph = "" if self.graph == "exported" else self.graph
        kept = f"{len(self.keep)} MatMuls in float" if self.keep else ""
        return ", ".join(part for part in (weights, graph, kept, str(self.execution)) if part)

    @property
    def precision(self) -> str:
        """Of the weights."""
        return quantizers.load(self.quantizer).PRECISION


def specs(options: Options, cores: int, features: Iterable[str]) -> list[Spec]:
    """Lists the candidates for a machine: the float graph first, then plain graphs, because time may run out.

    Args:
        options: limit the search; the objective decides the thread layout, see `thread_layouts`.
        cores: of the machine.
        features: of the CPU.
    """
    places, objective = [], options.objective
    for engine in options.engines or installed():
        module = engines.load(engine)
        usable = [name for name, needs in module.PRECISIONS.items() if not needs or set(needs) & set(features)]
        variants: tuple[Graph, ...] = options.graphs or (VARIANTS if module.FUSED else VARIANTS[:1])
        for precision, device, graph in product(usable, module.devices(), variants):
            execution = Execution(engine=engine, precision=precision, device=device)
            places.append((thread_layouts(execution, cores, objective)[0], graph))
    candidates = [
        Spec(graph, quantizer, searched_options(quantizer, objective), execution)
        for execution, graph in places
        for quantizer in writers(options, execution.device)
        if runs(execution.engine, quantizer)
    ]
    ordered = sorted(candidates, key=lambda spec: VARIANTS.index(spec.graph))
    return list(dict.fromkeys((Spec(execution=Execution(threads=cores)), *ordered)))


def writers(options: Options, device: Device) -> tuple[str, ...]:
    """Returns the quantizers to try on a device: those that the recipe names, or those that declare the objective.

    The float graph comes first.
    """
    every = {name: quantizers.load(name) for name in quantizers.writers()}
    names = options.quantizers or [name for name, method in every.items() if options.objective in method.SEARCHED]
    if device != "cpu" and options.quantizers is None:
        names = [name for name, method in every.items() if device in method.DEVICES]
    return tuple(sorted((name for name in names if device in every[name].DEVICES), key=lambda name: name != "none"))


def searched_options(quantizer: str, objective: Objective) -> tuple[tuple[str, Any], ...]:
    """Returns the options with which a search for an objective tries a quantizer."""
    return tuple(sorted(quantizers.load(quantizer).SEARCHED.get(objective, {}).items()))


def runs(engine: str, quantizer: str) -> bool:
    """Says whether an engine runs the graphs of a quantizer well, as either of them declares."""
    return engine in quantizers.load(quantizer).ENGINES or quantizer in getattr(engines.load(engine), "QUANTIZERS", ())


def thread_layouts(execution: Execution, cores: int, objective: Objective) -> list[Execution]:
    """Returns the likelier of two thread layouts first: one call on all cores, or one call at a time per core.

    A GPU runs one call at a time.
    """
    engine, precision, device = execution.backend
    layouts = [(1, cores), (cores, 1)] if objective == "throughput" else [(cores, 1), (1, cores)]
    return [
        Execution(engine=engine, precision=precision, device=device, threads=threads, streams=streams)
        for threads, streams in dict.fromkeys([(cores, 1)] if device == "cuda" else layouts)
    ]


def other_layouts(specs: Sequence[Spec], objective: Objective) -> list[Spec]:
    """Returns the same candidates with the other thread layout, unless they have that already."""
    cores = max(spec.execution.threads * spec.execution.streams for spec in specs)
    both = [
        replace(spec, execution=execution)
        for spec in specs
        for execution in thread_layouts(spec.execution, cores, objective)
    ]
    return [spec for spec in dict.fromkeys(both) if spec not in set(specs)]


def spec_of(candidate: Candidate, execution: Execution) -> Spec:
    """Returns the spec of a reported candidate, with another execution."""
    options = tuple(sorted(candidate.options.items()))
    return Spec(candidate.graph, candidate.quantizer, options, execution, candidate.keep)


def installed() -> list[str]:
    """Lists the engines that run graphs and can be imported."""
    names = []
    for name in methods.available("engine"):
        try:
            if engines.load(name).KIND == "onnx":
                names.append(name)
        except MissingExtraError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):  # installed, but broken
                _warn(name, str(error))
        except Exception as error:  # a broken package may raise any type
            _warn(name, " ".join(str(error).split()))
    return names


@cache  # logs each warning once
def _warn(engine: str, reason: str) -> None:
    log.warning("the engine %s cannot be imported here and is not tried: %s", engine, reason)
