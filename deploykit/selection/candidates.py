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
    """A candidate before it is measured.

    `graph` is a variant of the exported graph, `options` are those of the quantizer, as pairs of name and value, and
    `float_nodes` names the MatMuls that stay in float.
    """

    graph: Graph = "exported"
    quantizer: str = "none"
    options: tuple[tuple[str, Any], ...] = ()
    execution: Execution = field(default_factory=Execution)
    float_nodes: tuple[str, ...] = ()

    @property
    def graph_key(self) -> tuple[Any, ...]:
        """The values that decide the content of the graph's file."""
        return self.graph, self.quantizer, self.options, self.float_nodes

    @property
    def prediction_key(self) -> tuple[Any, ...]:
        """The values that decide the predictions: all except threads and streams."""
        return *self.graph_key, *self.execution.backend

    @property
    def name(self) -> str:
        """The candidate's name in reports."""
        weights = "float32" if self.quantizer == "none" else f"{self.quantizer} {self.precision}"
        graph = "" if self.graph == "exported" else self.graph
        in_float = f"{len(self.float_nodes)} MatMuls in float" if self.float_nodes else ""
        return ", ".join(part for part in (weights, graph, in_float, str(self.execution)) if part)

    @property
    def precision(self) -> str:
        """The type of the weights, for example `int8`."""
        return quantizers.load(self.quantizer).PRECISION


def specs(options: Options, cores: int, features: Iterable[str]) -> list[Spec]:
    """Lists the candidates for a machine: the float graph first, then exported graphs before their variants.

    Each has the thread layout that is likelier to be the best; see `thread_layouts`.

    Args:
        options: the objective, and the engines, graphs and quantizers that limit the search.
        cores: of the machine.
        features: of the CPU; an engine's precision may need one of them.
    """
    runtimes, objective = [], options.objective
    for engine in options.engines or installed_engines():
        module = engines.load(engine)
        usable = [name for name, needs in module.PRECISIONS.items() if not needs or set(needs) & set(features)]
        variants: tuple[Graph, ...] = options.graphs or (VARIANTS if module.FUSED else VARIANTS[:1])
        for precision, device, graph in product(usable, module.devices(), variants):
            execution = Execution(engine=engine, precision=precision, device=device)
            runtimes.append((thread_layouts(execution, cores, objective)[0], graph))
    candidates = [
        Spec(graph, quantizer, searched_options(quantizer, objective), execution)
        for execution, graph in runtimes
        for quantizer in searched_quantizers(options, execution.device)
        if supports(execution.engine, quantizer)
    ]
    ordered = sorted(candidates, key=lambda spec: VARIANTS.index(spec.graph))
    return list(dict.fromkeys((Spec(execution=Execution(threads=cores)), *ordered)))


def searched_quantizers(options: Options, device: Device) -> tuple[str, ...]:
    """Returns the quantizers to try on a device, `none` first.

    They are those that the recipe names. By default, they are those that declare the objective, or on a GPU all that
    have kernels for it.
    """
    every = {name: quantizers.load(name) for name in quantizers.writers()}
    names = options.quantizers or [name for name, method in every.items() if options.objective in method.SEARCHED]
    if device != "cpu" and options.quantizers is None:
        names = [name for name, method in every.items() if device in method.DEVICES]
    return tuple(sorted((name for name in names if device in every[name].DEVICES), key=lambda name: name != "none"))


def searched_options(quantizer: str, objective: Objective) -> tuple[tuple[str, Any], ...]:
    """Returns the options, as sorted pairs of name and value, with which a search tries a quantizer."""
    return tuple(sorted(quantizers.load(quantizer).SEARCHED.get(objective, {}).items()))


def supports(engine: str, quantizer: str) -> bool:
    """Says whether an engine runs the graphs of a quantizer well: one of the two must declare it."""
    return engine in quantizers.load(quantizer).ENGINES or quantizer in getattr(engines.load(engine), "QUANTIZERS", ())


def thread_layouts(execution: Execution, cores: int, objective: Objective) -> list[Execution]:
    """Returns an execution with each of two thread layouts, the likelier one for the objective first.

    In one layout, a call uses all cores. In the other, each core runs a call of its own, as a stream with one thread. A
    GPU has only the first.
    """
    engine, precision, device = execution.backend
    layouts = [(1, cores), (cores, 1)] if objective == "throughput" else [(cores, 1), (1, cores)]
    return [
        Execution(engine=engine, precision=precision, device=device, threads=threads, streams=streams)
        for threads, streams in dict.fromkeys([(cores, 1)] if device == "cuda" else layouts)
    ]


def other_layouts(specs: Sequence[Spec], objective: Objective) -> list[Spec]:
    """Returns new candidates that differ from the given ones only in their thread layout."""
    cores = max(spec.execution.threads * spec.execution.streams for spec in specs)
    in_all_layouts = [
        replace(spec, execution=execution)
        for spec in specs
        for execution in thread_layouts(spec.execution, cores, objective)
    ]
    return [spec for spec in dict.fromkeys(in_all_layouts) if spec not in set(specs)]


def spec_of(candidate: Candidate, execution: Execution) -> Spec:
    """Returns the spec of a reported candidate, with another execution."""
    options = tuple(sorted(candidate.options.items()))
    return Spec(candidate.graph, candidate.quantizer, options, execution, candidate.float_nodes)


def installed_engines() -> list[str]:
    """Lists the engines that run graphs and can be imported; logs a warning for one that is installed but broken."""
    names = []
    for name in methods.available("engine"):
        try:
            if engines.load(name).KIND == "onnx":
                names.append(name)
        except MissingExtraError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):  # installed, but broken
                _warn_once(name, str(error))
        except Exception as error:  # a broken package may raise any type
            _warn_once(name, " ".join(str(error).split()))
    return names


@cache  # so that each warning is logged once
def _warn_once(engine: str, reason: str) -> None:
    log.warning("the engine %s cannot be imported here and is not tried: %s", engine, reason)
