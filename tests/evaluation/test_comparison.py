import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from rows import example_of, spec_of

from deploykit import tasks
from deploykit.artifact import Metric
from deploykit.evaluation import comparison, metrics
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.metrics import Outcomes, items, units
from deploykit.tasks import Span

TASK = tasks.load("text-classification")
LABELS = ("negative", "positive")
SPEC = spec_of(LABELS)
RIGHT, WRONG = 1.0, -1.0
NOTHING = Metric(value=0, low=0, high=0)


def examples(count):
    return [example_of(text=f"text {index}", label=LABELS[index % 2]) for index in range(count)]


def scores(rows, right):
    """Returns scores `(1, 2)` per row; `right` says for each row whether they predict its label."""
    arrays = []
    for row, good in zip(rows, right, strict=True):
        margin = (RIGHT if good else WRONG) * (1 if row.target == "positive" else -1)
        arrays.append(np.array([[0.0, margin]], dtype=np.float32))
    return arrays


def compared(before, after, seed=0):
    rows = examples(len(before))
    return comparison.compare(TASK, SPEC, rows, scores(rows, before), scores(rows, after), seed)


def test_as_many_scores_as_rows():
    rows = examples(2)
    with pytest.raises(ValueError, match="2 examples and 1 predictions"):
        comparison.compare(TASK, SPEC, rows, scores(rows, [1, 1]), scores(rows, [1, 1])[:1], 0)


def test_between_two_equal_models_nothing_changes():
    right = [True, False, True, True] * 25
    result = compared(right, right)
    assert result == Comparison(
        metric="accuracy",
        drop=NOTHING,
        flips=NOTHING,
        calibration=NOTHING,
        by_label={"negative": NOTHING, "positive": NOTHING},
        by_length={},
        rows=100,
        flipped=(),
    )
    assert "-0.0" not in result.model_dump_json()


def test_the_drop_has_a_paired_interval():
    before = [index >= 20 for index in range(200)]  # 90 %
    after = [index >= 30 for index in range(200)]  # 85 %, the same rows wrong and ten more
    result = compared(before, after)
    half = 1.96 * np.sqrt(0.05 * 0.95 / 200)
    assert result.drop.value == pytest.approx(0.05)
    assert result.drop.low == pytest.approx(0.05 - half, abs=0.01)
    assert result.drop.high == pytest.approx(0.05 + half, abs=0.01)
    assert (result.rows, result.flipped) == (200, tuple(range(20, 30)))
    assert result.flips.model_dump() == pytest.approx(result.drop.model_dump())  # every change was a right prediction


def test_prediction_changes_show_even_if_the_metric_stays_the_same():
    result = compared([True, False] * 50, [False, True] * 50)
    assert result.drop.value == 0
    assert result.drop.low < 0 < result.drop.high
    assert result.flips == Metric(value=1, low=1, high=1)
    assert result.flipped == tuple(range(comparison.MAX_FLIPPED_ROWS))


def test_a_better_model_has_a_negative_drop():
    assert compared([False] * 10 + [True] * 10, [True] * 20).drop.value == pytest.approx(-0.5)


def test_prediction_changes_are_listed_as_units_with_the_label_before_and_after():
    task, labels = tasks.load("token-classification"), ("O", "B-NAME", "I-NAME")
    rows = [example_of("Anna lives in Lisbon", spans=(Span(0, 4, "NAME"), Span(14, 20, "NAME")))]
    before, after = (np.eye(3, dtype=np.float32)[list(tags)] for tags in ([1, 0, 0, 1], [1, 0, 1, 0]))
    result = comparison.compare(task, spec_of(labels), rows, [before], [after], 0)
    assert (result.metric, result.flips.value, result.flipped) == ("entity_f1", 1.0, (0,))
    assert comparison.describe_changes(task, spec_of(labels), rows, [before], [after], result.flipped) == [
        {"text": "in", "true": "O", "before": "O", "after": "B-NAME"},
        {"text": "Lisbon", "true": "B-NAME", "before": "B-NAME", "after": "O"},
    ]


def test_prediction_changes_of_texts_list_the_whole_text():
    rows = examples(2)
    changes = comparison.describe_changes(TASK, SPEC, rows, scores(rows, [1, 1]), scores(rows, [1, 0]), (1,))
    assert changes == [{"text": "text 1", "true": "positive", "before": "positive", "after": "negative"}]
    assert comparison.describe_changes(TASK, SPEC, rows, scores(rows, [1, 1]), scores(rows, [1, 1]), (0, 1)) == []


# losses by label and by length


def test_the_drop_of_each_label_is_that_of_its_recall():
    before, after = [True] * 200, [index % 2 == 1 or index >= 40 for index in range(200)]  # 20 of 100 negative rows
    losses = compared(before, after).by_label
    half = 1.96 * np.sqrt(0.2 * 0.8 / 100)
    assert losses["positive"] == NOTHING
    assert losses["negative"].value == pytest.approx(0.2)
    assert (losses["negative"].low, losses["negative"].high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.02)


def test_a_label_that_no_row_has_is_not_listed():
    rows = examples(9)
    result = comparison.compare(TASK, spec_of(("negative", "positive", "unseen")), rows, *[three(rows)] * 2, 0)
    assert list(result.by_label) == ["negative", "positive"]


def three(rows):
    return [np.pad(array, ((0, 0), (0, 1)), constant_values=-9) for array in scores(rows, [True] * len(rows))]


def test_labels_of_entities_are_those_of_whole_entities():
    task, labels = tasks.load("token-classification"), ("O", "B-NAME", "I-NAME", "B-PLACE", "I-PLACE")
    rows = [example_of("Anna lives in New York", spans=(Span(0, 4, "NAME"), Span(14, 22, "PLACE")))] * 30
    before, after = (np.eye(5, dtype=np.float32)[list(tags)] for tags in ([1, 0, 0, 3, 4], [1, 0, 0, 3, 0]))
    found = comparison.compare(task, spec_of(labels), rows, [before] * 30, [after] * 30, 0)
    assert {name: metric.value for name, metric in found.by_label.items()} == {"NAME": 0, "PLACE": 1}
    names, counts = items.count_items(Outcomes.of(task, spec_of(labels), rows, [after] * 30))
    assert names == ("NAME", "PLACE")
    assert counts.sum(axis=0)[:4].tolist() == [30, 0, 30, 30]  # right, and true


def test_many_labels_take_little_memory():
    """Each row has to do with two labels of 400: a table of all of them would take gigabytes."""
    task, rows, count = (
        SimpleNamespace(**{**vars(TASK), "METRICS": ("macro_f1",), "gold": lambda row, _: row}),
        4000,
        400,
    )
    spec = spec_of(f"label {index}" for index in range(count))
    random = np.random.default_rng(0)
    gold = random.integers(0, count, (rows, 1))
    logits = random.normal(size=(rows, 1, count)).astype(np.float32)
    before, after = logits.copy(), logits.copy()
    for scores, share in ((before, 0.9), (after, 0.8)):
        right = np.flatnonzero(random.random(rows) < share)
        scores[right, 0, gold[right, 0]] = 9
    lengths = random.integers(5, 60, rows).tolist()
    tracemalloc.start()
    try:
        found = comparison.compare(task, spec, list(gold), list(before), list(after), 0, lengths)
        outcomes = Outcomes.of(task, spec, list(gold), list(after))
        metrics.compute_with_intervals(("macro_f1", "matthews"), outcomes, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.drop.low < 0.1 < found.drop.high
    assert len(found.by_label) > 390
    assert len(found.by_length) == 4
    assert peak < 150e6


def test_buckets_of_length_are_quarters_with_their_own_drop():
    lengths = [10 + index // 50 * 10 + index % 10 for index in range(200)]  # 10 to 19, then to 29, 39 and 49 tokens
    after = [not (100 <= index < 125) for index in range(200)]
    rows = examples(200)
    result = comparison.compare(TASK, SPEC, rows, scores(rows, [True] * 200), scores(rows, after), 0, lengths)
    assert {name: metric.value for name, metric in result.by_length.items()} == {
        "up to 19 tokens": 0,
        "20 to 29 tokens": 0,
        "30 to 39 tokens": 0.5,
        "40 to 49 tokens": 0,
    }
    assert 0.3 < result.by_length["30 to 39 tokens"].low < 0.5 < result.by_length["30 to 39 tokens"].high < 0.7


@pytest.mark.parametrize(
    ("lengths", "names"),
    [
        ([5] * 9, ["up to 5 tokens"]),
        ([5] * 7 + [8, 9], ["up to 5 tokens", "6 to 9 tokens"]),
        ([7], ["up to 7 tokens"]),
        ([3, 4], ["up to 3 tokens", "4 to 4 tokens"]),
        ([], []),
    ],
    ids=["equal", "most-equal", "one", "two", "none"],
)
def test_buckets_hold_every_row_once_however_few_lengths_there_are(lengths, names):
    buckets = comparison.group_by_length(lengths)
    assert list(buckets) == names
    assert np.sum(list(buckets.values()), axis=0).tolist() == ([1] * len(lengths) if lengths else 0)
    assert all(inside.any() for inside in buckets.values())


# calibration


def sure(rows, hits, probability):
    """Returns scores whose top label has this probability; `hits` says for each row whether it is right."""
    margin = np.log(probability / (1 - probability))
    return [array * margin for array in scores(rows, hits)]


@pytest.mark.parametrize(
    ("before", "after", "shift"),
    [(0.8, 0.95, 0.15), (0.95, 0.8, -0.15), (0.7, 0.9, 0.0), (0.8, 0.8, 0.0)],
    ids=["overconfident", "more-honest", "as-far-on-the-other-side", "same"],
)
def test_calibration_is_the_growth_of_the_distance_between_probability_and_accuracy(before, after, shift):
    rows, hits = examples(500), [index % 5 > 0 for index in range(500)]  # 80 % are right
    result = comparison.compare(TASK, SPEC, rows, sure(rows, hits, before), sure(rows, hits, after), 0)
    assert result.calibration.value == pytest.approx(shift, abs=1e-6)
    assert result.calibration.low <= result.calibration.value <= result.calibration.high
    assert (result.calibration.low < result.calibration.high) == (before != after)
    assert (result.drop, result.flips) == (NOTHING, NOTHING)


def test_the_calibration_error_is_that_of_its_definition():
    random = np.random.default_rng(0)
    rows = [random.normal(size=(count, 4)).astype(np.float32) * 2 for count in random.integers(0, 5, 80)]
    gold = [random.integers(0, 4, len(row)) for row in rows]
    exponents = np.exp(np.concatenate(rows).astype(float))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.concatenate(gold)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (top >= low) & (top < low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert error > 0.1
    outcomes = Outcomes(TASK, spec_of("abcd"), gold, rows)
    assert float(units.calibration_error(outcomes)(np.ones((1, 80)))[0]) == pytest.approx(error, abs=1e-5)


def test_a_probability_that_is_nan_counts_as_confidence_one():
    rows = [example_of("", label="positive")] * 40
    undefined = [np.full((1, 2), np.nan, dtype=np.float32)] * 40
    result = comparison.compare(TASK, SPEC, rows, sure(rows, [True] * 40, 0.9), undefined, 0)
    assert result.calibration.value == pytest.approx(1 - 0.1, abs=1e-6)
    assert result.drop.value == 1


def test_draws_without_a_row_of_a_label_or_length_count_as_no_loss():
    """Of four rows, many draws leave out the only row of a label or of a length."""
    rows = [example_of("", label="positive"), *[example_of("", label="negative")] * 3]
    result = comparison.compare(
        TASK, SPEC, rows, scores(rows, [True] * 4), scores(rows, [False, True, True, True]), 0, [1, 2, 3, 4]
    )
    assert result.by_label["positive"] == result.by_length["up to 1 tokens"] == Metric(value=1, low=0, high=1)


def test_ten_thousand_rows_of_twenty_labels_are_compared_in_one_pass():
    random, names = np.random.default_rng(0), tuple(f"label {index}" for index in range(20))
    rows = [example_of("", label=names[index % 20]) for index in range(10_000)]
    drawn = random.normal(size=(2, 10_000, 1, 20)).astype(np.float32)
    start = time.process_time()
    result = comparison.compare(TASK, spec_of(names), rows, list(drawn[0]), list(drawn[1]), 0, list(range(10_000)))
    assert time.process_time() - start < 60  # about one second; row by row it would be many minutes
    assert (len(result.by_label), len(result.by_length), len(result.flipped)) == (20, 4, comparison.MAX_FLIPPED_ROWS)
