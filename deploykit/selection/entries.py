"""The candidates while a search runs: what was measured of each so far, and why it was ruled out."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from deploykit.artifact import Metric
from deploykit.errors import DeploykitError, disk_is_full
from deploykit.evaluation.gates import failing
from deploykit.evaluation.timing import Latency
from deploykit.quantizers.auto import Objective
from deploykit.recipe import GateSection
from deploykit.selection import choice, measurements
from deploykit.selection.candidates import Spec
from deploykit.selection.choice import Candidate
from deploykit.selection.evaluator import Bench, Evaluation

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A candidate, and what was measured of it so far.

    Attributes:
        spec: the candidate.
        reason: why it was ruled out; empty if it was not.
        ratio: its time, or size, over the float graph's in the screening; infinite before that.
        bytes: the size of its graph; 0 before the screening.
        latency: of single texts, by name, if it is a finalist.
        batch_tokens: padded tokens per batch at which its throughput is highest, if it is a finalist.
        throughput: texts/s with batches of that size, if it is a finalist.
        evaluation: None if it was not evaluated.
    """

    spec: Spec
    reason: str = ""
    ratio: float = np.inf
    bytes: int = 0
    latency: dict[str, Latency] = field(default_factory=dict)
    batch_tokens: int | None = None
    throughput: Metric | None = None
    evaluation: Evaluation | None = None

    def candidate(self, gates: GateSection) -> Candidate:
        """Returns the entry as it is reported."""
        spec, evaluation = self.spec, self.evaluation
        batch = {"batch_tokens": self.batch_tokens} if self.batch_tokens else {}
        return Candidate(
            name=spec.name,
            graph=spec.graph,
            quantizer=spec.quantizer,
            options=dict(spec.options),
            float_nodes=spec.float_nodes,
            precision=spec.precision,
            execution=spec.execution.model_copy(update=batch),
            bytes=self.bytes,
            latency=self.latency,
            throughput=self.throughput,
            metric=evaluation.metric if evaluation else None,
            comparison=evaluation.comparison if evaluation else None,
            verdicts=evaluation.verdicts(gates, self.bytes) if evaluation else (),
            reason=self.reason,
        )


def passes(entry: Entry, bench: Bench) -> bool:
    """Says whether a candidate was evaluated and passed every gate."""
    if entry.evaluation is None:
        return False
    return not failing(bench.gates, entry.evaluation.verdicts(bench.gates, entry.bytes))


def choose(entries: Sequence[Entry], gates: GateSection, objective: Objective) -> list[Candidate]:
    """Returns the entries as candidates, with the best one marked as kept; see `choice.choose`."""
    candidates = [entry.candidate(gates) for entry in entries]
    failing_gates = {candidate.name: failing(gates, candidate.verdicts) for candidate in candidates}
    return choice.choose(candidates, objective, failing_gates)


@contextmanager
def rule_out_on_error(entry: Entry, failure: str) -> Iterator[None]:
    """Rules a candidate out if the block raises an error, so that the search goes on with the others.

    Libraries raise errors of any type. A full disk is not the candidate's fault, and ends the search.

    Args:
        entry: the candidate; its `reason` is set.
        failure: the beginning of the reason, which the message of the error follows.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise
        log.debug("%s fails", entry.spec.name, exc_info=True)
        entry.reason = failure + (" ".join(str(error).split()) or type(error).__name__)


def evaluate(entries: Sequence[Entry], bench: Bench, deadline: float = np.inf) -> None:
    """Evaluates candidates, and stores the results in their entries.

    Candidates that differ only in threads share an evaluation, unless a gate limits latency.

    Args:
        entries: those that were evaluated before are skipped.
        bench: opens and evaluates candidates.
        deadline: on the monotonic clock, in seconds; no evaluation begins after it.
    """
    timed = bench.gates.max_p95_ms is not None
    for entry in tqdm(entries, desc="evaluation", disable=None):
        if entry.evaluation is None and time.monotonic() < deadline:
            spec = entry.spec
            key = measurements.key_of(bench.key, "evaluation", spec.prediction_key, timed and str(spec.execution))
            with rule_out_on_error(entry, "cannot be run: "):
                try:
                    content = measurements.get_or_compute(key, partial(_evaluate_one, spec, bench))
                except DeploykitError as error:  # an engine that gives wrong answers, for example
                    entry.reason = str(error)
                else:
                    entry.evaluation = Evaluation.model_validate(content)


def _evaluate_one(spec: Spec, bench: Bench) -> dict[str, Any]:
    """Opens a candidate and evaluates it; returns the fields of an `Evaluation` as JSON values."""
    return bench.evaluate(spec, bench.open(spec)).model_dump(mode="json")
