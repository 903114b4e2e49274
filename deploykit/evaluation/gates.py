"""The promises of a recipe, held against what was found: does each hold, is it broken, or can nobody tell?

One rule, on the 95 % interval that is also shown: a gate holds when the whole interval lies within the limit,
it is broken when the whole interval lies beyond, and otherwise the rows are too few to tell. Each side errs in
2.5 % of cases, the usual level where something is to be shown not to be worse (ICH E9, 1998, 5.5). Whether the
run goes on where nobody can tell is for the recipe to say: `gates.cannot_tell`.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log10
from statistics import NormalDist
from typing import Any, Literal, get_args

from deploykit.artifact import Metric, Record
from deploykit.evaluation.comparison import Comparison
from deploykit.recipe import GateSection

Outcome = Literal["holds", "cannot tell", "broken"]
OUTCOMES = get_args(Outcome)  # from the best to the worst
ROUNDING = 1e-6  # of float32, of which probabilities are made
LEVEL = 0.025  # of each side of an interval
FORMATS = {"max_p95_ms": ".2f", "max_bytes": ",.0f"}


class Verdict(Record):
    """One gate: its limit, what was found, and whether it holds.

    `member` names the label or bucket of lengths that the gate stopped at, `rows` are those that were compared,
    and `rows_needed` those that would tell if the value stayed as it is (None: told, or no number of rows helps).
    """

    gate: str
    limit: float
    found: Metric
    outcome: Outcome
    member: str = ""
    rows: int | None = None
    rows_needed: int | None = None

    def __str__(self) -> str:
        member = f" for {self.member}" if self.member else ""
        return f"{self.gate} is {self.shown(self.found)}{member}, allowed {self.shown(self.limit)}: {self.conclusion}"

    def shown(self, number: float | Metric) -> str:
        """Writes a number of this gate in its unit."""
        return format(number, FORMATS.get(self.gate, ".4f"))

    @property
    def conclusion(self) -> str:
        """The outcome in words, with the number of rows that would tell."""
        if self.outcome != "cannot tell":
            return self.outcome
        if self.rows is None:
            return "the measurements vary too much to tell"
        would = f", about {self.rows_needed:,} would" if self.rows_needed else ""
        return f"{self.rows:,} rows cannot tell{would}"


def verdicts(
    gates: GateSection,
    comparison: Comparison | None,
    *,
    p95_ms: Metric | None = None,
    size_bytes: int | None = None,
) -> tuple[Verdict, ...]:
    """Holds what was found against the gates that the recipe sets; what was not measured is not judged.

    Args:
        gates: of the recipe.
        comparison: with the model that must be kept up with.
        p95_ms: the 95 % quantile of the latency, in milliseconds.
        size_bytes: of the graph.
    """
    found = []
    if comparison is not None:
        rows = comparison.rows
        found += [
            _judge("max_drop", gates.max_drop, {"": comparison.drop}, rows),
            _judge("max_flips", gates.max_flips, {"": comparison.flips}, rows),
            _judge("max_label_drop", gates.max_label_drop, comparison.by_label, rows),
            _judge("max_length_drop", gates.max_length_drop, comparison.by_length, rows),
            _judge("max_calibration_shift", gates.max_calibration_shift, {"": comparison.calibration}, rows),
        ]
    if p95_ms is not None:
        found.append(_judge("max_p95_ms", gates.max_p95_ms, {"": p95_ms}))
    if size_bytes is not None:
        size = Metric(value=size_bytes, low=size_bytes, high=size_bytes)
        found.append(_judge("max_bytes", gates.max_bytes, {"": size}))
    return tuple(verdict for verdict in found if verdict is not None)


def recorded(gates: GateSection, details: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """Returns the verdicts on a stage from what its manifest keeps: its own, or those on its comparison.

    Args:
        gates: of the recipe as it is now; a stage whose making they do not change is judged again.
        details: of the stage.
    """
    if "verdicts" in details:
        return tuple(Verdict.model_validate(found) for found in details["verdicts"])
    found = details.get("comparison")
    return verdicts(gates, Comparison.model_validate(found)) if found else ()


def stopping(gates: GateSection, found: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Returns the verdicts that the recipe does not let pass."""
    return tuple(verdict for verdict in found if not _passes(gates, verdict))


def failing(gates: GateSection, found: Sequence[Verdict]) -> str:
    """Names what stops, one line a gate, and then what can be done; empty where all is well.

    Args:
        gates: of the recipe.
        found: what `verdicts` returned.
    """
    return "\n".join(_lines(gates, stopping(gates, found)))


def _lines(gates: GateSection, stops: Sequence[Verdict]) -> Iterator[str]:
    yield from (f"  {verdict}" for verdict in stops)
    unsure = [verdict for verdict in stops if verdict.outcome == "cannot tell" and gates.cannot_tell == "stop"]
    if len(unsure) < len(stops):
        yield "Make the stage gentler, or allow more."
    if unsure:
        ways = {True: "add validation rows", False: "measure on a quieter machine"}
        found = ", ".join(dict.fromkeys(ways[verdict.rows is not None] for verdict in unsure))
        yield (
            f"Where nobody can tell: {found}, allow more, or set gates.cannot_tell: accept, and the value that was"
            " measured decides."
        )


def _passes(gates: GateSection, verdict: Verdict) -> bool:
    if verdict.outcome == "cannot tell" and gates.cannot_tell == "accept":
        return verdict.found.value <= verdict.limit + ROUNDING
    return verdict.outcome == "holds"


def _judge(gate: str, limit: float | None, members: Mapping[str, Metric], rows: int | None = None) -> Verdict | None:
    """Judges every member and returns the verdict on the worst; None where the recipe sets no limit.

    The gate holds when each member does, for which no correction is due (Berger, 1982). It is broken when one of many
    is, and the worst of many looks bad by chance: the lower ends reach as far as Bonferroni asks.
    """
    if limit is None or not members:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf(LEVEL / len(members)) / normal.inv_cdf(LEVEL)
    judged = []
    for member, found in members.items():
        found = found.model_copy(update={"low": found.value - reach * (found.value - found.low)})
        outcome = _outcome(found, limit)
        needed = _rows_needed(found, limit, rows) if rows and outcome == "cannot tell" else None
        judged.append(
            Verdict(gate=gate, limit=limit, found=found, outcome=outcome, member=member, rows=rows, rows_needed=needed)
        )
    return max(judged, key=lambda verdict: (OUTCOMES.index(verdict.outcome), verdict.found.value))


def _outcome(found: Metric, limit: float) -> Outcome:
    if found.high <= limit + ROUNDING:
        return "holds"
    return "cannot tell" if found.low <= limit + ROUNDING else "broken"  # as is what is no number


def _rows_needed(found: Metric, limit: float, rows: int) -> int | None:
    """An interval shrinks with the square root of the rows: how many until it ends at the limit, two digits of it."""
    gap = limit - found.value
    if abs(gap) <= ROUNDING:
        return None
    needed = rows * ((found.high - found.value if gap > 0 else found.value - found.low) / gap) ** 2
    unit: int = 10 ** max(0, floor(log10(needed)) - 1)
    return ceil(needed / unit) * unit
