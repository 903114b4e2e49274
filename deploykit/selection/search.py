"""Searches for the best way to run a graph on this machine, within minutes.

1. Screening: a short measurement compares each candidate with the float graph.
2. The finalists, which are those near the best, are evaluated for the gates and then timed together.
3. If the best quantized finalist fails a gate, the MatMuls that do most damage return to float until it passes.

Measurements on this machine are remembered.
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
from deploykit.selection.entries import Entry, choose, evaluate, log, passes, rule_out_on_error
from deploykit.selection.evaluator import Bench

MAX_FINALISTS = 6  # added at once; they share the time for timing, so more would leave too little for each
# A finalist's time in the screening is at most this many times the best one's; the screening is too short to tell apart
# candidates that are closer.
FINALIST_MAX_RATIO = 1.3
SCREENING_SHARE = 0.5  # of the minutes of the search, after which no more candidates are screened
SCREENING_S = 1.0  # about how long the timing of one candidate takes in the screening
# The finalists are timed twice: on single texts and on batches. These limit each of the two timings.
MAX_TIMING_SHARE = 0.15  # of the minutes of the search
MAX_TIMING_S = 20.0
BATCH_TOKENS = (256, 512, 1024, 2048)  # padded tokens per batch that finalists are timed with
SCREENING_BATCH_TOKENS = BATCH_TOKENS[1:3]  # the same in the screening
COMPARED_QUANTITIES = {"latency": "latency", "throughput": "time per text", "size": "bytes"}  # as reasons name them


def search(specs: Sequence[Spec], bench: Bench, options: Options) -> tuple[list[Entry], list[Candidate]]:
    """Searches for the best candidate by the objective that passes every gate; `specs` begin with the float graph.

    Returns:
        The entries, and the same as candidates. One candidate is kept, or none if none passes. The order is that of
        `specs`, then the best of them with other thread layouts, then the repaired candidate, if there is one.
    """
    start = time.monotonic()
    screening_deadline, deadline = (start + 60 * options.minutes * share for share in (SCREENING_SHARE, 1))
    entries = [Entry(spec) for spec in specs]
    screen(entries, bench, options.objective, screening_deadline)
    near_best = [entry.spec for entry in entries[:1] + next_finalists(entries[1:])]
    entries += [Entry(spec) for spec in other_layouts(near_best, options.objective)]
    screen(entries, bench, options.objective, screening_deadline)
    finalists = entries[:1]
    evaluate(finalists, bench)
    while more := next_finalists(entries, finalists):
        evaluate(more, bench)
        finalists = [*finalists, *more]
        if any(passes(entry, bench) for entry in more) or time.monotonic() > deadline:
            break  # otherwise the next best ones are evaluated
    seconds = min(MAX_TIMING_S, 60 * options.minutes * MAX_TIMING_SHARE)
    time_together(finalists, bench, seconds, options.objective)
    if options.fallback and (repaired := repair(finalists, bench, options.objective)):
        entries.append(repaired)
        time_together([*finalists, repaired], bench, seconds, options.objective)
    evaluate(sorted((entry for entry in entries if not entry.reason), key=lambda entry: entry.ratio), bench, deadline)
    for entry in entries:
        if not entry.reason and not entry.latency:
            quantity = COMPARED_QUANTITIES[options.objective]
            entry.reason = f"{entry.ratio:.2f} times the float graph's {quantity} in the first measurement"
    return entries, choose(entries, bench.gates, options.objective)


def screen(entries: Sequence[Entry], bench: Bench, objective: Objective, deadline: float) -> None:
    """Sets `ratio` and `bytes` of new candidates by short measurements, and rules out those that fail.

    The float graph comes first. Then come exported graphs before their variants, and bfloat16 before float32, because
    time may run out.

    Args:
        entries: the float graph first; those that were screened before are skipped.
        bench: makes and opens candidates.
        objective: decides what is measured.
        deadline: on the monotonic clock, in seconds; candidates left then are ruled out, but never the float graph.
    """

    def priority(entry: Entry) -> tuple[bool, int, bool]:
        graph = variants.VARIANTS.index(entry.spec.graph)
        return entry is not entries[0], graph, entry.spec.execution.precision == "float32"

    new = sorted((entry for entry in entries if not entry.reason and not entry.bytes), key=priority)
    for entry in tqdm(new, desc="candidates", disable=None):
        spec = entry.spec
        key = measurements.key_of(bench.key, "screening", spec.prediction_key, str(spec.execution), objective)
        if time.monotonic() > deadline and entry is not entries[0]:
            entry.reason = "not tried: the minutes of the search were over"
            continue
        if measurements.look_up(key) is None:
            with rule_out_on_error(entry, "cannot be made: "):
                bench.file(spec)
        if not entry.reason:
            with rule_out_on_error(entry, "cannot be run: "):
                screened = measurements.get_or_compute(key, partial(_screen_one, spec, bench, objective))
                entry.ratio, entry.bytes = screened["ratio"], screened["bytes"]


def _screen_one(spec: Spec, bench: Bench, objective: Objective) -> dict[str, float]:
    """Measures a candidate's size and speed briefly.

    Returns:
        Its size (`bytes`), and its time per text over the float graph's (`ratio`). For the objective `size`, the ratio
        is that of their sizes.
    """
    size = bench.file(spec).stat().st_size
    engines = {"base": bench.base.engine, "candidate": bench.open(spec).engine}
    if objective == "throughput":
        rates = timing.throughputs(
            engines, bench.screening_workload, SCREENING_BATCH_TOKENS, SCREENING_S, timing.ROUGH_MIN_ROUNDS
        )
        ratio = _fastest(rates["base"])[1].value / _fastest(rates["candidate"])[1].value
    elif objective == "latency":
        latencies = timing.latencies(engines, bench.workload, SCREENING_S, timing.ROUGH_MIN_ROUNDS)
        ratios = [latency.p50 / latencies["base"][text].p50 for text, latency in latencies["candidate"].items()]
        ratio = float(np.exp(np.mean(np.log(ratios))))
    else:
        ratio = size / bench.graph.stat().st_size
    return {"ratio": ratio, "bytes": size}


def next_finalists(entries: Sequence[Entry], excluded: Sequence[Entry] = ()) -> list[Entry]:
    """Returns the entries that were nearly as good as the best in the screening, apart from the excluded ones."""
    identities = {id(entry) for entry in excluded}
    others = (entry for entry in entries if not entry.reason and id(entry) not in identities)
    ranked = sorted(others, key=lambda entry: entry.ratio)[:MAX_FINALISTS]
    return [entry for entry in ranked if entry.ratio <= ranked[0].ratio * FINALIST_MAX_RATIO]


def time_together(entries: Sequence[Entry], bench: Bench, seconds: float, objective: Objective) -> None:
    """Times candidates in turn, and stores latencies, throughput and the best size of batches in their entries.

    There are two timings: one text at a time, then batches of mixed lengths. Only the objective `throughput` depends on
    the second, so that others do it in fewer rounds. A candidate that fails is ruled out, and the rest is timed anew.

    Args:
        entries: those that were ruled out before are skipped.
        bench: opens candidates.
        seconds: about how long each of the two timings may take.
        objective: decides the number of rounds.
    """
    min_rounds = timing.MIN_ROUNDS if objective == "throughput" else timing.ROUGH_MIN_ROUNDS
    running = [entry for entry in entries if not entry.reason]
    if not running:
        return

    def compute() -> dict[str, Any]:
        engines = {entry.spec.name: bench.open(entry.spec).engine for entry in running}
        latencies = timing.latencies(engines, bench.workload, seconds)
        rates = timing.throughputs(engines, bench.workload, BATCH_TOKENS, seconds, min_rounds)
        fastest = {name: _fastest(by_budget) for name, by_budget in rates.items()}
        return {
            name: {
                "latency": {text: latency.model_dump() for text, latency in latencies[name].items()},
                "batch_tokens": fastest[name][0],
                "throughput": fastest[name][1].model_dump(),
            }
            for name in engines
        }

    names = [(entry.spec.prediction_key, str(entry.spec.execution)) for entry in running]
    key = measurements.key_of(bench.key, "timing", min_rounds, names)
    try:
        times = measurements.get_or_compute(key, compute)
    except Exception:
        _rule_out_failing(running, bench)
        if not any(entry.reason for entry in running):
            raise
        time_together(running, bench, seconds, objective)  # again, without those that fail
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
            for batch in (batch for tokens in BATCH_TOKENS for batch in bench.workload.mixed_batches(tokens, engine)):
                engine.run(batch)


def _fastest(rates: Mapping[int, Metric]) -> tuple[int, Metric]:
    """Returns the padded tokens per batch at which most texts are read in a second, and that rate."""
    return max(rates.items(), key=lambda item: item[1].value)


def repair(finalists: Sequence[Entry], bench: Bench, objective: Objective) -> Entry | None:
    """Repairs the best quantized candidate that a gate stops, with as few of its MatMuls in float as make it pass.

    The most damaging MatMul returns to float first, then the worst two, the worst four, and so on.

    Returns:
        The new candidate, evaluated but not timed; None if no stopped candidate is better than the kept one, or if no
        number of MatMuls in float makes it pass.
    """
    candidates = choose(finalists, bench.gates, objective)
    kept_cost = min((choice.cost(candidate, objective) for candidate in candidates if candidate.kept), default=np.inf)
    stopped = [
        (choice.cost(candidate, objective), entry)
        for entry, candidate in zip(finalists, candidates, strict=True)
        if entry.spec.quantizer != "none" and entry.latency and failing(bench.gates, candidate.verdicts)
    ]
    better = [(cost, entry) for cost, entry in stopped if cost * choice.NOISE_RATIO < kept_cost]
    if not better:
        return None
    spec = min(better, key=lambda pair: pair[0])[1].spec
    ranking: list[sensitivity.Damage] = []
    with rule_out_on_error(attempt := Entry(spec), "its MatMuls cannot be ranked: "):
        ranking = _rank_matmuls(spec, bench)
    if attempt.reason:
        log.warning("no MatMul of %s returns to float: %s", spec.name, attempt.reason)
    for nodes in sensitivity.groups(ranking):
        entry = Entry(replace(spec, float_nodes=tuple(sorted(nodes))))
        with rule_out_on_error(entry, "cannot be made: "):
            entry.bytes = bench.file(entry.spec).stat().st_size
        if not entry.reason:
            evaluate([entry], bench)
        if passes(entry, bench):
            return entry
    return None


def _rank_matmuls(spec: Spec, bench: Bench) -> list[sensitivity.Damage]:
    """Ranks the MatMuls of a candidate's graph by the damage of quantizing them, the worst first."""
    method = quantizers.load(spec.quantizer)
    options = method.Options.model_validate(dict(spec.options))
    return sensitivity.rank(bench.variant(spec.graph), method, options, bench.calibration, bench.folder)
