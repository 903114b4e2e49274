"""The candidates of a search while it runs: each with its measurements, verdicts, and why it was ruled out."""

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
from deploykit.selection.evaluator import Bench, Judged

log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A candidate and its measurements so far; a `reason` says why it was ruled out.

    `ratio` is its time, or size, in the first measurement over the float graph's.
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


def passes(entry: Entry, bench: Bench) -> bool:
    """Says whether a candidate was judged and passed every gate."""
    return entry.judged is not None and not failing(bench.gates, entry.judged.verdicts(bench.gates, entry.bytes))


def choose(entries: Sequence[Entry], gates: GateSection, objective: Objective) -> list[Candidate]:
    """Returns the entries as candidates, with the best one marked; see `choice.choose`."""
    candidates = [entry.candidate(gates) for entry in entries]
    stopped = {candidate.name: failing(gates, candidate.verdicts) for candidate in candidates}
    return choice.choose(candidates, objective, stopped)


@contextmanager
def rule_out_on_error(entry: Entry, failure: str) -> Iterator[None]:
    """Rules a candidate out if the block raises an error, so that the search goes on with the others.

    Libraries raise errors of any type. A full disk is not the candidate's fault, and ends the search.
    """
    try:
        yield
    except Exception as error:
        if disk_is_full(error):
            raise
        log.debug("%s fails", entry.spec.name, exc_info=True)
        entry.reason = failure + (" ".join(str(error).split()) or type(error).__name__)


def judge(entries: Sequence[Entry], bench: Bench, until: float = np.inf) -> None:
    """Evaluates candidates until a time on the monotonic clock is over, and stores the results in the entries.

    Candidates that differ in threads only share an evaluation, unless a gate limits latency.
    """
    timed = bench.gates.max_p95_ms is not None
    for entry in tqdm(entries, desc="evaluation", disable=None):
        if entry.judged is None and time.monotonic() < until:
            key = measurements.key_of(bench.key, "judge", entry.spec.kind, timed and str(entry.spec.execution))
            with rule_out_on_error(entry, "cannot be run: "):
                try:
                    content = measurements.remember(key, partial(_evaluate, entry.spec, bench))
                except DeploykitError as error:  # its answers are wrong
                    entry.reason = str(error)
                else:
                    entry.judged = Judged.model_validate(content)


def _evaluate(spec: Spec, bench: Bench) -> dict[str, Any]:
    return bench.judge(spec, bench.open(spec)).model_dump(mode="json")
