"""Finds the best way to run a graph on this machine, within minutes: writes candidates, times and judges them.

At a first look each candidate is timed against the float graph, briefly. Those near the best are then timed
together, and their predictions are judged. Where an int8 graph is the fastest but for a gate, the MatMuls
that do most damage return to float until the gate holds. What was measured or judged before on this machine
is remembered.
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
from deploykit.selection.candidates import Spec, otherwise
from deploykit.selection.choice import Candidate
from deploykit.selection.entries import Entry, choose, judge, log, passes, put_out_on_error
from deploykit.selection.evaluator import Bench

FINALISTS = 6  # timed together
NEAR = 1.3  # of those that are at most this many times slower than the best at a first look
LOOKING = 0.5  # share of the minutes that first looks may take
BUDGETS = (256, 512, 1024, 2048)  # padded tokens of a batch that are tried
MEASURES = {"latency": "latency", "throughput": "time a text", "size": "bytes"}
LOOK_S, TIMED_S = 1.0, 20.0  # seconds: at most for a first look, and for timing the finalists in each of two ways
TIMED = 0.15  # of the minutes: at most for the latter


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
    best = [entry.spec for entry in entries[:1] + near(entries[1:])]
    entries += [Entry(spec) for spec in otherwise(best, options.objective)]
    look(entries, bench, options.objective, until)
    finalists = entries[:1]
    judge(finalists, bench)
    while more := near(entries, finalists):
        judge(more, bench)
        finalists = [*finalists, *more]
        if any(passes(entry, bench) for entry in more) or time.monotonic() > end:
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


def look(entries: Sequence[Entry], bench: Bench, objective: Objective, until: float) -> None:
    """Compares each candidate with the float graph, briefly; notes why one cannot be tried.

    Plain graphs come first, and arithmetic that the CPU has units for: who is late may find the minutes over.
    """

    def turn(entry: Entry) -> tuple[bool, int, bool]:
        """Returns what candidates are sorted by."""
        place = variants.VARIANTS.index(entry.spec.graph), entry.spec.execution.precision == "float32"
        return entry is not entries[0], *place

    new = sorted((entry for entry in entries if not entry.reason and not entry.bytes), key=turn)
    for entry in tqdm(new, desc="candidates", disable=None):
        key = measurements.key_of(bench.key, "look", entry.spec.kind, str(entry.spec.execution), objective)
        if time.monotonic() > until and entry is not entries[0]:
            entry.reason = "not tried: the minutes of the search were over"
            continue
        if measurements.recall(key) is None:
            with put_out_on_error(entry, "cannot be made: "):
                bench.file(entry.spec)
        if not entry.reason:
            with put_out_on_error(entry, "cannot be run: "):
                looks = measurements.remember(key, partial(_glance, entry.spec, bench, objective))
                entry.ratio, entry.bytes = looks["ratio"], looks["bytes"]


def _glance(spec: Spec, bench: Bench, objective: Objective) -> dict[str, float]:
    """Returns a candidate's bytes, and the ratio of what the objective makes small to the float graph's."""
    size = bench.file(spec).stat().st_size
    pair = {"base": bench.base.engine, "it": bench.open(spec).engine}
    if objective == "throughput":
        rates = timing.rates(pair, bench.taste, BUDGETS[1:3], LOOK_S, timing.FIRST_LOOK_ROUNDS)
        ratio = _best(rates["base"])[1].value / _best(rates["it"])[1].value
    elif objective == "latency":
        found = timing.latencies(pair, bench.work, LOOK_S, timing.FIRST_LOOK_ROUNDS)
        ratios = [found["it"][text].p50 / found["base"][text].p50 for text in found["it"]]
        ratio = float(np.exp(np.mean(np.log(ratios))))
    else:
        ratio = size / bench.graph.stat().st_size
    return {"ratio": ratio, "bytes": size}


def near(entries: Sequence[Entry], known: Sequence[Entry] = ()) -> list[Entry]:
    """Returns those that a first look found near the best of all that are not known yet."""
    others = (entry for entry in entries if not entry.reason and not any(entry is one for one in known))
    tried = sorted(others, key=lambda entry: entry.ratio)
    return [entry for entry in tried[:FINALISTS] if entry.ratio <= tried[0].ratio * NEAR]


def measure(finalists: Sequence[Entry], bench: Bench, seconds: float) -> None:
    """Times candidates together, alone and at mixed lengths, with the batches that suit each.

    Args:
        finalists: to time; one that fails now is put out, and the others are timed without it.
        bench: see `Bench`.
        seconds: about how long each of the two ways may take.
    """
    running = [entry for entry in finalists if not entry.reason]
    if not running:
        return

    def compute() -> dict[str, Any]:
        opened = {entry.spec.name: bench.open(entry.spec).engine for entry in running}
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

    key = measurements.key_of(bench.key, "measure", [(entry.spec.kind, str(entry.spec.execution)) for entry in running])
    try:
        times = measurements.remember(key, compute)
    except Exception:
        _put_out_broken(running, bench)
        if not any(entry.reason for entry in running):
            raise
        measure(running, bench, seconds)
        return
    for entry in running:
        timed = times[entry.spec.name]
        entry.latency = {text: Latency(**latency) for text, latency in timed["latency"].items()}
        entry.batch_tokens, entry.throughput = timed["batch_tokens"], Metric(**timed["throughput"])


def _put_out_broken(entries: Sequence[Entry], bench: Bench) -> None:
    """Runs each candidate on everything that is timed, to find which one fails."""
    for entry in entries:
        with put_out_on_error(entry, "cannot be run: "):
            engine = bench.open(entry.spec).engine
            for batch in (batch for budget in BUDGETS for batch in bench.work.grouped(budget, engine)):
                engine.run(batch)


def _best(rates: Mapping[int, Metric]) -> tuple[int, Metric]:
    return max(rates.items(), key=lambda found: found[1].value)


def repair(finalists: Sequence[Entry], bench: Bench, objective: Objective) -> Entry | None:
    """Returns the worst MatMuls of the best quantized candidate to float, until the gates that stopped it hold.

    Args:
        finalists: measured and judged.
        bench: see `Bench`.
        objective: says which is the best.

    Returns:
        The new candidate, judged but not measured; None where nothing was to be gained, or nothing helped.
    """
    candidates = choose(finalists, bench.gates, objective)
    limit = min((choice.score(found, objective) for found in candidates if found.kept), default=np.inf)
    broken = [
        (choice.score(found, objective), entry)
        for entry, found in zip(finalists, candidates, strict=True)
        if entry.spec.quantizer != "none" and entry.latency and failing(bench.gates, found.verdicts)
    ]
    worth = [(score, entry) for score, entry in broken if score * choice.NOISE_RATIO < limit]
    if not worth:
        return None
    _, best = min(worth, key=lambda pair: pair[0])
    ranking: list[sensitivity.Damage] = []
    with put_out_on_error(attempt := Entry(best.spec), "its products cannot be ranked: "):
        ranking = _ranked(best.spec, bench)
    if attempt.reason:
        log.warning("no product of %s returns to float: %s", best.spec.name, attempt.reason)
    for keep in sensitivity.groups(ranking):
        made = Entry(replace(best.spec, keep=tuple(sorted(keep))))
        with put_out_on_error(made, "cannot be made: "):
            made.bytes = bench.file(made.spec).stat().st_size
        if not made.reason:
            judge([made], bench)
        if passes(made, bench):
            return made
    return None


def _ranked(spec: Spec, bench: Bench) -> list[sensitivity.Damage]:
    """Returns the damage that quantizing each product of a candidate's graph does, the worst first."""
    method = quantizers.load(spec.quantizer)
    options = method.Options.model_validate(dict(spec.options))
    return sensitivity.rank(bench.variant(spec.graph), method, options, bench.calibration, bench.folder)
