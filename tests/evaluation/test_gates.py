import numpy as np
import pytest
from pydantic import ValidationError

from deploykit.artifact import Metric
from deploykit.evaluation import bootstrap, gates
from deploykit.evaluation.comparison import Comparison
from deploykit.recipe import GateSection

NOTHING = Metric(value=0, low=0, high=0)
OFF = {"max_drop": 1.0}  # the only gate that is always there


def metric(value, low=None, high=None):
    return Metric(value=value, low=value if low is None else low, high=value if high is None else high)


def made(rows=1200, **figures):
    nothing = {"drop": NOTHING, "flips": NOTHING, "calibration": NOTHING, "by_label": {}, "by_length": {}}
    return Comparison(metric="accuracy", rows=rows, flipped=(), **{**nothing, **figures})


def judged(options, comparison, **measured):
    (found,) = gates.verdicts(GateSection(**options), comparison, **measured)
    return found


# the rule


@pytest.mark.parametrize(
    ("low", "value", "high", "outcome"),
    [
        (0.011, 0.02, 0.03, "failed"),
        (float("nan"), float("nan"), float("nan"), "failed"),
        (0.01, 0.02, 0.03, "inconclusive"),
        (-0.001, 0.004, 0.013, "inconclusive"),
        (-0.001, 0.004, 0.01, "passed"),
        (-0.05, -0.04, -0.03, "passed"),
        (0.1 + 0.2 - 0.29, 0.1 + 0.2 - 0.29, 0.1 + 0.2 - 0.29, "passed"),  # rounding
    ],
    ids=["beyond", "no-number", "from-the-limit", "across", "up-to-the-limit", "better", "rounding"],
)
def test_the_interval_decides(low, value, high, outcome):
    assert judged({}, made(drop=metric(value, low, high))).outcome == outcome


def test_where_no_prediction_changed_a_drop_of_nothing_holds():
    assert judged({"max_drop": 0}, made(rows=3)).outcome == "passed"


@pytest.mark.parametrize(
    ("value", "low", "high", "limit", "needed"),
    [
        (0.004, -0.005, 0.013, 0.01, 2700),  # 1200 (0.009 / 0.006)²
        (0.02, 0.005, 0.06, 0.01, 2700),  # 1200 (0.015 / 0.01)²
        (0.0099, -0.01, 0.03, 0.01, 49_000_000),
        (0.01, -0.01, 0.03, 0.01, None),
    ],
    ids=["below", "above", "nearly-there", "at-the-limit"],
)
def test_the_rows_that_would_tell_follow_from_the_square_root(value, low, high, limit, needed):
    found = judged({"max_drop": limit}, made(drop=metric(value, low, high)))
    assert (found.outcome, found.rows, found.rows_needed) == ("inconclusive", 1200, needed)


@pytest.mark.parametrize(("worse", "outcome"), [(0.025, "passed"), (0.05, "failed")])
def test_as_many_rows_as_were_asked_for_do_tell(worse, outcome):
    """The promise, kept: rows of the same kind, two in a hundred better and some worse, and a real bootstrap."""

    def found(rows):
        losses = np.repeat([1.0, -1.0, 0.0], [round(worse * rows), round(0.02 * rows), rows])[:rows]
        samples = np.concatenate(list(bootstrap.draw_weights(rows, 0))) @ losses / rows
        return judged({}, made(rows, drop=metric(losses.mean(), *bootstrap.interval(samples))))

    few = found(400)
    assert few.outcome == "inconclusive"
    assert found(few.rows_needed // 2).outcome == "inconclusive"
    assert found(int(few.rows_needed * 1.1)).outcome == outcome


# which gates


def test_only_gates_that_are_set_and_measured_are_judged():
    assert [found.gate for found in gates.verdicts(GateSection(), made())] == ["max_drop"]
    every = GateSection(
        max_drop=1, max_flips=1, max_label_drop=1, max_length_drop=1, max_calibration_shift=1, max_p95_ms=1, max_bytes=1
    )
    assert [found.gate for found in gates.verdicts(every, None, size_bytes=1)] == ["max_bytes"]
    found = gates.verdicts(every, made(by_label={"a": NOTHING}, by_length={"b": NOTHING}), p95_ms=NOTHING, size_bytes=1)
    assert [verdict.gate for verdict in found] == [name for name in GateSection.model_fields if name != "inconclusive"]
    assert {verdict.outcome for verdict in found} == {"passed"}


@pytest.mark.parametrize(
    ("options", "figure", "name"),
    [
        ({"max_flips": 0.03}, "flips", "max_flips"),
        ({"max_calibration_shift": 0.03}, "calibration", "max_calibration_shift"),
    ],
)
def test_each_gate_looks_at_its_own_figure(options, figure, name):
    found = gates.verdicts(GateSection(**OFF, **options), made(**{figure: metric(0.05, 0.04, 0.06)}))
    assert [(verdict.gate, verdict.outcome) for verdict in found] == [("max_drop", "passed"), (name, "failed")]


@pytest.mark.parametrize(("size", "outcome"), [(1_000_001, "failed"), (1_000_000, "passed")])
def test_bytes_are_known_exactly(size, outcome):
    found = judged({"max_bytes": 1_000_000}, None, size_bytes=size)
    assert (found.outcome, found.rows_needed) == (outcome, None)
    assert str(found) == f"max_bytes is {size:,}, allowed 1,000,000: {outcome}"


def test_more_rows_do_not_help_a_clock():
    found = judged({"max_p95_ms": 12}, None, p95_ms=metric(11, 10, 13))
    assert (found.outcome, found.rows_needed) == ("inconclusive", None)
    assert str(found) == (
        "max_p95_ms is 11.00 (95 % interval 10.00 to 13.00), allowed 12.00: inconclusive, the measurements vary too"
        " much"
    )


@pytest.mark.parametrize("gate", ["label", "length"])
def test_of_many_members_the_worst_is_judged_and_named(gate):
    members = {"first": metric(0.02, 0.01, 0.03), "second": metric(0.3, 0.29, 0.31), "third": metric(0.04, 0, 0.2)}
    found = gates.verdicts(GateSection(**OFF, **{f"max_{gate}_drop": 0.1}), made(**{f"by_{gate}": members}))[1]
    assert (found.group, found.outcome) == ("second", "failed")
    assert str(found).startswith(f"max_{gate}_drop is 0.3000 (95 % interval 0.28")
    assert "for second, allowed 0.1000: failed" in str(found)


def test_a_member_that_nobody_can_tell_comes_before_one_that_holds_though_it_is_better():
    members = {"rare": metric(0.02, -0.2, 0.2), "common": metric(0.04, 0.03, 0.05)}
    found = gates.verdicts(GateSection(**OFF, max_label_drop=0.1), made(by_label=members))[1]
    assert (found.group, found.outcome) == ("rare", "inconclusive")


@pytest.mark.parametrize(("others", "outcome"), [(0, "failed"), (22, "inconclusive")])
def test_the_worst_of_many_labels_must_be_further_beyond(others, outcome):
    members = {"worst": metric(0.2, 0.11, 0.3), **{str(index): NOTHING for index in range(others)}}
    found = gates.verdicts(GateSection(**OFF, max_label_drop=0.1), made(by_label=members))[1]
    assert (found.group, found.outcome) == ("worst", outcome)


def test_the_worst_of_many_labels_that_are_all_at_the_limit_is_rarely_called_failed():
    """By one label's interval alone it would be, in four of ten runs."""
    random, limit = np.random.default_rng(0), 0.1
    section, called, plain = GateSection(**OFF, max_label_drop=limit), 0, 0
    for _ in range(300):
        values = limit + random.normal(size=23) * 0.02
        members = {str(index): metric(value, value - 0.0392, value + 0.0392) for index, value in enumerate(values)}
        called += gates.verdicts(section, made(by_label=members))[1].outcome == "failed"
        plain += any(found.low > limit for found in members.values())
    assert plain / 300 > 0.3
    assert called / 300 < 0.06


# what the run says


def test_the_message_says_what_is_missing_and_what_to_do():
    section = GateSection(max_flips=0.05)
    found = gates.verdicts(section, made(drop=metric(0.004, -0.005, 0.013), flips=metric(0.08, 0.06, 0.1)))
    assert gates.failing(section, found) == (
        "  max_drop is 0.0040 (95 % interval -0.0050 to 0.0130), allowed 0.0100: inconclusive with 1,200 rows,"
        " about 2,700 would be enough\n"
        "  max_flips is 0.0800 (95 % interval 0.0600 to 0.1000), allowed 0.0500: failed\n"
        "Failed gates: make the stage gentler, or raise the limit.\n"
        "Inconclusive gates: add validation rows, raise the limit, or set gates.inconclusive: accept to let the"
        " measured value decide."
    )
    assert gates.failing(section, found[:1]).count("\n") == 1
    assert gates.failing(section, found[1:]).endswith(
        "failed\nFailed gates: make the stage gentler, or raise the limit."
    )


@pytest.mark.parametrize(("value", "passes"), [(0.0101, False), (float("nan"), False), (0.01, True), (0.004, True)])
def test_where_it_is_accepted_the_measured_value_decides(value, passes):
    section = GateSection(inconclusive="accept")
    found = gates.verdicts(section, made(drop=metric(value, -0.02, 0.03)))
    assert (gates.failing(section, found) == "") is passes
    assert bool(gates.stopping_verdicts(section, found)) is not passes
    if value == 0.0101:
        assert gates.failing(section, found).endswith(
            " would be enough\nFailed gates: make the stage gentler, or raise the limit."
        )


def test_a_failed_gate_is_never_accepted():
    section = GateSection(inconclusive="accept")
    assert "failed" in gates.failing(section, gates.verdicts(section, made(drop=metric(0.02, 0.015, 0.03))))


def test_no_message_where_every_gate_passed():
    found = gates.verdicts(GateSection(), made())
    assert (gates.failing(GateSection(), found), gates.stopping_verdicts(GateSection(), found)) == ("", ())


# what a manifest keeps


def test_a_comparison_is_judged_by_the_gates_of_now_and_a_verdict_is_kept():
    details = {"comparison": made(drop=metric(0.05, 0.04, 0.06)).model_dump()}
    assert [found.outcome for found in gates.stored_verdicts(GateSection(), details)] == ["failed"]
    assert [found.outcome for found in gates.stored_verdicts(GateSection(max_drop=0.1), details)] == ["passed"]
    found = gates.verdicts(GateSection(), made())
    details["verdicts"] = [verdict.model_dump() for verdict in found]
    assert gates.stored_verdicts(GateSection(), details) == found
    assert gates.stored_verdicts(GateSection(), {}) == ()


def test_verdicts_of_older_manifests_are_read():
    (verdict, *_) = gates.verdicts(GateSection(), made())
    for earlier, outcome in gates.EARLIER_OUTCOMES.items():
        content = verdict.model_dump()
        content = {**content, "found": content.pop("measured"), "member": content.pop("group"), "outcome": earlier}
        assert gates.Verdict.model_validate(content) == verdict.model_copy(update={"outcome": outcome})


def test_the_earlier_key_of_recipes_is_read_with_a_note(caplog):
    with caplog.at_level("WARNING"):
        assert GateSection.model_validate({"cannot_tell": "accept"}).inconclusive == "accept"
    assert "gates.cannot_tell is now called gates.inconclusive" in caplog.text
    with pytest.raises(ValidationError):
        GateSection.model_validate({"cannot_tell": "accept", "inconclusive": "stop"})
