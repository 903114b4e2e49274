"""Chooses the candidate that is kept: the best at the objective among those that pass every gate.

Pure functions on measurements; `search` measures. The float graph is always one of the candidates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.artifact import Metric
from deploykit.artifact.execution import Execution
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.timing import Latency
from deploykit.methods import Frozen
from deploykit.quantizers.auto import Graph, Objective

NOISE_RATIO = 1.02  # medians whose ratio is smaller count as equal: repeated measurements differ by as much


class Candidate(Frozen):
    """One way to run the model, its measurements, and the reason why it was kept or not.

    `graph` is a variant of the exported graph, `quantizer` and its `options` quantized that variant, `precision` is
    the type of the weights, and `keep` names the MatMuls left in float. `latency` maps each kind of batch to
    milliseconds, and `throughput` is in texts/s at mixed lengths; a candidate ruled out by a short first measurement
    lacks some of these. `metric` is the task's first metric on the validation split, and `comparison` is against the
    float graph; both are None if the candidate was not evaluated.
    """

    name: str
    graph: Graph
    quantizer: str
    precision: str
    options: dict[str, Any] = Field(default_factory=dict)
    keep: tuple[str, ...] = ()
    execution: Execution
    bytes: int = 0
    latency: dict[str, Latency] = Field(default_factory=dict)
    throughput: Metric | None = None
    metric: Metric | None = None
    comparison: Comparison | None = None
    verdicts: tuple[Verdict, ...] = ()
    kept: bool = False
    reason: str = ""


def score(candidate: Candidate, objective: Objective) -> float:
    """Returns the value that the objective minimizes: milliseconds per text, or bytes.

    For latency, it is the geometric mean of the median times of short, medium and long texts, so that each length has
    the same weight.
    """
    if objective == "size":
        return float(candidate.bytes)
    if objective == "throughput" and candidate.throughput is not None:
        return 1000 / candidate.throughput.value
    return float(np.exp(np.mean([np.log(latency.p50) for latency in candidate.latency.values()])))


def slower(candidate: Candidate, base: Candidate, objective: Objective) -> str:
    """Lists where a candidate is slower than the float graph by more than noise; empty if nowhere.

    The objective `size` checks both latency and throughput: a smaller graph need not be faster, but must not be slower.
    """
    losses = [
        f"{text}: {latency.p50:.2f} ms against {base.latency[text].p50:.2f} ms"
        for text, latency in candidate.latency.items()
        if objective != "throughput" and latency.p50 > base.latency[text].p50 * NOISE_RATIO
    ]
    if objective != "latency" and candidate.throughput and base.throughput:
        rate, base_rate = candidate.throughput.value, base.throughput.value
        if rate * NOISE_RATIO < base_rate:
            losses.append(f"mixed lengths: {rate:.0f} texts/s against {base_rate:.0f}")
    return "; ".join(losses)


def choose(candidates: Sequence[Candidate], objective: Objective, failing: Mapping[str, str]) -> list[Candidate]:
    """Marks the best candidate that passes as kept; if none passes, none is marked.

    A candidate slower than the float graph is ruled out, unless the float graph is ruled out itself: then the slower
    candidate may be the only way to run the model at all.

    Args:
        candidates: the float graph first. A candidate that already has a reason is ruled out.
        objective: decides which candidate is best.
        failing: maps the name of a candidate to the gates that stop it; empty or absent if no gate does.

    Returns:
        The same candidates, each with a reason.
    """
    base, reasons = candidates[0], {entry.name: entry.reason for entry in candidates if entry.reason}
    for candidate in candidates:
        name = candidate.name
        if name in reasons:
            continue
        if failing.get(name):
            reasons[name] = f"stopped by a gate: {failing[name]}"
        elif base.name not in reasons and (losses := slower(candidate, base, objective)):
            reasons[name] = f"slower than the float graph: {losses}"
    passing = [entry for entry in candidates if entry.name not in reasons]
    winner = min(passing, key=lambda entry: score(entry, objective), default=None)
    for loser in passing:
        if winner and loser is not winner:
            ratio = score(loser, objective) / score(winner, objective)
            word = "larger" if objective == "size" else "slower"
            reasons[loser.name] = f"{ratio:.2f} times {word} than {winner.name}"
    if winner:
        reasons[winner.name] = f"the best at {objective} that passes every gate"
    return [entry.model_copy(update={"kept": entry is winner, "reason": reasons[entry.name]}) for entry in candidates]
