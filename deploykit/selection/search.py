"""Searches for the best way to run a graph on this machine, within minutes.

A first, short measurement compares each candidate with the float graph. The finalists, those near the best, are then
timed together, and their predictions are judged. If an int8 graph is the fastest but fails a gate, the MatMuls that do
most damage return to float until the gate passes. Measurements on this machine are remembered.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from deploykit import quantizers
from deploykit.artifact import Metric
from deploykit.evaluation import timing
from deploykit.evaluation.gates import failing
from deploykit.evaluation.timing import Latency
from deploykit.graphs import variants
from deploykit.quantizers.auto import Objective, Options
from deploykit.selection import choice, measurements, sensitivity
from deploykit.selection.candidates import Spec, other_layouts
from deploykit.selection.choice import Candidate
from deploykit.selection.entries import Entry, choose, judge, log, passes, rule_out_on_error
from deploykit.selection.evaluator import Bench

MAX_FINALISTS = 6  # they share the time, so more would leave too little for each
MAX_RATIO = 1.3  # of a finalist's first measurement to the best one's, because a short measurement is inaccurate
LOOK_SHARE = 0.5  # of the minutes, at most, for the first measurements
LOOK_S = 1.0  # at most, for each of them
TIMING_SHARE = 0.15  # of the minutes, at most, for timing the finalists, alone and at mixed lengths each
TIMING_S = 20.0  # the same in seconds
BATCH_TOKENS = (256, 512, 1024, 2048)  # padded tokens per batch to try
MEASURES = {"latency": "latency", "throughput": "time per text", "size": "bytes"}


def search(specs: Sequence[Spec], bench: Bench, options: Options) -> tuple[list[Entry], list[Candidate]]:
    """Searches for the best candidate at the objective that passes every gate; `specs` begin with the float graph.

    Returns:
        The entries, and the same as candidates, of which one is kept, or none if none passes: in the order of `specs`,
        then the best of them with other thread layouts, then the one that the fallback made.
    """
    started, entries = time.monotonic(), [Entry(spec) for spec in specs]
    until, end = (started + 60 * options.minutes * share for share in (LOOK_SHARE, 1))
    look(entries, bench, options.objective, until)
    best = [entry.spec for entry in entries[:1] + near(entries[1:])]
    entries += [Entry(spec) for spec in other_layouts(best, options.objective)]
    look(entries, bench, options.objective, until)
    finalists = entries[:1]
    judge(finalists, bench)
    while more := near(entries, finalists):
        judge(more, bench)
        finalists = [*finalists, *more]
        if any(passes(entry, bench) for entry in more) or time.monotonic() > end:
            break  # otherwise the next best ones are judged
    seconds = min(TIMING_S, 60 * options.minutes * TIMING_SHARE)
    measure(finalists, bench, seconds, options.objective)
    if options.fallback and (repaired := repair(finalists, bench, options.objective)):
        entries.append(repaired)
        measure([*finalists, repaired], bench, seconds, options.objective)
    rest = sorted((entry for entry in entries if not entry.reason), key=lambda entry: entry.ratio)
    judge(rest, bench, end)
    for entry in entries:
        if not entry.reason and not entry.latency:
            entry.reason = (
                f"{entry.ratio:.2f} times the float graph's {MEASURES[options.objective]} in the first measurement"
            )
    return entries, choose(entries, bench.gates, options.objective)


def look(entries: Sequence[Entry], bench: Bench, objective: Objective, until: float) -> None:
    """Compares each candidate briefly with the float graph, or stores the reason why that is impossible.

    Plain graphs, and precisions with hardware support, come first, because time may run out.
    """

    def priority(entry: Entry) -> tuple[bool, int, bool]:
        graph = variants.VARIANTS.index(entry.spec.graph)
        return entry is not entries[0], graph, entry.spec.execution.precision == "float32"

    new = sorted((entry for entry in entries if not entry.reason and not entry.bytes), key=priority)
    for entry in tqdm(new, desc="candidates", disable=None):
        key = measurements.key_of(bench.key, "look", entry.spec.kind, str(entry.spec.execution), objective)
        if time.monotonic() > until and entry is not entries[0]:
            entry.reason = "not tried: the minutes of the search were over"
            continue
        if measurements.recall(key) is None:
            with rule_out_on_error(entry, "cannot be made: "):
                bench.file(entry.spec)
        if not entry.reason:
            with rule_out_on_error(entry, "cannot be run: "):
                looks = measurements.remember(key, partial(_glance, entry.spec, bench, objective))
                entry.ratio, entry.bytes = looks["ratio"], looks["bytes"]


def _glance(spec: Spec, bench: Bench, objective: Objective) -> dict[str, float]:
    """Returns a candidate's bytes, and the ratio of its time per text (or bytes) to the float graph's."""
    size = bench.file(spec).stat().st_size
    engines = {"base": bench.base.engine, "candidate": bench.open(spec).engine}
    if objective == "throughput":
        rates = timing.rates(engines, bench.sample, BATCH_TOKENS[1:3], LOOK_S, timing.FIRST_LOOK_ROUNDS)
        ratio = _best(rates["base"])[1].value / _best(rates["candidate"])[1].value
    elif objective == "latency":
        latencies = timing.latencies(engines, bench.work, LOOK_S, timing.FIRST_LOOK_ROUNDS)
        ratios = [latency.p50 / latencies["base"][text].p50 for text, latency in latencies["candidate"].items()]
        ratio = float(np.exp(np.mean(np.log(ratios))))
    else:
        ratio = size / bench.graph.stat().st_size
    return {"ratio": ratio, "bytes": size}


def near(entries: Sequence[Entry], excluded: Sequence[Entry] = ()) -> list[Entry]:
    """Returns the entries whose first measurement is near the best one, apart from the excluded ones."""
    identities = {id(entry) for entry in excluded}
    others = (entry for entry in entries if not entry.reason and id(entry) not in identities)
    ranked = sorted(others, key=lambda entry: entry.ratio)[:MAX_FINALISTS]
    return [entry for entry in ranked if entry.ratio <= ranked[0].ratio * MAX_RATIO]


def measure(finalists: Sequence[Entry], bench: Bench, seconds: float, objective: Objective) -> None:
    """Times candidates together, one text at a time and at mixed lengths, for `seconds` each.

    Mixed lengths take most of the time, and decide only about throughput: fewer rounds suffice for other objectives.
    A candidate that fails is ruled out, and the others are timed without it.
    """
    rounds = timing.LEAST_ROUNDS if objective == "throughput" else timing.FIRST_LOOK_ROUNDS
    running = [entry for entry in finalists if not entry.reason]
    if not running:
        return

    def compute() -> dict[str, Any]:
        engines = {entry.spec.name: bench.open(entry.spec).engine for entry in running}
        single = timing.latencies(engines, bench.work, seconds)
        rates = timing.rates(engines, bench.work, BATCH_TOKENS, seconds, rounds)
        mixed = {name: _best(by_batch) for name, by_batch in rates.items()}
        return {
            name: {
                "latency": {text: latency.model_dump() for text, latency in single[name].items()},
                "batch_tokens": mixed[name][0],
                "throughput": mixed[name][1].model_dump(),
            }
            for name in engines
        }

    names = [(entry.spec.kind, str(entry.spec.execution)) for entry in running]
    key = measurements.key_of(bench.key, "measure", rounds, names)
    try:
        times = measurements.remember(key, compute)
    except Exception:
        _rule_out_failing(running, bench)
        if not any(entry.reason for entry in running):
            raise
        measure(running, bench, seconds, objective)
        return
    for entry in running:
        timed = times[entry.spec.name]
        entry.latency = {text: Latency(**latency) for text, latency in timed["latency"].items()}
        entry.batch_tokens, entry.throughput = timed["batch_tokens"], Metric(**timed["throughput"])


def _rule_out_failing(entries: Sequence[Entry], bench: Bench) -> None:
    """Runs each candidate on every batch, and rules out those that fail."""
    for entry in entries:
        with rule_out_on_error(entry, "cannot be run: "):
            engine = bench.open(entry.spec).engine
            for batch in (batch for tokens in BATCH_TOKENS for batch in bench.work.grouped(tokens, engine)):
                engine.run(batch)


def _best(rates: Mapping[int, Metric]) -> tuple[int, Metric]:
    return max(rates.items(), key=lambda item: item[1].value)


def repair(finalists: Sequence[Entry], bench: Bench, objective: Objective) -> Entry | None:
    """Returns the worst MatMuls of the best quantized candidate to float, until the gates that stopped it pass.

    Returns:
        The new candidate, judged but not measured; None if no stopped candidate is better than the kept one, or if no
        repair passes.
    """
    candidates = choose(finalists, bench.gates, objective)
    limit = min((choice.score(candidate, objective) for candidate in candidates if candidate.kept), default=np.inf)
    stopped = [
        (choice.score(candidate, objective), entry)
        for entry, candidate in zip(finalists, candidates, strict=True)
        if entry.spec.quantizer != "none" and entry.latency and failing(bench.gates, candidate.verdicts)
    ]
    better = [(score, entry) for score, entry in stopped if score * choice.NOISE_RATIO < limit]
    if not better:
        return None
    spec = min(better, key=lambda pair: pair[0])[1].spec
    ranking: list[sensitivity.Damage] = []
    with rule_out_on_error(attempt := Entry(spec), "its MatMuls cannot be ranked: "):
        ranking = _ranking(spec, bench)
    if attempt.reason:
        log.warning("no MatMul of %s returns to float: %s", spec.name, attempt.reason)
    for keep in sensitivity.groups(ranking):
        entry = Entry(replace(spec, keep=tuple(sorted(keep))))
        with rule_out_on_error(entry, "cannot be made: "):
            entry.bytes = bench.file(entry.spec).stat().st_size
        if not entry.reason:
            judge([entry], bench)
        if passes(entry, bench):
            return entry
    return None


def _ranking(spec: Spec, bench: Bench) -> list[sensitivity.Damage]:
    method = quantizers.load(spec.quantizer)
    options = method.Options.model_validate(dict(spec.options))
    return sensitivity.rank(bench.variant(spec.graph), method, options, bench.calibration, bench.folder)
