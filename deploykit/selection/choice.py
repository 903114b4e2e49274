"""Which of the measured ways to run a model is kept: the best at the objective of those that pass every gate.

Pure functions on what was measured; `search` measures. The float graph is always among the candidates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.artifact import Metric, Record
from deploykit.artifact.execution import Execution
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.timing import Latency
from deploykit.quantizers.auto import Graph, Objective

TOLERANCE = 1.02  # a smaller difference between two medians is taken for noise


class Candidate(Record):
    """One way to run the model, what was measured of it, and why it was kept or not.

    `graph` is a variant of the exported graph, `quantizer` what made it smaller with its `options`, `precision`
    that of its weights, and `keep` names the products that were left in float. `latency` maps a text to its
    milliseconds, `throughput` is in texts a second at mixed lengths; both are empty where a first look was
    enough. `metric` is the task's first on the validation split and `comparison` is against the float graph;
    both are None where nothing was evaluated.
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
    """Returns what the objective makes small, of a measured candidate: milliseconds (a text), or bytes.

    Latency is the geometric mean of the medians over short, middling and long texts, so that each counts the
    same.
    """
    if objective == "size":
        return float(candidate.bytes)
    if objective == "throughput" and candidate.throughput is not None:
        return 1000 / candidate.throughput.value
    return float(np.exp(np.mean([np.log(latency.p50) for latency in candidate.latency.values()])))


def slower(candidate: Candidate, base: Candidate, objective: Objective) -> str:
    """Says where a candidate is slower than the float graph, within the noise of measuring; empty for nowhere.

    A smaller graph must be faster at neither latency nor throughput, but slower at none.
    """
    found = []
    if objective != "throughput":
        found = [
            f"{text}: {latency.p50:.2f} ms against {base.latency[text].p50:.2f} ms"
            for text, latency in candidate.latency.items()
            if latency.p50 > base.latency[text].p50 * TOLERANCE
        ]
    if objective != "latency" and candidate.throughput and base.throughput:
        rate, other = candidate.throughput.value, base.throughput.value
        if rate * TOLERANCE < other:
            found.append(f"mixed lengths: {rate:.0f} texts a second against {other:.0f}")
    return "; ".join(found)


def choose(candidates: Sequence[Candidate], objective: Objective, failing: Mapping[str, str]) -> list[Candidate]:
    """Marks the best candidate that passes; none is marked where none does.

    One that is slower than the float graph is out, unless that is out itself: then there is nothing to fall back on.

    Args:
        candidates: the float graph first. One that has a reason already is out.
        objective: what is made small.
        failing: candidate to the gates that stop it, empty or absent for none.

    Returns:
        The same candidates, each with a reason.
    """
    base = candidates[0]
    reasons = {found.name: found.reason for found in candidates if found.reason}
    for found in candidates:
        if found.name in reasons:
            continue
        if failing.get(found.name):
            reasons[found.name] = f"stopped by a gate: {failing[found.name]}"
        elif base.name not in reasons and (lost := slower(found, base, objective)):
            reasons[found.name] = f"slower than the float graph: {lost}"
    passing = [found for found in candidates if found.name not in reasons]
    winner = min(passing, key=lambda found: score(found, objective), default=None)
    for found in passing:
        if winner and found is not winner:
            ratio = score(found, objective) / score(winner, objective)
            word = "larger" if objective == "size" else "slower"
            reasons[found.name] = f"{ratio:.2f} times {word} than {winner.name}"
    if winner:
        reasons[winner.name] = f"the best at {objective} that keeps every gate"
    return [found.model_copy(update={"kept": found is winner, "reason": reasons[found.name]}) for found in candidates]
