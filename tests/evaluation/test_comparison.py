import re

import numpy as np
import pytest

from deploykit import tasks
from deploykit.artifact import Metric
from deploykit.evaluation import comparison
from deploykit.evaluation.comparison import Comparison
from deploykit.recipe import GateSection
from deploykit.tasks import Example, Span

TASK = tasks.load("text-classification")
LABELS = ("negative", "positive")
RIGHT, WRONG = 1.0, -1.0


def examples(count):
    return [Example(text=f"text {index}", label=LABELS[index % 2]) for index in range(count)]


def scores(rows, right):
    """Scores `(1, 2)` a row that are right or wrong as told."""
    found = []
    for row, good in zip(rows, right, strict=True):
        margin = (RIGHT if good else WRONG) * (1 if row.label == "positive" else -1)
        found.append(np.array([[0.0, margin]], dtype=np.float32))
    return found


def compared(before, after, seed=0):
    rows = examples(len(before))
    return comparison.compare(TASK, rows, LABELS, scores(rows, before), scores(rows, after), seed)


def made(drop, flips):
    return Comparison(
        metric="accuracy", drop=Metric(value=drop, low=drop, high=drop), flips=flips, rows=100, flipped=()
    )


@pytest.mark.parametrize(
    ("gates", "drop", "flips", "message"),
    [
        ({}, 0.011, 0.5, "max_drop is 0.0110, allowed 0.0100"),
        ({"max_drop": 0.5, "max_flips": 0.03}, 0.4, 0.031, "max_flips is 0.0310, allowed 0.0300"),
        ({"max_flips": 0.0}, 1.0, 1.0, "max_drop is 1.0000, allowed 0.0100; max_flips is 1.0000, allowed 0.0000"),
        ({"max_drop": 0.0}, 0.001, 0.0, "max_drop is 0.0010, allowed 0.0000"),
    ],
    ids=["drop", "flips", "both", "no-drop-allowed"],
)
def test_gates_that_are_broken_are_named_with_their_numbers(gates, drop, flips, message):
    assert comparison.broken(GateSection(**gates), made(drop, flips)) == message


def test_a_drop_that_is_not_a_number_breaks_its_gate():
    assert comparison.broken(GateSection(), made(float("nan"), 0.0)).startswith("max_drop is nan")


@pytest.mark.parametrize(
    ("gates", "drop", "flips", "count"),
    [
        ({}, 0.01, 1.0, 1),
        ({"max_drop": 0.3}, 0.1 + 0.2, 0.0, 1),
        ({"max_flips": 0.03}, -0.5, 0.03, 2),
        ({"max_drop": 0, "max_flips": 0}, 0, 0, 2),
    ],
    ids=["at-the-limit", "rounding", "better", "identical"],
)
def test_gates_that_hold(gates, drop, flips, count):
    found = comparison.verdicts(GateSection(**gates), made(drop, flips))
    assert [verdict.passed for verdict in found] == [True] * count
    assert comparison.broken(GateSection(**gates), made(drop, flips)) == ""


def test_as_many_scores_as_rows():
    rows = examples(2)
    with pytest.raises(ValueError, match="shorter"):
        comparison.compare(TASK, rows, LABELS, scores(rows, [1, 1]), scores(rows, [1, 1])[:1], 0)


def test_two_equal_models_neither_drop_nor_flip():
    right = [True, False, True, True] * 25
    found = compared(right, right)
    assert found == Comparison(metric="accuracy", drop=Metric(value=0, low=0, high=0), flips=0, rows=100, flipped=())


def test_a_drop_counts_and_its_interval_is_paired():
    before = [index >= 20 for index in range(200)]  # 90 %
    after = [index >= 30 for index in range(200)]  # 85 %, the same rows wrong and ten more
    found = compared(before, after)
    half = 1.96 * np.sqrt(0.05 * 0.95 / 200)
    assert found.drop.value == pytest.approx(0.05)
    assert found.drop.low == pytest.approx(0.05 - half, abs=0.01)
    assert found.drop.high == pytest.approx(0.05 + half, abs=0.01)
    assert (found.flips, found.rows, found.flipped) == (0.05, 200, tuple(range(20, 30)))


def test_flips_show_what_the_metric_does_not():
    found = compared([True, False] * 50, [False, True] * 50)
    assert found.drop.value == 0
    assert found.drop.low < 0 < found.drop.high
    assert found.flips == 1
    assert found.flipped == tuple(range(comparison.SHOWN_FLIPS))


def test_a_better_model_has_a_negative_drop():
    assert compared([False] * 10 + [True] * 10, [True] * 20).drop.value == pytest.approx(-0.5)


def test_flips_are_shown_as_units_with_the_label_before_and_after():
    task, labels = tasks.load("token-classification"), ("O", "B-NAME", "I-NAME")
    rows = [Example("Anna lives in Lisbon", spans=(Span(0, 4, "NAME"), Span(14, 20, "NAME")))]
    before, after = (np.eye(3, dtype=np.float32)[list(tags)] for tags in ([1, 0, 0, 1], [1, 0, 1, 0]))
    found = comparison.compare(task, rows, labels, [before], [after], 0)
    assert (found.metric, found.flips, found.flipped) == ("entity_f1", 1.0, (0,))
    assert comparison.flips(task, rows, labels, [before], [after], found.flipped) == [
        {"text": "in", "true": "O", "before": "O", "after": "B-NAME"},
        {"text": "Lisbon", "true": "B-NAME", "before": "B-NAME", "after": "O"},
    ]


def test_flips_of_texts_show_the_whole_text():
    rows = examples(2)
    found = comparison.flips(TASK, rows, LABELS, scores(rows, [1, 1]), scores(rows, [1, 0]), (1,))
    assert found == [{"text": "text 1", "true": "positive", "before": "positive", "after": "negative"}]
    assert comparison.flips(TASK, rows, LABELS, scores(rows, [1, 1]), scores(rows, [1, 1]), (0, 1)) == []


def test_a_verdict_reads_as_a_sentence():
    (verdict,) = comparison.verdicts(GateSection(max_drop=0.02), made(0.5, 0))
    assert re.fullmatch(r"max_drop is 0\.5000, allowed 0\.0200", str(verdict))
