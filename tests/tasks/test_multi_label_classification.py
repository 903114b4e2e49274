import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.tasks import Example, Spec, TextInput
from deploykit.tasks import multi_label_classification as task
from deploykit.tokenizer import Encoding, Features

COLUMNS = {role: column.default for role, column in task.COLUMNS.items()}
FLAGS = {**COLUMNS, "label_columns": "joy, fear"}


def read(row, columns=COLUMNS):
    return task.reader([row], columns)(row)


def spec(labels="abc", **thresholds):
    return Spec(tuple(labels), task.Options(thresholds=thresholds or None))


def logits(*probabilities):
    shares = np.array([probabilities], dtype=np.float32)
    return np.log(shares / (1 - shares))


def window(tokens=3):
    ids = np.zeros(tokens, np.int64)
    return Features("", 0, Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, truncated=False))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["joy", "fear"], ("fear", "joy")),
        ([], ()),
        ("joy, fear", ("fear", "joy")),
        ("", ()),
        ([2, "joy"], ("2", "joy")),
    ],
    ids=repr,
)
def test_labels_are_a_list_or_a_text_with_commas(labels, expected):
    assert read({"text": "a", "labels": labels}).target == expected


@pytest.mark.parametrize("labels", [None, 3, {"joy": 1}, ["joy", ""], [["joy"]]], ids=repr)
def test_labels_that_are_none_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels is .*expected a list of labels|one of them is empty"):
        read({"text": "a", "labels": labels})


def test_columns_of_flags_are_labels_too():
    assert read({"text": "a", "joy": "1", "fear": 0}, FLAGS).target == ("joy",)
    assert read({"text": "a", "joy": True, "fear": None}, FLAGS).target == ("joy",)
    with pytest.raises(ValueError, match=r"^the column 'fear' is 2, expected 0 or 1$"):
        read({"text": "a", "joy": 1, "fear": 2}, FLAGS)
    with pytest.raises(KeyError, match="fear"):
        read({"text": "a", "joy": 1}, FLAGS)


def test_a_label_is_named_from_its_threshold_on():
    assert task.decide(logits(0.6, 0.4, 0.5), spec()).tolist() == [0, 2]
    assert task.decide(logits(0.6, 0.4, 0.5), spec(a=0.7, b=0.3)).tolist() == [1, 2]
    answer = task.answer(logits(0.6, 0.4, 0.9), [window()], TextInput(text="x"), spec(b=0.3))
    assert answer.labels == ["c", "a", "b"]  # the likeliest first
    assert answer.scores == pytest.approx({"a": 0.6, "b": 0.4, "c": 0.9}, abs=1e-6)


def test_several_windows_count_by_the_most_certain_one():
    outputs = [{"logits": row[0]} for row in (logits(0.9, 0.2, 0.1), logits(0.3, 0.8, 0.1))]
    merged = task.decode(outputs, [window(), window()], TextInput(text="x"), spec())
    np.testing.assert_allclose(task.probabilities(merged, spec())[0], [0.9, 0.8, 0.1], atol=1e-6)


def test_thresholds_are_tuned_label_by_label_and_those_of_the_recipe_stay():
    """Label a is certain at 0.3, label b only at 0.8, and c never occurs."""
    random = np.random.default_rng(0)
    gold, predictions = [], []
    for _ in range(200):
        true = random.random(3) < (0.5, 0.5, 0)
        shares = np.where(true, (0.4, 0.9, 0.5), (0.2, 0.7, 0.5)) + random.uniform(-0.05, 0.05, 3)
        gold.append(np.flatnonzero(true))
        predictions.append(logits(*shares))
    tuned = task.tune(gold, predictions, spec()).thresholds
    assert 0.25 <= tuned["a"] <= 0.35
    assert 0.75 <= tuned["b"] <= 0.85
    assert tuned["c"] == 0.5
    assert task.tune(gold, predictions, spec(a=0.9)).thresholds == {**tuned, "a": 0.9}


@given(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=20))
def test_tuned_thresholds_are_never_worse_than_one_half(labels):
    every = spec("abcd")
    gold = [np.array(sorted(row), dtype=np.int64) for row in labels]
    random = np.random.default_rng(len(labels))
    predictions = [random.normal(size=(1, 4)).astype(np.float32) for _ in gold]
    tuned = Spec(every.labels, task.tune(gold, predictions, every))
    for label in range(4):

        def f1(found, label=label):
            named = [label in task.decide(row, found) for row in predictions]
            true = [label in row for row in gold]
            right = sum(a and b for a, b in zip(named, true, strict=True))
            return 2 * right / max(sum(named) + sum(true), 1)

        assert f1(tuned) >= f1(every) - 1e-9


def test_the_targets_are_one_for_each_label():
    example = Example(TextInput(text="x"), ("a", "c"))
    assert task.targets(example, window(), spec())["labels"].tolist() == [1, 0, 1]
    assert task.gold(example, spec()).tolist() == [0, 2]
    assert task.items(task.gold(example, spec()), spec()) == [("a",), ("c",)]


def test_only_named_labels_are_observed():
    observed = task.observe([logits(0.9, 0.1, 0.8), logits(0.1, 0.2, 0.3)], spec())
    assert observed.units.tolist() == [2, 0]
    assert observed.labels.tolist() == [0, 2]
    np.testing.assert_allclose(observed.confidences, [0.9, 0.8], atol=1e-6)


def test_thresholds_are_probabilities_of_labels_that_exist():
    rows = [Example(TextInput(text="a"), ("joy",)), Example(TextInput(text="b"), ("anger",))]
    with pytest.raises(
        DataError, match=r"no training row has the label 'Joy' of `thresholds`\. There are: anger, joy\."
    ):
        task.prepare(rows, task.Options(thresholds={"Joy": 0.9}))
    assert task.prepare(rows, task.Options(thresholds={"joy": 0.9})).thresholds == {"joy": 0.9}
    with pytest.raises(ValueError, match="less than or equal to 1"):
        task.Options(thresholds={"joy": 7.5})
