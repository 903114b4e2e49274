"""Chooses the candidate that is kept: the best by the objective among those that pass every gate.

These are pure functions on measurements; `search` measures. The float graph is always one of the candidates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import AliasChoices, Field

from deploykit.artifact import Metric
from deploykit.artifact.execution import Execution
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.timing import Latency
from deploykit.methods import Frozen
from deploykit.quantizers.auto import Graph, Objective

NOISE_RATIO = 1.02  # times whose ratio is smaller count as equal: repeated measurements differ by as much


class Candidate(Frozen):
    """One way to run the model, with its measurements.

    Attributes:
        name: as in reports.
        graph: the variant of the exported graph.
        quantizer: the method that quantized that variant.
        precision: the type of the weights.
        options: of the quantizer.
        float_nodes: names of the MatMuls that were left in float; `keep` in older manifests.
        execution: engine, precision of the arithmetic, device and threads.
        bytes: the size of the graph's file.
        latency: of single texts, by their names in the workload, such as "batch 1, 27 tokens"; empty unless the
            candidate was a finalist.
        throughput: texts/s at mixed lengths; None unless the candidate was a finalist.
        metric: the task's first metric on the validation split; None if the candidate was not evaluated.
        comparison: with the float graph; None if the candidate was not evaluated.
        verdicts: of the gates.
        kept: whether this is the candidate that was chosen.
        reason: why it was chosen, or why not.
    """

    name: str
    graph: Graph
    quantizer: str
    precision: str
    options: dict[str, Any] = Field(default_factory=dict)
    float_nodes: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("float_nodes", "keep"))
    execution: Execution
    bytes: int = 0
    latency: dict[str, Latency] = Field(default_factory=dict)
    throughput: Metric | None = None
    metric: Metric | None = None
    comparison: Comparison | None = None
    verdicts: tuple[Verdict, ...] = ()
    kept: bool = False
    reason: str = ""


def cost(candidate: Candidate, objective: Objective) -> float:
    """Returns whby the objective minimizes: milliseconds per text, or bytes for the objective `size`.

    For latency, it is the geometric mean of the median times of short, medium and long texts, so that each length has
    the same weight.
    """
    if objective == "size":
        return float(candidate.bytes)
    if objective == "throughput" and candidate.throughput is not None:
        return 1000 / candidate.throughput.value
    return float(np.exp(np.mean([np.log(latency.p50) for latency in candidate.latency.values()])))


def slowdowns(candidate: Candidate, base: Candidate, objective: Objective) -> str:
    """Lists in words where a candidate is slower than the float graph by more than noise; empty if nowhere.

    The objective `size` checks both latency and throughput: a smaller graph need not be faster, but must not be slower.
    """
    slower = [
        f"{text}: {latency.p50:.2f} ms against {base.latency[text].p50:.2f} ms"
        for text, latency in candidate.latency.items()
        if objective != "throughput" and latency.p50 > base.latency[text].p50 * NOISE_RATIO
    ]
    if objective != "latency" and candidate.throughput and base.throughput:
        rate, base_rate = candidate.throughput.value, base.throughput.value
        if rate * NOISE_RATIO < base_rate:
            slower.append(f"mixed lengths: {rate:.0f} texts/s against {base_rate:.0f}")
    return "; ".join(slower)


def choose(candidates: Sequence[Candidate], objective: Objective, failing: Mapping[str, str]) -> list[Candidate]:
    """Marks the best candidate that passes as kept; if none passes, none is marked.

    A candidate slower than the float graph is ruled out. But if the float graph is ruled out itself, a slower candidate
    may be the only way to run the model at all, so it is not ruled out.

    Args:
        candidates: the float graph first. A candidate that already has a reason is ruled out.
        objective: decides which candidate is best.
        failing: maps the name of a candidate to a text on the gates that stop it; empty or absent if no gate does.

    Returns:
        Copies of the candidates in the same order, each with a reason.
    """
    base, reasons = candidates[0], {entry.name: entry.reason for entry in candidates if entry.reason}
    for candidate in candidates:
        name = candidate.name
        if name in reasons:
            continue
        if failing.get(name):
            reasons[name] = f"stopped by a gate: {failing[name]}"
        elif base.name not in reasons and (slower := slowdowns(candidate, base, objective)):
            reasons[name] = f"slower than the float graph: {slower}"
    passing = [entry for entry in candidates if entry.name not in reasons]
    winner = min(passing, key=lambda entry: cost(entry, objective), default=None)
    for loser in passing:
        if winner and loser is not winner:
            ratio = cost(loser, objective) / cost(winner, objective)
            word = "larger" if objective == "size" else "slower"
            reasons[loser.name] = f"{ratio:.2f} times {word} than {winner.name}"
    if winner:
        reasons[winner.name] = f"the best at {objective} that passes every gate"
    return [entry.model_copy(update={"kept": entry is winner, "reason": reasons[entry.name]}) for entry in candidates]
