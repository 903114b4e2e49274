"""The gates of a recipe, compared with what was measured: passed, failed or inconclusive.

One rule, on the 95 % interval that is also shown: a gate has passed when the whole interval lies within the limit,
has failed when the whole interval lies beyond, and is inconclusive otherwise: the rows are too few. Each side errs in
2.5 % of cases, the usual level for tests of non-inferiority (ICH E9, 1998, 5.5). The recipe says whether an
inconclusive gate stops the run: `gates.inconclusive`.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log10
from statistics import NormalDist
from typing import Any, Literal, get_args

from pydantic import model_validator

from deploykit.artifact import Metric, Record
from deploykit.evaluation.comparison import Comparison
from deploykit.recipe import GateSection

Outcome = Literal["passed", "inconclusive", "failed"]
OUTCOMES = get_args(Outcome)  # from the best to the worst
EARLIER_OUTCOMES = {"holds": "passed", "cannot tell": "inconclusive", "broken": "failed"}  # in older manifests
ROUNDING = 1e-6  # rounding error of probabilities computed in float32
TAIL = 0.025  # probability beyond each end of a 95 % interval
FORMATS = {"max_p95_ms": ".2f", "max_bytes": ",.0f"}


class Verdict(Record):
    """One gate: its limit, the measured value, and the outcome.

    `member` names the worst label or bucket of lengths, `rows` counts the rows that were compared, and `rows_needed`
    estimates how many would be conclusive if the value stayed the same (None: it is conclusive, or none would be).
    """

    gate: str
    limit: float
    measured: Metric
    outcome: Outcome
    member: str = ""
    rows: int | None = None
    rows_needed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _reads_older_manifests(cls, content: Any) -> Any:
        if isinstance(content, dict) and "found" in content:
            outcome = EARLIER_OUTCOMES.get(content["outcome"], content["outcome"])
            content = {**content, "measured": content["found"], "outcome": outcome}
            del content["found"]
        return content

    def __str__(self) -> str:
        member = f" for {self.member}" if self.member else ""
        return (
            f"{self.gate} is {self.shown(self.measured)}{member}, allowed {self.shown(self.limit)}: {self.conclusion}"
        )

    def shown(self, number: float | Metric) -> str:
        """Writes a number of this gate in its unit."""
        return format(number, FORMATS.get(self.gate, ".4f"))

    @property
    def conclusion(self) -> str:
        """The outcome in words, with the number of rows that would be conclusive."""
        if self.outcome != "inconclusive":
            return self.outcome
        if self.rows is None:
            return "inconclusive, the measurements vary too much"
        enough = f", about {self.rows_needed:,} would be enough" if self.rows_needed else ""
        return f"inconclusive with {self.rows:,} rows{enough}"


def verdicts(
    gates: GateSection,
    comparison: Comparison | None,
    *,
    p95_ms: Metric | None = None,
    size_bytes: int | None = None,
) -> tuple[Verdict, ...]:
    """Compares measurements with the gates that the recipe sets; a gate without a measurement has no verdict.

    Args:
        gates: of the recipe.
        comparison: with the model whose quality must be kept.
        p95_ms: the 95 % quantile of the latency, in milliseconds.
        size_bytes: of the graph.
    """
    judged = []
    if comparison is not None:
        rows = comparison.rows
        judged += [
            _judge("max_drop", gates.max_drop, {"": comparison.drop}, rows),
            _judge("max_flips", gates.max_flips, {"": comparison.flips}, rows),
            _judge("max_label_drop", gates.max_label_drop, comparison.by_label, rows),
            _judge("max_length_drop", gates.max_length_drop, comparison.by_length, rows),
            _judge("max_calibration_shift", gates.max_calibration_shift, {"": comparison.calibration}, rows),
        ]
    if p95_ms is not None:
        judged.append(_judge("max_p95_ms", gates.max_p95_ms, {"": p95_ms}))
    if size_bytes is not None:
        size = Metric(value=size_bytes, low=size_bytes, high=size_bytes)
        judged.append(_judge("max_bytes", gates.max_bytes, {"": size}))
    return tuple(verdict for verdict in judged if verdict is not None)


def recorded(gates: GateSection, details: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Returns the verdicts on a stage from what its manifest keeps: its own, or those on its comparison.

    Args:
        gates: of the recipe as it is now; a stage whose making they do not change is judged again.
        details: of the stage.
    """
    if "verdicts" in details:
        return tuple(Verdict.model_validate(content) for content in details["verdicts"])
    comparison = details.get("comparison")
    return verdicts(gates, Comparison.model_validate(comparison)) if comparison else ()


def stopping(gates: GateSection, judged: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Returns the verdicts that stop the run."""
    return tuple(verdict for verdict in judged if not _passes(gates, verdict))


def failing(gates: GateSection, judged: Sequence[Verdict]) -> str:
    """Returns a line for each gate that stops the run, then what can be done; empty where none does.

    Args:
        gates: of the recipe.
        judged: what `verdicts` returned.
    """
    return "\n".join(_lines(gates, stopping(gates, judged)))


def _lines(gates: GateSection, stops: Sequence[Verdict]) -> Iterator[str]:
    yield from (f"  {verdict}" for verdict in stops)
    unsure = [verdict for verdict in stops if verdict.outcome == "inconclusive" and gates.inconclusive == "stop"]
    if len(unsure) < len(stops):
        yield "Failed gates: make the stage gentler, or raise the limit."
    if unsure:
        ways = {True: "add validation rows", False: "measure on a quieter machine"}
        advice = ", ".join(dict.fromkeys(ways[verdict.rows is not None] for verdict in unsure))
        yield (
            f"Inconclusive gates: {advice}, raise the limit, or set gates.inconclusive: accept to let the measured"
            " value decide."
        )


def _passes(gates: GateSection, verdict: Verdict) -> bool:
    if verdict.outcome == "inconclusive" and gates.inconclusive == "accept":
        return verdict.measured.value <= verdict.limit + ROUNDING
    return verdict.outcome == "passed"


def _judge(gate: str, limit: float | None, members: Mapping[str, Metric], rows: int | None = None) -> Verdict | None:
    """Judges every member and returns the verdict on the worst; None where the recipe sets no limit.

    The gate passes when every member passes, which needs no correction (Berger, 1982). It fails when one of many fails,
    and the worst of many looks bad by chance: the lower ends are widened as Bonferroni's correction asks.
    """
    if limit is None or not members:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf(TAIL / len(members)) / normal.inv_cdf(TAIL)
    judged = []
    for member, metric in members.items():
        measured = metric.model_copy(update={"low": metric.value - reach * (metric.value - metric.low)})
        outcome = _outcome(measured, limit)
        needed = _rows_needed(measured, limit, rows) if rows and outcome == "inconclusive" else None
        facts = {"measured": measured, "outcome": outcome, "member": member, "rows": rows, "rows_needed": needed}
        judged.append(Verdict(gate=gate, limit=limit, **facts))
    return max(judged, key=lambda verdict: (OUTCOMES.index(verdict.outcome), verdict.measured.value))


def _outcome(measured: Metric, limit: float) -> Outcome:
    if measured.high <= limit + ROUNDING:
        return "passed"
    return "inconclusive" if measured.low <= limit + ROUNDING else "failed"  # NaN fails, too


def _rows_needed(measured: Metric, limit: float, rows: int) -> int | None:
    """Estimates the rows with which the interval ends at the limit: it shrinks with their square root; two digits."""
    gap = limit - measured.value
    if abs(gap) <= ROUNDING:
        return None
    needed = rows * ((measured.high - measured.value if gap > 0 else measured.value - measured.low) / gap) ** 2
    unit: int = 10 ** max(0, floor(log10(needed)) - 1)
    return ceil(needed / unit) * unit
