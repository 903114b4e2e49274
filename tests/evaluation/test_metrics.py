from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
from rows import spec_of
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from deploykit import methods, tasks
from deploykit.evaluation import bootstrap, metrics, scoring
from deploykit.evaluation.metrics import Outcomes, items
from deploykit.tasks import Example

FLAT = ("bad", "fair", "good", "unseen")
BIO = ("O", "B-NAME", "I-NAME", "B-PLACE", "I-PLACE")
LABELS = {**dict.fromkeys(("accuracy", "macro_f1", "micro_f1", "matthews", "roc_auc"), FLAT), "entity_f1": BIO}
# predictions are the decisions themselves, and the probabilities follow from them
UNITS = SimpleNamespace(
    FIGURES={"labels", "confusion"},
    decide=lambda prediction, _: prediction,
    items=lambda decision, spec: [(spec.labels[index], unit) for unit, index in enumerate(decision)],
    item_labels=lambda spec: spec.labels,
    probabilities=lambda prediction, spec: (
        np.eye(len(spec.labels))[prediction] * 0.8 + 0.05 * (prediction % 3)[:, None]
    ),
)
ENTITIES = SimpleNamespace(
    **{**vars(UNITS), **{name: getattr(tasks.load("token-classification"), name) for name in ("items", "item_labels")}}
)


def outcomes(gold, predicted, labels=FLAT):
    """Rows whose gold and predicted labels are these indices."""
    return Outcomes(ENTITIES if labels is BIO else UNITS, spec_of(labels), gold, predicted)


def value_of(statistic, rows):
    return float(statistic(np.ones((1, rows), dtype=int))[0])


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
    """The metric straight from its library."""
    if name == "entity_f1":
        return seqeval.metrics.f1_score(tags(gold), tags(predicted))
    flat = np.concatenate(gold), np.concatenate(predicted)
    if name == "roc_auc":
        probabilities = UNITS.probabilities(flat[1], spec_of(FLAT))
        sides = [(flat[0] == label, probabilities[:, label]) for label in range(len(FLAT))]
        return float(np.mean([roc_auc_score(*side) for side in sides if side[0].any()]))
    averages = {"macro_f1": "macro", "micro_f1": "micro"}
    if name in averages:
        return f1_score(*flat, average=averages[name], zero_division=0.0)
    return {"accuracy": accuracy_score, "matthews": matthews_corrcoef}[name](*flat)


def test_an_unknown_metric_is_refused():
    with pytest.raises(KeyError, match="bleu"):
        metrics.compute(("bleu",), outcomes([np.array([0])], [np.array([0])]))


def test_as_many_predictions_as_rows():
    with pytest.raises(ValueError, match="2 examples and 1 predictions"):
        Outcomes.of(UNITS, spec_of(FLAT), [None] * 2, [np.array([0])])


def test_every_metric_that_a_task_names_is_known():
    named = {name for task in methods.available("task") for name in tasks.load(task).METRICS}
    assert named
    assert all(metrics.load(name) for name in named)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LABELS)
def test_counts_give_the_librarys_value(name, seed):
    gold, predicted = random_rows(seed, name)
    expected, rows = library(name, gold, predicted), outcomes(gold, predicted, LABELS[name])
    assert 0.1 < expected < 0.95
    assert value_of(metrics.load(name).statistic(rows), len(gold)) == pytest.approx(expected, abs=1e-12)
    assert metrics.compute((name,), rows) == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("name", LABELS)
def test_each_resample_has_the_value_that_the_library_gives_for_its_rows(name):
    gold, predicted = random_rows(9, name)
    draws = np.random.default_rng(3).multinomial(len(gold), np.full(len(gold), 1 / len(gold)), size=4)
    np.testing.assert_array_equal(next(bootstrap.draw_weights(len(gold), 3))[:4], draws)
    sampled = metrics.load(name).statistic(outcomes(gold, predicted, LABELS[name]))(draws)
    for value, draw in zip(sampled, draws, strict=True):
        rows = np.repeat(np.arange(len(gold)), draw)
        expected = library(name, [gold[row] for row in rows], [predicted[row] for row in rows])
        assert float(value) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LABELS)
def test_the_interval_contains_the_value_and_more_rows_narrow_it(name, seed):
    gold, predicted = random_rows(seed, name)
    few, many = (
        metrics.compute_with_intervals((name,), outcomes(gold * times, predicted * times, LABELS[name]), seed=seed)[
            name
        ]
        for times in (1, 16)
    )
    assert few.low < few.value < few.high
    assert many.value == pytest.approx(few.value)
    assert (many.high - many.low) == pytest.approx((few.high - few.low) / 4, rel=0.35)


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    gold = [np.array([0])] * 400
    predicted = [np.array([int(index < 100)]) for index in range(400)]
    metric = metrics.compute_with_intervals(("accuracy",), outcomes(gold, predicted), seed=0)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert metric.value == 0.75
    assert (metric.low, metric.high) == (pytest.approx(0.75 - half, abs=0.01), pytest.approx(0.75 + half, abs=0.01))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rows = outcomes(*random_rows(0, "macro_f1"))
    first, same, other = [metrics.compute_with_intervals(("macro_f1",), rows, seed)["macro_f1"] for seed in (1, 1, 2)]
    assert first == same != other


@pytest.mark.parametrize("name", LABELS)
def test_two_equal_models_differ_by_nothing_in_every_paired_sample(name):
    rows = outcomes(*random_rows(0, name), LABELS[name])
    loss, own = metrics.loss(name, rows, rows), metrics.load(name).statistic(rows)
    for weights in bootstrap.draw_weights(len(rows), 0):
        assert own(weights).std() > 0
        np.testing.assert_array_equal(loss(weights), np.zeros(len(weights)))


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
    outcome = outcomes(*rows, BIO)
    assert items.count_items(outcome)[1].sum(axis=0)[:2].sum() == right
    assert metrics.compute(("entity_f1",), outcome)["entity_f1"] == pytest.approx(f1)


def test_rows_without_units_count_nothing():
    nothing = np.array([], dtype=np.int64)
    gold, predicted = [nothing, np.array([1, 2])], [nothing, np.array([1, 2])]
    assert metrics.compute(("entity_f1", "accuracy"), outcomes(gold, predicted, BIO)) == {
        "entity_f1": 1.0,
        "accuracy": 1.0,
    }


def test_no_entity_anywhere_is_zero_and_no_error():
    gold = [np.array([0, 0])]
    assert metrics.compute_with_intervals(("entity_f1",), outcomes(gold, gold, BIO), 0)["entity_f1"].value == 0.0


def tables(gold, predicted, labels, slices=()):
    """The tables of rows whose gold are these indices."""
    rows = outcomes(gold, predicted, labels)
    task = SimpleNamespace(**{**vars(rows.task), "METRICS": ("accuracy",), "gold": lambda example, _: example.target})
    examples = [Example(None, row, slices[index] if slices else "") for index, row in enumerate(gold)]
    return scoring.report_tables(task, rows.spec, examples, predicted, 0)


def test_the_table_of_labels_is_that_of_scikit_learn():
    gold, predicted = random_rows(0, "accuracy")
    table = tables(gold, predicted, FLAT)
    flat = np.concatenate(gold), np.concatenate(predicted)
    expected = precision_recall_fscore_support(*flat, labels=range(len(FLAT)), zero_division=0.0)
    assert list(table["labels"]) == list(FLAT[:3])  # no row has the last one, and none was predicted
    for index, row in enumerate(table["labels"].values()):
        assert list(row) == ["precision", "recall", "f1-score", "support"]
        assert list(row.values()) == pytest.approx([column[index] for column in expected])
    matrix = np.array(table["confusion"])
    assert matrix.shape == (4, 4)
    assert matrix.trace() / matrix.sum() == pytest.approx(accuracy_score(*flat))


def test_the_table_of_entities_names_them_without_their_prefix():
    gold, predicted = random_rows(0, "entity_f1")
    table = tables(gold, predicted, BIO)
    assert sorted(table["labels"]) == ["NAME", "PLACE"]
    assert np.array(table["confusion"]).shape == (5, 5)
    right = sum(row["recall"] * row["support"] for row in table["labels"].values())
    assert right == pytest.approx(items.count_items(outcomes(gold, predicted, BIO))[1].sum(axis=0)[:2].sum())


def test_the_table_of_entities_is_that_of_seqeval():
    gold, predicted = random_rows(1, "entity_f1")
    table = tables(gold, predicted, BIO)["labels"]
    expected = seqeval.metrics.classification_report(tags(gold), tags(predicted), output_dict=True)
    for label in ("NAME", "PLACE"):
        assert table[label] == pytest.approx(expected[label])


def test_slices_have_the_metrics_of_their_rows_and_only_the_largest_are_measured():
    gold, predicted = random_rows(2, "accuracy")
    slices = ["en" if index % 3 else "pt" for index in range(len(gold))]
    table = tables(gold, predicted, FLAT, slices)["slices"]
    assert list(table) == ["en", "pt"]
    for name, figures in table.items():
        rows = [index for index, found in enumerate(slices) if found == name]
        expected = accuracy_score(*(np.concatenate([side[row] for row in rows]) for side in (gold, predicted)))
        measured = figures["metrics"]["accuracy"]
        assert (figures["rows"], measured["value"]) == (len(rows), pytest.approx(expected))
        assert measured["low"] < expected < measured["high"]
    many = [f"{index % 7}-{index % 60}" for index in range(len(gold))]
    assert len(tables(gold, predicted, FLAT, many)["slices"]) == scoring.MAX_SLICES
    assert "slices" not in tables(gold, predicted, FLAT)


# metrics of numbers, of several labels, and of answers


def drawn_rows(rows, seed, draws=5):
    """Some draws of rows: how often each was drawn, and the indices of the drawn rows."""
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws)
    return weights, [np.repeat(np.arange(rows), drawn) for drawn in weights]


def numbers(seed, rows=80):
    random = np.random.default_rng(seed)
    gold = random.integers(0, 9, rows) / 2  # with ties
    return gold, gold + random.normal(size=rows)


NUMBERS = SimpleNamespace(decide=lambda prediction, _: prediction)
BY_LIBRARY = {
    "pearson": lambda gold, predicted: scipy.stats.pearsonr(gold, predicted)[0],
    "spearman": lambda gold, predicted: scipy.stats.spearmanr(gold, predicted)[0],
    "rmse": lambda gold, predicted: np.sqrt(np.mean((gold - predicted) ** 2)),
}


@pytest.mark.parametrize("name", BY_LIBRARY)
def test_metrics_of_numbers_are_those_of_scipy_for_every_draw(name):
    gold, predicted = numbers(1)
    rows = Outcomes(NUMBERS, spec_of(()), list(gold[:, None]), list(predicted[:, None]))
    assert metrics.compute((name,), rows)[name] == pytest.approx(BY_LIBRARY[name](gold, predicted))
    weights, places = drawn_rows(len(gold), 2)
    for value, drawn in zip(metrics.load(name).statistic(rows)(weights), places, strict=True):
        assert float(value) == pytest.approx(BY_LIBRARY[name](gold[drawn], predicted[drawn]))


@pytest.mark.parametrize("name", BY_LIBRARY)
def test_equal_numbers_have_no_correlation_and_no_error_is_raised(name):
    rows = Outcomes(NUMBERS, spec_of(()), [np.array([2.0])] * 9, [np.array([1.0])] * 9)
    assert metrics.compute_with_intervals((name,), rows, 0)[name].value == (1.0 if name == "rmse" else 0.0)


def test_a_metric_of_which_less_is_better_counts_a_rise_as_a_loss():
    gold, predicted = numbers(1)
    before = Outcomes(NUMBERS, spec_of(()), list(gold[:, None]), list(predicted[:, None]))
    after = Outcomes(NUMBERS, spec_of(()), list(gold[:, None]), list(gold[:, None] + 2 * (predicted - gold)[:, None]))
    every = np.ones((1, len(gold)))
    assert metrics.loss("rmse", before, after)(every) == pytest.approx(metrics.load("rmse").value(before))
    assert metrics.loss("pearson", before, after)(every) > 0


def test_average_precision_is_that_of_scikit_learn_for_every_draw():
    random = np.random.default_rng(3)
    true = random.random((60, 4)) < (0.5, 0.3, 0.1, 0.0)  # no row has the last label
    scores = np.round(np.clip(true * 0.3 + random.random((60, 4)) * 0.7, 0, 1), 1).astype(np.float32)  # with ties
    task = SimpleNamespace(probabilities=lambda prediction, _: prediction)
    rows = Outcomes(task, spec_of("abcd"), [np.flatnonzero(row) for row in true], list(scores[:, None, :]))

    def expected(places):
        labels = [label for label in range(4) if true[places, label].any()]
        return np.mean([average_precision_score(true[places, label], scores[places, label]) for label in labels])

    assert metrics.compute(("average_precision",), rows)["average_precision"] == pytest.approx(expected(np.arange(60)))
    weights, places = drawn_rows(60, 4)
    for value, drawn in zip(metrics.load("average_precision").statistic(rows)(weights), places, strict=True):
        assert float(value) == pytest.approx(expected(drawn))


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("the Eiffel Tower", ["Eiffel tower."], 1, 1),
        ("Eiffel", ["Eiffel Tower", "the tower of Paris"], 0, 2 / 3),
        ("in Paris in Paris", ["in Paris"], 0, 2 / 3),  # each word counts as often as it is there
        ("London", ["Paris"], 0, 0),
        ("", [], 1, 1),
        ("London", [], 0, 0),
        ("", ["Paris"], 0, 0),
    ],
)
def test_answers_are_compared_as_in_squad(answer, gold, exact, f1):
    rows = Outcomes(NUMBERS, spec_of(()), [tuple(gold)], [answer])
    assert metrics.compute(("exact_match", "answer_f1"), rows) == {"exact_match": exact, "answer_f1": pytest.approx(f1)}


def test_the_area_under_the_curve_of_a_single_class_is_left_out():
    rows = outcomes([np.array([0])] * 5, [np.array([0])] * 5, FLAT)
    assert "roc_auc" not in metrics.compute_with_intervals(("roc_auc", "accuracy"), rows, 0)
    assert metrics.compute_with_intervals(("macro_f1",), rows, 0)["macro_f1"].low == 1
