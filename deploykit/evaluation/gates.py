"""The gates of a recipe, compared with what was measured: passed, failed or inconclusive.

A gate has passed when the whole 95 % interval lies within the limit, has failed when the whole interval lies beyond,
and is inconclusive otherwise. Each side errs in 2.5 % of cases, the usual level for tests of non-inferiority (ICH E9,
1998, 5.5). `gates.inconclusive` in the recipe decides whether an inconclusive gate stops the run.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from statistics import NormalDist
from typing import Any, Literal, get_args

from pydantic import model_validator

from deploykit.artifact import Metric
from deploykit.evaluation.comparison import Comparison
from deploykit.methods import Frozen
from deploykit.recipe import GateSection

Outcome = Literal["passed", "inconclusive", "failed"]
OUTCOMES = get_args(Outcome)  # from the best to the worst
EARLIER_OUTCOMES = {"holds": "passed", "cannot tell": "inconclusive", "broken": "failed"}  # in older manifests
ROUNDING_ERROR = 1e-6  # of probabilities computed in float32
TAIL_PROBABILITY = 0.025  # beyond each end of a 95 % interval
FORMATS = {"max_p95_ms": ".2f", "max_bytes": ",.0f"}


class Verdict(Frozen):
    """One gate: its limit, the measured value, and the outcome.

    `member` names the worst label or bucket of lengths, and `rows` counts the compared rows. `rows_needed` estimates
    how many would be conclusive if the value stayed the same; None if the outcome is conclusive or no number is enough.
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
    """Returns one verdict for each gate that has a limit and a measurement.

    Of a gate on labels or lengths, the verdict is that of the worst label or group of lengths.

    Args:
        gates: of the recipe.
        comparison: of the model with its reference: the trained model in packaging, the float graph in quantization,
            the model before it in another stage.
        p95_ms: 95th percentile of the latency of single texts, tokenization included, in milliseconds.
        size_bytes: size of the graph's file.
    """
    judged = []
    if comparison is not None:
        rows = comparison.rows
        judged += [
            _verdict("max_drop", gates.max_drop, {"": comparison.drop}, rows),
            _verdict("max_flips", gates.max_flips, {"": comparison.flips} if comparison.flips else {}, rows),
            _verdict("max_label_drop", gates.max_label_drop, comparison.by_label, rows),
            _verdict("max_length_drop", gates.max_length_drop, comparison.by_length, rows),
            _verdict(
                "max_calibration_shift",
                gates.max_calibration_shift,
                {"": comparison.calibration} if comparison.calibration else {},
                rows,
            ),
        ]
    if p95_ms is not None:
        judged.append(_verdict("max_p95_ms", gates.max_p95_ms, {"": p95_ms}))
    if size_bytes is not None:
        size = Metric(value=size_bytes, low=size_bytes, high=size_bytes)
        judged.append(_verdict("max_bytes", gates.max_bytes, {"": size}))
    return tuple(verdict for verdict in judged if verdict is not None)


def recorded(gates: GateSection, details: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Returns the verdicts that a stage recorded, or judges the comparison that it recorded.

    Args:
        gates: of the recipe as it is now, for stages that gates do not make run again.
        details: of the stage, from its manifest.
    """
    if "verdicts" in details:
        return tuple(Verdict.model_validate(content) for content in details["verdicts"])
    comparison = details.get("comparison")
    return verdicts(gates, Comparison.model_validate(comparison)) if comparison else ()


def stopping(gates: GateSection, judged: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Returns the verdicts that stop the run."""
    return tuple(verdict for verdict in judged if not _passes(gates, verdict))


def failing(gates: GateSection, judged: Sequence[Verdict]) -> str:
    """Lists the gates that stop the run, one per line, and what can be done about them; empty if none does."""
    stops = stopping(gates, judged)
    lines = [f"  {verdict}" for verdict in stops]
    unsure = [verdict for verdict in stops if verdict.outcome == "inconclusive" and gates.inconclusive == "stop"]
    if len(unsure) < len(stops):
        lines.append("Failed gates: make the stage gentler, or raise the limit.")
    if unsure:
        ways = {True: "add validation rows", False: "measure on a quieter machine"}
        advice = ", ".join(dict.fromkeys(ways[verdict.rows is not None] for verdict in unsure))
        lines.append(
            f"Inconclusive gates: {advice}, raise the limit, or set gates.inconclusive: accept to let the measured"
            " value decide."
        )
    return "\n".join(lines)


def _passes(gates: GateSection, verdict: Verdict) -> bool:
    if verdict.outcome == "inconclusive" and gates.inconclusive == "accept":
        return verdict.measured.value <= verdict.limit + ROUNDING_ERROR
    return verdict.outcome == "passed"


def _verdict(gate: str, limit: float | None, members: Mapping[str, Metric], rows: int | None = None) -> Verdict | None:
    """Judges every member and returns the worst verdict; None if the recipe sets no limit.

    The gate passes if every member passes, which needs no correction (Berger, 1982). It fails if one of many fails, and
    the worst of many may look bad by chance, so Bonferroni's correction widens the lower ends.
    """
    if limit is None or not members:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf(TAIL_PROBABILITY / len(members)) / normal.inv_cdf(TAIL_PROBABILITY)
    judged = []
    for member, metric in members.items():
        measured = metric.model_copy(update={"low": metric.value - reach * (metric.value - metric.low)})
        outcome = _outcome(measured, limit)
        needed = _rows_needed(measured, limit, rows) if rows and outcome == "inconclusive" else None
        facts = {"measured": measured, "outcome": outcome, "member": member, "rows": rows, "rows_needed": needed}
        judged.append(Verdict(gate=gate, limit=limit, **facts))
    return max(judged, key=lambda verdict: (OUTCOMES.index(verdict.outcome), verdict.measured.value))


def _outcome(measured: Metric, limit: float) -> Outcome:
    if measured.high <= limit + ROUNDING_ERROR:
        return "passed"
    return "inconclusive" if measured.low <= limit + ROUNDING_ERROR else "failed"  # NaN fails, too


def _rows_needed(measured: Metric, limit: float, rows: int) -> int | None:
    """Estimates the rows with which the interval would end at the limit, rounded up to two digits.

    The width of the interval shrinks with the square root of the rows.
    """
    gap = limit - measured.value
    if abs(gap) <= ROUNDING_ERROR:
        return None
    needed = rows * ((measured.high - measured.value if gap > 0 else measured.value - measured.low) / gap) ** 2
    unit: int = 10 ** max(0, floor(log10(needed)) - 1)
    return ceil(needed / unit) * unit
