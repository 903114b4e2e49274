"""Finds the best way to run a graph on this machine, within minutes: writes candidates, times and judges them.

At a first look each candidate is timed against the float graph, briefly. Those near the best are then timed
together, and their predictions are judged. Where an int8 graph is the fastest but for a gate, the products
that do most damage return to float until the gate holds. What was measured or judged before on this machine
is remembered.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from deploykit import cache, engines, graphs, hardware, methods, quantizers, selection, sensitivity, timing
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Metric, Record, sha256_of
from deploykit.errors import DeploykitError
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict, failing, verdicts
from deploykit.execution import Execution
from deploykit.predictor import Predictor
from deploykit.quantizers import Batch
from deploykit.quantizers.auto import Graph, Objective, Options
from deploykit.recipe import GateSection
from deploykit.selection import Candidate
from deploykit.timing import Latency, Workload

FINALISTS = 6  # timed together
NEAR = 1.3  # of those that are at most this many times slower than the best at a first look
LOOKING = 0.6  # share of the minutes that first looks may take
BUDGETS = (256, 512, 1024, 2048)  # padded tokens of a batch that are tried
WRITERS = {  # what is tried unless a recipe names others
    "latency": ("none", "dynamic", "static"),
    "throughput": ("none", "dynamic", "static"),
    "size": ("none", "dynamic", "static", "weight-only", "float16"),
}
SMALLEST = {"dynamic": (("embeddings", True),)}  # options where bytes count
MEASURES = {"latency": "latency", "throughput": "time a text", "size": "bytes"}
LOOK_S, TIMED_S = 1.0, 15.0  # seconds: at most for a first look, and for timing the finalists in each of two ways
TIMED = 0.05  # of the minutes: at most for the latter


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
        kept = f"{len(self.keep)} products in float" if self.keep else ""
        return ", ".join(part for part in (weights, graph, kept, str(self.execution)) if part)

    @property
    def precision(self) -> str:
        """Of the weights."""
        return quantizers.load(self.quantizer).PRECISION


class Judged(Record):
    """How a candidate's predictions compare with the float graph's; `p95_ms` where a gate asks for it."""

    metric: Metric
    comparison: Comparison
    p95_ms: Metric | None = None

    def verdicts(self, gates: GateSection, size_bytes: int) -> tuple[Verdict, ...]:
        """Holds it against the gates."""
        return verdicts(gates, self.comparison, p95_ms=self.p95_ms, size_bytes=size_bytes)


@dataclass(frozen=True)
class Bench:
    """What a search works on.

    `graph` is in float, as exported, and `base` its predictor on all cores; `folder` takes the graphs that are
    written, `work` is timed, `calibration` are padded batches of training rows, `judge` evaluates a predictor,
    and `data` is a hash of what it evaluates on.
    """

    graph: Path
    base: Predictor
    folder: Path
    work: Workload
    calibration: Sequence[Batch]
    judge: Callable[[Spec, Predictor], Judged]
    gates: GateSection
    data: str

    @cached_property
    def key(self) -> str:
        """What every memory of a measurement begins with: the graph, the data and the machine."""
        names = ("cpu", "cores", "cpu_features", "gpus")
        machine = {name: value for name, value in hardware.describe().items() if name in names}
        versions = [engines.load(name).versions() for name in installed()]
        return cache.key_of(sha256_of(self.graph), self.data, self.work.key, machine, versions)

    def file(self, spec: Spec) -> Path:
        """Writes a candidate's graph, unless it is there.

        Raises:
            DeploykitError: the variant or the quantizer does not apply to this graph.
        """
        source = self.variant(spec.graph)
        if spec.quantizer == "none":
            return source
        method = quantizers.load(spec.quantizer)
        options = method.Options.model_validate(dict(spec.options))
        return self._written(
            f"{spec.graph}-{spec.quantizer}-{cache.key_of(*spec.file)[:12]}",
            lambda target: method.quantize(source, options, target, self.calibration, spec.keep),
        )

    def variant(self, name: Graph) -> Path:
        """Writes a variant of the graph, unless it is there.

        Raises:
            DeploykitError: it does not apply.
        """
        return self.graph if name == "exported" else self._written(name, lambda to: graphs.write(name, self.graph, to))

    def facts(self, spec: Spec) -> dict[str, Any]:
        """Returns what was noted when a candidate's graph was written."""
        notes = self.file(spec).with_suffix(".json")
        return json.loads(notes.read_text(encoding="utf-8")) if self.file(spec) != self.graph else {}

    def _written(self, name: str, write: Callable[[Path], Any]) -> Path:
        target = self.folder / f"{name}.onnx"
        if not target.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{name}.draft.onnx"
            target.with_suffix(".json").write_text(json.dumps(write(draft)), encoding="utf-8")
            draft.replace(target)
        return target

    def open(self, spec: Spec) -> Predictor:
        """Opens a candidate."""
        if self.file(spec) == self.graph and spec.execution == self.base.engine.execution:
            return self.base
        return opened(self.base, self.file(spec), spec.execution)


def write(folder: Path, bench: Bench, spec: Spec, kept: Candidate) -> Predictor:
    """Writes the chosen graph into a draft and, where it is another one, the float graph; opens it as it will serve."""
    chosen = bench.file(spec)
    shutil.copy(chosen, folder / GRAPH)
    if chosen != bench.graph:
        shutil.copy(bench.graph, folder / FLOAT_GRAPH)
    relied_on = {*hardware.relied_on(kept.precision), *hardware.relied_on(kept.execution.precision)}
    execution = kept.execution.model_copy(update={"features": tuple(sorted(relied_on))})
    return opened(bench.base, folder / GRAPH, execution)


def opened(base: Predictor, graph: Path, execution: Execution) -> Predictor:
    """Returns a predictor on another graph or engine."""
    return replace(base, engine=engines.load(execution.engine).load(graph, execution))


def installed() -> list[str]:
    """Lists the engines that run graphs and can be imported here."""
    found = []
    for name in methods.available("engine"):
        try:
            if engines.load(name).KIND == "onnx":
                found.append(name)
        except DeploykitError:  # its package is not installed
            continue
    return found


def grid(options: Options, cores: int, features: Iterable[str]) -> list[Spec]:
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
        variants: tuple[Graph, ...] = options.graphs or (graphs.VARIANTS if module.FUSED else graphs.VARIANTS[:1])
        places += [(engine, precision, graph) for precision in usable for graph in variants]
    found = [
        Spec(graph, way, chosen.get(way, ()), ways(Execution(engine=engine, precision=precision), cores, objective)[0])
        for (engine, precision, graph), way in product(places, options.quantizers or WRITERS[objective])
        if engine in quantizers.load(way).ENGINES
    ]
    first = Spec(execution=Execution(threads=cores))
    return [
        first,
        *sorted((spec for spec in found if spec != first), key=lambda spec: graphs.VARIANTS.index(spec.graph)),
    ]


def ways(execution: Execution, cores: int, objective: Objective) -> list[Execution]:
    """Returns the ways to share cores: all to one call, or one to each of as many calls; the likelier one first."""
    engine, precision, device = execution.place
    shares = dict.fromkeys([(1, cores), (cores, 1)] if objective == "throughput" else [(cores, 1), (1, cores)])
    return [
        Execution(engine=engine, precision=precision, device=device, threads=threads, streams=streams)
        for threads, streams in shares
    ]


def spec_of(candidate: Candidate, execution: Execution) -> Spec:
    """Returns what a reported candidate was made from, run in another way."""
    options = tuple(sorted(candidate.options.items()))
    return Spec(candidate.graph, candidate.quantizer, options, execution, candidate.keep)


@dataclass
class Entry:
    """A candidate and what the search has found of it so far; a `reason` says why it is out.

    `ratio` is that of its time, or size, to the float graph's at a first look.
    """

    spec: Spec
    reason: str = ""
    ratio: float = np.inf
    bytes: int = 0
    latency: dict[str, Latency] = field(default_factory=dict)
    batch_tokens: int | None = None
    throughput: Metric | None = None
    judged: Judged | None = None

    def candidate(self, gates: GateSection) -> Candidate:
        """Returns the entry as it is reported."""
        spec, judged = self.spec, self.judged
        batch = {"batch_tokens": self.batch_tokens} if self.batch_tokens else {}
        return Candidate(
            name=spec.name,
            graph=spec.graph,
            quantizer=spec.quantizer,
            options=dict(spec.options),
            keep=spec.keep,
            precision=spec.precision,
            execution=spec.execution.model_copy(update=batch),
            bytes=self.bytes,
            latency=self.latency,
            throughput=self.throughput,
            metric=judged.metric if judged else None,
            comparison=judged.comparison if judged else None,
            verdicts=judged.verdicts(gates, self.bytes) if judged else (),
            reason=self.reason,
        )


def search(specs: Sequence[Spec], bench: Bench, options: Options) -> tuple[list[Entry], list[Candidate]]:
    """Searches for the best at the objective of those that pass every gate.

    Args:
        specs: the float graph as it is comes first.
        bench: see `Bench`.
        options: objective, minutes and fallback.

    Returns:
        What was found of each, and the same as candidates of which one is kept, or none where none passes; in the
        order of `specs`, then the best of them with cores shared otherwise, then the one that the fallback made.
    """
    started, entries = time.monotonic(), [Entry(spec) for spec in specs]
    until, end = (started + 60 * options.minutes * share for share in (LOOKING, 1))
    look(entries, bench, options.objective, until)
    entries += [Entry(spec) for spec in _otherwise(entries[:1] + near(entries[1:]), options.objective)]
    look(entries, bench, options.objective, until)
    finalists = entries[:1]
    judge(finalists, bench)
    while more := near(entries, finalists):
        judge(more, bench)
        finalists = [*finalists, *more]
        if any(_passes(entry, bench) for entry in more) or time.monotonic() > end:
            break  # where all that were near the best fail, the next ones are judged
    seconds = min(TIMED_S, 60 * options.minutes * TIMED)
    measure(finalists, bench, seconds)
    if options.fallback and (made := repair(finalists, bench, options.objective)):
        entries.append(made)
        measure([*finalists, made], bench, seconds)
    rest = sorted((entry for entry in entries if not entry.reason), key=lambda entry: entry.ratio)
    judge(rest, bench, end)
    for entry in entries:
        if not entry.reason and not entry.latency:
            entry.reason = f"{entry.ratio:.2f} times the float graph's {MEASURES[options.objective]} at a first look"
    return entries, choose(entries, bench.gates, options.objective)


def choose(entries: Sequence[Entry], gates: GateSection, objective: Objective) -> list[Candidate]:
    """Returns the entries as candidates, one of them kept; see `selection.choose`."""
    candidates = [entry.candidate(gates) for entry in entries]
    stops = {found.name: failing(gates, found.verdicts) for found in candidates}
    return selection.choose(candidates, objective, stops)


def look(entries: Sequence[Entry], bench: Bench, objective: Objective, until: float) -> None:
    """Compares each candidate with the float graph, briefly; notes why one cannot be tried."""
    for entry in tqdm(
        [entry for entry in entries if not entry.reason and not entry.bytes], desc="candidates", disable=None
    ):
        key = cache.key_of(bench.key, "look", entry.spec.kind, str(entry.spec.execution), objective)
        if time.monotonic() > until and entry is not entries[0]:
            entry.reason = "not tried: the minutes of the search were over"
            continue
        try:
            found = cache.remember(key, partial(_glance, entry.spec, bench, objective))
        except DeploykitError as error:
            entry.reason = f"cannot be made: {error}"
        else:
            entry.ratio, entry.bytes = found["ratio"], found["bytes"]


def _glance(spec: Spec, bench: Bench, objective: Objective) -> dict[str, float]:
    """Returns a candidate's bytes, and the ratio of what the objective makes small to the float graph's."""
    size = bench.file(spec).stat().st_size
    pair = {"base": bench.base.engine, "it": bench.open(spec).engine}
    if objective == "throughput":
        rates = timing.rates(pair, bench.work, BUDGETS[1:3], LOOK_S)
        ratio = _best(rates["base"])[1].value / _best(rates["it"])[1].value
    elif objective == "latency":
        found = timing.latencies(pair, bench.work, LOOK_S)
        ratios = [found["it"][text].p50 / found["base"][text].p50 for text in found["it"]]
        ratio = float(np.exp(np.mean(np.log(ratios))))
    else:
        ratio = size / bench.graph.stat().st_size
    return {"ratio": ratio, "bytes": size}


def _otherwise(entries: Sequence[Entry], objective: Objective) -> list[Spec]:
    """Returns the same candidates with the cores shared in the other way."""
    cores = max(entry.spec.execution.threads * entry.spec.execution.streams for entry in entries)
    known = {entry.spec for entry in entries}
    both = [
        replace(entry.spec, execution=way) for entry in entries for way in ways(entry.spec.execution, cores, objective)
    ]
    return [spec for spec in dict.fromkeys(both) if spec not in known]


def near(entries: Sequence[Entry], known: Sequence[Entry] = ()) -> list[Entry]:
    """Returns those that a first look found near the best of all that are not known yet."""
    others = (entry for entry in entries if not entry.reason and not any(entry is one for one in known))
    tried = sorted(others, key=lambda entry: entry.ratio)
    return [entry for entry in tried[:FINALISTS] if entry.ratio <= tried[0].ratio * NEAR]


def _passes(entry: Entry, bench: Bench) -> bool:
    return entry.judged is not None and not failing(bench.gates, entry.judged.verdicts(bench.gates, entry.bytes))


def measure(finalists: Sequence[Entry], bench: Bench, seconds: float) -> None:
    """Times candidates together, alone and at mixed lengths, with the batches that suit each.

    Args:
        finalists: to time.
        bench: see `Bench`.
        seconds: about how long each of the two ways may take.
    """

    def compute() -> dict[str, Any]:
        opened = {entry.spec.name: bench.open(entry.spec).engine for entry in finalists}
        single = timing.latencies(opened, bench.work, seconds)
        mixed = {name: _best(found) for name, found in timing.rates(opened, bench.work, BUDGETS, seconds).items()}
        return {
            name: {
                "latency": {text: latency.model_dump() for text, latency in single[name].items()},
                "batch_tokens": mixed[name][0],
                "throughput": mixed[name][1].model_dump(),
            }
            for name in opened
        }

    key = cache.key_of(bench.key, "measure", [(entry.spec.kind, str(entry.spec.execution)) for entry in finalists])
    found = cache.remember(key, compute)
    for entry in finalists:
        timed = found[entry.spec.name]
        entry.latency = {text: Latency(**latency) for text, latency in timed["latency"].items()}
        entry.batch_tokens, entry.throughput = timed["batch_tokens"], Metric(**timed["throughput"])


def _best(rates: Mapping[int, Metric]) -> tuple[int, Metric]:
    return max(rates.items(), key=lambda found: found[1].value)


def judge(entries: Sequence[Entry], bench: Bench, until: float = np.inf) -> None:
    """Evaluates candidates as long as there is time, each kind of predictions once."""
    for entry in tqdm(entries, desc="evaluation", disable=None):
        if entry.judged is None and time.monotonic() < until:
            key = cache.key_of(bench.key, "judge", entry.spec.kind, bench.gates.max_p95_ms is not None)
            try:
                found = cache.remember(key, partial(_evaluate, entry.spec, bench))
            except DeploykitError as error:
                entry.reason = str(error)
            else:
                entry.judged = Judged.model_validate(found)


def _evaluate(spec: Spec, bench: Bench) -> dict[str, Any]:
    return bench.judge(spec, bench.open(spec)).model_dump(mode="json")


def repair(finalists: Sequence[Entry], bench: Bench, objective: Objective) -> Entry | None:
    """Returns the worst products of the best quantized candidate to float, until the gates that stopped it hold.

    Args:
        finalists: measured and judged.
        bench: see `Bench`.
        objective: says which is the best.

    Returns:
        The new candidate, judged but not measured; None where nothing was to be gained, or nothing helped.
    """
    candidates = choose(finalists, bench.gates, objective)
    limit = min((selection.score(found, objective) for found in candidates if found.kept), default=np.inf)
    broken = [
        (selection.score(found, objective), entry)
        for entry, found in zip(finalists, candidates, strict=True)
        if entry.spec.quantizer != "none" and failing(bench.gates, found.verdicts)
    ]
    worth = [(score, entry) for score, entry in broken if score * selection.TOLERANCE < limit]
    if not worth:
        return None
    _, best = min(worth, key=lambda pair: pair[0])
    method, options = quantizers.load(best.spec.quantizer), dict(best.spec.options)
    ranking = sensitivity.rank(
        bench.variant(best.spec.graph), method, method.Options.model_validate(options), bench.calibration, bench.folder
    )
    for keep in sensitivity.groups(ranking):
        made = Entry(replace(best.spec, keep=tuple(sorted(keep))))
        made.bytes = bench.file(made.spec).stat().st_size
        judge([made], bench)
        if _passes(made, bench):
            return made
    return None
