"""Measures candidates on this machine and keeps the fastest that passes the gates.

A candidate is a graph at a precision on an engine with a number of threads. Latencies are taken in turn,
candidate by candidate and round by round, so that a machine whose speed drifts treats all the same.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.artifact import Metric, Record
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.predictor import Predictor
from deploykit.tasks import Example

ROUNDS = 15
QUANTILES = (0.5, 0.1, 0.9)  # the median first: lengths that are equal share one entry, and it stays the first
TOLERANCE = 1.02  # a smaller difference between two medians is taken for noise


class Latency(Record):
    """Milliseconds of a call: median, and the quartiles as the interval."""

    p50: float
    low: float
    high: float


class Candidate(Record):
    """One measured combination, and why it was kept or not.

    `metric` is the task's first on the validation split, `latency` maps a kind of batch to its milliseconds,
    and `comparison` is against the float graph.
    """

    name: str
    precision: str
    engine: str
    threads: int
    bytes: int
    metric: Metric
    latency: dict[str, Latency]
    comparison: Comparison
    verdicts: tuple[Verdict, ...] = ()
    kept: bool = False
    reason: str = ""


def probes(examples: Sequence[Example], predictor: Predictor) -> dict[str, list[int]]:
    """Picks batches at the lengths of the user's own data.

    Args:
        examples: usually the validation split.
        predictor: tokenizes them.

    Returns:
        Names such as `"batch 1, 27 tokens"` to the indices of the rows in the batch; median length first.
    """
    encodings = predictor.tokenizer.encode([row.text for row in examples], [row.pair for row in examples])
    order = sorted(range(len(examples)), key=lambda index: len(encodings[index]))
    found = {}
    for share in QUANTILES:
        index = order[int(share * (len(order) - 1))]
        found[f"batch 1, {len(encodings[index])} tokens"] = [index]
    middle = order[int(0.5 * (len(order) - 1)) :][:8]
    found[f"batch {len(middle)}, {max(len(encodings[i]) for i in middle)} tokens"] = middle
    return found


def measure(
    predictors: Mapping[str, Predictor], examples: Sequence[Example], batches: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Latency]]:
    """Times every candidate on every batch, in turn.

    Args:
        predictors: name of a candidate to its predictor; all with as many threads.
        examples: the rows that `batches` point to.
        batches: see `probes`.

    Returns:
        Candidate to batch to latency.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {batch: [] for batch in batches} for name in predictors}
    for batch, rows in batches.items():
        calls = {name: _call(predictor, [examples[index] for index in rows]) for name, predictor in predictors.items()}
        for call in calls.values():  # a first call builds caches
            call()
        for turn in range(ROUNDS):
            names = list(calls)
            for name in names if turn % 2 else reversed(names):
                start = time.perf_counter()
                calls[name]()
                samples[name][batch].append((time.perf_counter() - start) * 1000)
    return {name: {batch: _latency(times) for batch, times in found.items()} for name, found in samples.items()}


def typical(predictor: Predictor, examples: Sequence[Example]) -> float:
    """Returns the median milliseconds of one input of median length."""
    name, rows = next(iter(probes(examples, predictor).items()))
    return measure({"it": predictor}, examples, {name: rows})["it"][name].p50


def choose(candidates: Sequence[Candidate], gates_broken: Mapping[str, str]) -> list[Candidate]:
    """Keeps the fastest candidate that breaks no gate; the first is the float graph, which breaks none.

    A candidate must be no slower than the float graph on any batch, within the noise of measuring.

    Args:
        candidates: measured; the float graph first.
        gates_broken: candidate to the gates that it breaks, empty text for none.
    """
    base = candidates[0]
    reasons = {}
    for found in candidates[1:]:
        slower = [
            f"{batch}: {latency.p50:.2f} ms against {base.latency[batch].p50:.2f} ms"
            for batch, latency in found.latency.items()
            if latency.p50 > base.latency[batch].p50 * TOLERANCE
        ]
        if gates_broken.get(found.name):
            reasons[found.name] = f"breaks a gate: {gates_broken[found.name]}"
        elif slower:
            reasons[found.name] = f"slower than the {base.name} graph at {'; '.join(slower)}"
    passing = [found for found in candidates if found.name not in reasons]
    winner = min(passing, key=speed)
    for found in passing:
        if found is winner:
            reasons[found.name] = "the fastest that keeps every gate"
        else:
            reasons[found.name] = f"{speed(found) / speed(winner):.2f} times slower than {winner.name}"
    return [found.model_copy(update={"kept": found is winner, "reason": reasons[found.name]}) for found in candidates]


def speed(candidate: Candidate) -> float:
    """Returns the geometric mean of the medians, in milliseconds, so that every batch counts the same."""
    return float(np.exp(np.mean([np.log(latency.p50) for latency in candidate.latency.values()])))


def _call(predictor: Predictor, rows: Sequence[Example]) -> Callable[[], Any]:
    batch = predictor.tokenizer.collate(predictor.tokenizer.encode([r.text for r in rows], [r.pair for r in rows]))
    return lambda: predictor.engine.run(batch)


def _latency(times: Sequence[float]) -> Latency:
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Latency(p50=float(middle), low=float(low), high=float(high))
