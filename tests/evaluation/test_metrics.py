import numpy as np
import pytest
import seqeval.metrics
from scipy.sparse import hstack
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from deploykit import methods, tasks
from deploykit.evaluation import bootstrap, metrics

FLAT = ("bad", "fair", "good", "unseen")
BIO = ("O", "B-NAME", "I-NAME", "B-PLACE", "I-PLACE")
LABELS = {"accuracy": FLAT, "macro_f1": FLAT, "entity_f1": BIO}


def random_rows(seed, name):
    """Sequences of different lengths with about two thirds right; the last label of `FLAT` never occurs."""
    rng = np.random.default_rng(seed)
    labels = len(LABELS[name]) - (LABELS[name] is FLAT)
    gold = [rng.integers(0, labels, rng.integers(1, 12)) for _ in range(60)]
    predicted = [np.where(rng.random(len(row)) < 0.6, row, rng.integers(0, labels, len(row))) for row in gold]
    return gold, predicted


def tags(rows):
    return [[BIO[index] for index in row] for row in rows]


def library(name, gold, predicted):
    """The metric straight from its library, where it has one."""
    if name == "entity_f1":
        return seqeval.metrics.f1_score(tags(gold), tags(predicted))
    flat = np.concatenate(gold), np.concatenate(predicted)
    if name == "accuracy":
        return accuracy_score(*flat)
    return f1_score(*flat, labels=range(len(FLAT)), average="macro", zero_division=0.0)


def test_an_unknown_metric_is_refused():
    with pytest.raises(KeyError, match="bleu"):
        metrics.compute(("bleu",), [np.array([0])], [np.array([0])], FLAT)


@pytest.mark.parametrize("name", metrics.METRIC_FUNCTIONS)
def test_as_many_predictions_as_rows(name):
    with pytest.raises(ValueError, match="shorter"):
        metrics.count_rows(name, [np.array([0])] * 2, [np.array([0])], LABELS[name])


def test_every_metric_that_a_task_names_is_known():
    named = {name for task in methods.available("task") for name in tasks.load(task).METRICS}
    assert named
    assert named <= set(metrics.METRIC_FUNCTIONS) == set(LABELS)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", metrics.METRIC_FUNCTIONS)
def test_counts_give_the_librarys_value(name, seed):
    gold, predicted = random_rows(seed, name)
    expected = library(name, gold, predicted)
    assert 0.1 < expected < 0.9
    counted = metrics.compute_ratio(name, metrics.count_rows(name, gold, predicted, LABELS[name]).sum(axis=0))
    assert float(counted) == pytest.approx(expected, abs=1e-12)
    assert metrics.compute((name,), gold, predicted, LABELS[name]) == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("name", metrics.METRIC_FUNCTIONS)
def test_each_resample_has_the_value_that_the_library_gives_for_its_rows(name):
    gold, predicted = random_rows(9, name)
    counts = metrics.count_rows(name, gold, predicted, LABELS[name])
    draws = np.random.default_rng(3).multinomial(len(gold), np.full(len(gold), 1 / len(gold)), size=4)
    for sampled, draw in zip(metrics.compute_ratio(name, next(bootstrap.draw_sums(counts, 3))[:4]), draws, strict=True):
        rows = np.repeat(np.arange(len(gold)), draw)
        expected = library(name, [gold[row] for row in rows], [predicted[row] for row in rows])
        assert float(sampled) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", metrics.METRIC_FUNCTIONS)
def test_the_interval_contains_the_value_and_more_rows_narrow_it(name, seed):
    gold, predicted = random_rows(seed, name)
    few, many = (
        metrics.with_intervals((name,), gold * times, predicted * times, LABELS[name], seed=seed)[name]
        for times in (1, 16)
    )
    assert few.low < few.value < few.high
    assert many.value == pytest.approx(few.value)
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 4, rel=0.35)


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    gold = [np.array([0])] * 400
    predicted = [np.array([int(index < 100)]) for index in range(400)]
    found = metrics.with_intervals(("accuracy",), gold, predicted, FLAT, seed=0)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert (found.low, found.high) == (pytest.approx(0.75 - half, abs=0.01), pytest.approx(0.75 + half, abs=0.01))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    gold, predicted = random_rows(0, "macro_f1")
    found = [metrics.with_intervals(("macro_f1",), gold, predicted, FLAT, seed)["macro_f1"] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", metrics.METRIC_FUNCTIONS)
def test_two_equal_models_differ_by_nothing_in_every_paired_sample(name):
    gold, predicted = random_rows(0, name)
    counts = metrics.count_rows(name, gold, predicted, LABELS[name])
    sums = np.concatenate(list(bootstrap.draw_sums(hstack([counts, counts], format="csr"), 0)))
    samples = np.stack([metrics.compute_ratio(name, part) for part in np.split(sums, 2, axis=1)], axis=1)
    assert samples.shape == (bootstrap.RESAMPLES, 2)
    assert samples[:, 0].std() > 0
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])


@pytest.mark.parametrize(
    ("gold", "predicted", "right", "f1"),
    [
        ("B-NAME I-NAME O B-PLACE", "B-NAME I-NAME O B-PLACE", 2, 1.0),
        ("B-NAME I-NAME O B-PLACE", "B-NAME B-NAME O B-PLACE", 1, 2 / 5),  # one of two is cut in two
        ("B-NAME I-NAME O O", "B-PLACE I-PLACE O O", 0, 0.0),
        ("O B-NAME I-NAME O", "O I-NAME I-NAME O", 1, 1.0),  # what begins with I- begins all the same
        ("B-NAME I-PLACE O O", "B-NAME O O O", 1, 2 / 3),  # another name is another entity
        ("B-NAME B-NAME I-NAME O", "B-NAME I-NAME I-NAME O", 0, 0.0),
        ("O O O B-NAME", "O O O B-NAME", 1, 1.0),
    ],
)
def test_entities_are_right_only_as_a_whole(gold, predicted, right, f1):
    rows = [[np.array([BIO.index(tag) for tag in tags.split()])] for tags in (gold, predicted)]
    assert metrics.count_rows("entity_f1", *rows, BIO)[0, 0] == right
    assert metrics.compute(("entity_f1",), *rows, BIO)["entity_f1"] == pytest.approx(f1)


def test_rows_without_units_count_nothing():
    nothing = np.array([], dtype=np.int64)
    gold, predicted = [nothing, np.array([1, 2])], [nothing, np.array([1, 2])]
    found = metrics.compute(("entity_f1", "accuracy"), gold, predicted, BIO)
    assert found == {"entity_f1": 1.0, "accuracy": 1.0}


def test_no_entity_anywhere_is_zero_and_no_error():
    gold = [np.array([0, 0])]
    assert metrics.with_intervals(("entity_f1",), gold, gold, BIO, 0)["entity_f1"].value == 0.0


def test_the_table_of_labels_is_that_of_scikit_learn():
    gold, predicted = random_rows(0, "accuracy")
    table = metrics.per_label(("accuracy", "macro_f1"), gold, predicted, FLAT)
    flat = np.concatenate(gold), np.concatenate(predicted)
    expected = precision_recall_fscore_support(*flat, labels=range(len(FLAT)), zero_division=0.0)
    assert list(table["labels"]) == list(FLAT)
    for index, row in enumerate(table["labels"].values()):
        assert list(row) == ["precision", "recall", "f1-score", "support"]
        assert list(row.values()) == pytest.approx([column[index] for column in expected])
    matrix = np.array(table["confusion"])
    assert matrix.shape == (4, 4)
    assert matrix.trace() / matrix.sum() == pytest.approx(accuracy_score(*flat))


def test_the_table_of_entities_names_them_without_their_prefix():
    gold, predicted = random_rows(0, "entity_f1")
    table = metrics.per_label(("entity_f1", "accuracy"), gold, predicted, BIO)
    assert sorted(table["labels"]) == ["NAME", "PLACE"]
    assert np.array(table["confusion"]).shape == (5, 5)
    right = sum(row["recall"] * row["support"] for row in table["labels"].values())
    counted = metrics.count_rows("entity_f1", gold, predicted, BIO).sum(axis=0)
    assert right == pytest.approx(counted[0])


def test_the_table_of_entities_is_that_of_seqeval():
    gold, predicted = random_rows(1, "entity_f1")
    table = metrics.per_label(("entity_f1", "accuracy"), gold, predicted, BIO)["labels"]
    expected = seqeval.metrics.classification_report(tags(gold), tags(predicted), output_dict=True)
    for label in ("NAME", "PLACE"):
        assert table[label] == pytest.approx(expected[label])


def test_predictions_are_the_best_label_of_each_unit():
    scores = [np.array([[1, 3, 2]], dtype=np.float32), np.zeros((0, 3), dtype=np.float32), np.eye(3, dtype=np.float32)]
    assert [row.tolist() for row in metrics.predictions(scores)] == [[1], [], [0, 1, 2]]
