"""Compares the gates of a recipe with what was measured.

A gate has passed when the whole 95 % interval lies within the limit, has failed when the whole interval lies beyond the
limit, and is inconclusive otherwise. So `passed` is wrong in at most 2.5 % of cases, and so is `failed`. This is the
usual level for tests of non-inferiority (ICH E9, 1998, 5.5). The recipe's `gates.inconclusive` decides whether an
inconclusive gate stops the run.
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
EARLIER_KEYS = {"found": "measured", "member": "group"}  # of a verdict in older manifests
ROUNDING_ERROR = 1e-6  # of probabilities in float32; a value this much above its limit is still within it
TAIL_PROBABILITY = 0.025  # beyond each end of a 95 % interval
VALUE_FORMATS = {"max_p95_ms": ".2f", "max_bytes": ",.0f"}  # by gate; values of other gates have 4 decimals


class Verdict(Frozen):
    """One gate: its limit, the measured value, and the outcome.

    Attributes:
        gate: the gate's key in the recipe, for example `max_drop`.
        limit: the largest value allowed.
        measured: the value with its interval.
        outcome: of the comparison of both.
        group: the label, or the range of lengths, with the worst outcome; empty for gates on all rows together.
        rows: number of compared rows; None if the value was not measured on rows.
        rows_needed: estimated number of rows that would decide an inconclusive gate if the value stayed the same; None
            if the gate is decided or no number is enough.
    """

    gate: str
    limit: float
    measured: Metric
    outcome: Outcome
    group: str = ""
    rows: int | None = None
    rows_needed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_older_manifests(cls, content: Any) -> Any:
        """Replaces the keys and outcomes of older manifests by today's."""
        if not isinstance(content, dict):
            return content
        renamed = {EARLIER_KEYS.get(key, key): value for key, value in content.items()}
        outcome = renamed.get("outcome")
        return {**renamed, "outcome": EARLIER_OUTCOMES.get(str(outcome), outcome)}

    def __str__(self) -> str:
        measured, limit = self.format_value(self.measured), self.format_value(self.limit)
        group = f" for {self.group}" if self.group else ""
        return f"{self.gate} is {measured}{group}, allowed {limit}: {self.conclusion}"

    def format_value(self, value: float | Metric) -> str:
        """Formats a value of this gate, such as its limit, with as many decimals as suit its unit."""
        return format(value, VALUE_FORMATS.get(self.gate, ".4f"))

    @property
    def conclusion(self) -> str:
        """The outcome in words; for an inconclusive gate, also how many rows would decide it."""
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

    For a gate on labels or lengths, it is the verdict on the worst label or the worst range of lengths.

    Args:
        gates: of the recipe.
        comparison: of the model with its reference. The reference is the trained model in packaging, the float graph in
            quantization, and the model of the stage before in other stages.
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


def stored_verdicts(gates: GateSection, details: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Returns the verdicts in a stage's manifest; if it holds only a comparison, judges that by the gates.

    Args:
        gates: of the recipe as it is now. A stage that stored no verdicts does not run again when gates change.
        details: of the stage, from its manifest.
    """
    if "verdicts" in details:
        return tuple(Verdict.model_validate(content) for content in details["verdicts"])
    comparison = details.get("comparison")
    return verdicts(gates, Comparison.model_validate(comparison)) if comparison else ()


def stopping_verdicts(gates: GateSection, judged: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Returns those of the verdicts that stop the run."""
    return tuple(verdict for verdict in judged if not _passes(gates, verdict))


def failing(gates: GateSection, judged: Sequence[Verdict]) -> str:
    """Lists the gates that stop the run, one per line, and what can be done about them; empty if none does."""
    stops = stopping_verdicts(gates, judged)
    lines = [f"  {verdict}" for verdict in stops]
    undecided = gates.inconclusive == "stop"  # with `accept`, the measured value has decided
    inconclusive = [verdict for verdict in stops if verdict.outcome == "inconclusive" and undecided]
    if len(inconclusive) < len(stops):
        lines.append("Failed gates: make the stage gentler, or raise the limit.")
    if inconclusive:
        remedies = {True: "add validation rows", False: "measure on a quieter machine"}
        advice = ", ".join(dict.fromkeys(remedies[verdict.rows is not None] for verdict in inconclusive))
        lines.append(
            f"Inconclusive gates: {advice}, raise the limit, or set gates.inconclusive: accept to let the measured"
            " value decide."
        )
    return "\n".join(lines)


def _passes(gates: GateSection, verdict: Verdict) -> bool:
    if verdict.outcome == "inconclusive" and gates.inconclusive == "accept":
        return verdict.measured.value <= verdict.limit + ROUNDING_ERROR
    return verdict.outcome == "passed"


def _verdict(gate: str, limit: float | None, groups: Mapping[str, Metric], rows: int | None = None) -> Verdict | None:
    """Judges every group of rows and returns the worst verdict; None if the recipe sets no limit.

    The gate passes if every group passes, which needs no correction (Berger, 1982). It fails if one of many fails, and
    the worst of many may look bad by chance, so Bonferroni's correction widens the lower ends of the intervals.

    Args:
        gate: its key in the recipe.
        limit: from the recipe.
        groups: what was measured, by label or range of lengths; by "" for all rows together.
        rows: number of compared rows; None if the values were not measured on rows.
    """
    if limit is None or not groups:
        return None
    normal = NormalDist()
    widening = normal.inv_cdf(TAIL_PROBABILITY / len(groups)) / normal.inv_cdf(TAIL_PROBABILITY)
    judged = []
    for group, metric in groups.items():
        measured = metric.model_copy(update={"low": metric.value - widening * (metric.value - metric.low)})
        outcome = _outcome(measured, limit)
        needed = _rows_needed(measured, limit, rows) if rows and outcome == "inconclusive" else None
        facts = {"measured": measured, "outcome": outcome, "group": group, "rows": rows, "rows_needed": needed}
        judged.append(Verdict(gate=gate, limit=limit, **facts))
    return max(judged, key=lambda verdict: (OUTCOMES.index(verdict.outcome), verdict.measured.value))


def _outcome(measured: Metric, limit: float) -> Outcome:
    """Compares an interval with a limit; values that are NaN fail."""
    if measured.high <= limit + ROUNDING_ERROR:
        return "passed"
    return "inconclusive" if measured.low <= limit + ROUNDING_ERROR else "failed"


def _rows_needed(measured: Metric, limit: float, rows: int) -> int | None:
    """Estimates the rows with which the interval would just reach the limit, rounded up to two digits.

    Half the width of the interval shrinks with the square root of the rows. None if the value lies at the limit.
    """
    gap = limit - measured.value
    if abs(gap) <= ROUNDING_ERROR:
        return None
    half_width = measured.high - measured.value if gap > 0 else measured.value - measured.low
    needed = rows * (half_width / gap) ** 2
    unit: int = 10 ** max(0, floor(log10(needed)) - 1)
    return ceil(needed / unit) * unit
