"""Metrics of rankings: by query, against scikit-learn, with intervals over queries."""

from types import SimpleNamespace

import numpy as np
import pytest
from rows import spec_of
from sklearn.metrics import ndcg_score

from deploykit import tasks
from deploykit.evaluation import bootstrap, metrics, scoring
from deploykit.evaluation.metrics import Outcomes
from deploykit.tasks import Example, Spec, TextInput

NAMES = ("mrr", "ndcg_at_10")
REGRESSION, LABELS = tasks.load("regression"), tasks.load("text-classification")
NUMBERS = Spec((), REGRESSION.Options())


def graded(queries):
    """Outcomes of `{query: [(true, predicted), ...]}` by regression."""
    pairs = [(query, *pair) for query, candidates in queries.items() for pair in candidates]
    examples = [Example(TextInput(text=query, text_pair=str(row)), true) for row, (query, true, _) in enumerate(pairs)]
    predictions = [np.array([predicted], dtype=np.float32) for *_, predicted in pairs]
    return Outcomes.of(REGRESSION, NUMBERS, examples, predictions)


def random_queries(seed, count=30):
    """Queries of 2 to 25 candidates with relevances from 0 to 3; scores have ties."""
    random, queries = np.random.default_rng(seed), {}
    for query in range(count):
        true = random.choice(4, random.integers(2, 26), p=(0.6, 0.2, 0.1, 0.1))
        queries[f"query {query}"] = list(zip(true, np.round(true / 4 + random.normal(size=len(true)), 1), strict=True))
    return queries


def by_library(queries):
    values = [
        ndcg_score([[true for true, _ in pairs]], [[predicted for _, predicted in pairs]], k=10)
        for pairs in queries.values()
        if max(true for true, _ in pairs) > 0
    ]
    return np.mean(values)


def by_definition(queries):
    """The mean reciprocal rank: irrelevant candidates come first among equals."""
    ranks = []
    for pairs in queries.values():
        ranked = sorted(pairs, key=lambda pair: (-pair[1], pair[0] > 0))
        ranks += [place for place, (true, _) in enumerate(ranked, start=1) if true > 0][:1]
    return np.mean([1 / rank for rank in ranks])


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_scikit_learn_and_of_the_definition(seed):
    queries = random_queries(seed)
    values = metrics.compute(NAMES, graded(queries))
    assert values == {
        "mrr": pytest.approx(by_definition(queries)),
        "ndcg_at_10": pytest.approx(by_library(queries), abs=1e-6),
    }
    assert 0.2 < values["ndcg_at_10"] < 0.95


def test_a_small_case_by_hand():
    rows = graded({"a": [(1, 0.2), (0, 0.9), (2, 0.5)], "b": [(0, 0.1), (1, 0.4)]})
    values = metrics.compute(NAMES, rows)
    assert values["mrr"] == pytest.approx((1 / 2 + 1) / 2)
    gained, best = 2 / np.log2(3) + 1 / np.log2(4), 2 + 1 / np.log2(3)
    assert values["ndcg_at_10"] == pytest.approx((gained / best + 1) / 2)


def test_the_order_of_rows_does_not_matter():
    rows = graded(random_queries(7))
    order = np.random.default_rng(0).permutation(len(rows))
    sides = ([side[row] for row in order] for side in (rows.gold, rows.predictions, rows.examples))
    shuffled = Outcomes(REGRESSION, NUMBERS, *sides)
    assert metrics.compute(NAMES, shuffled) == pytest.approx(metrics.compute(NAMES, rows))


def test_a_model_that_gives_all_the_same_score_gains_nothing_by_it():
    rows = graded({"a": [(1, 0.5), (0, 0.5), (0, 0.5), (0, 0.5)]})
    assert metrics.compute(("mrr",), rows)["mrr"] == 0.25


def test_queries_with_one_candidate_or_without_a_relevant_one_do_not_count():
    counted = {"a": [(1, 0.2), (0, 0.9)]}
    rows = graded({**counted, "alone": [(1, 1.0)], "none": [(0, 0.3), (0, 0.2)], "below": [(-1, 0.3), (-2, 0.2)]})
    assert metrics.compute(NAMES, rows) == metrics.compute(NAMES, graded(counted))
    assert metrics.compute(NAMES, graded({"alone": [(1, 1.0)], "none": [(0, 0.3), (0, 0.2)]})) == {}


def test_a_relevance_below_0_gains_nothing():
    negative, zero = ({"a": [(2, 0.1), (bad, 0.9), (1, 0.5)]} for bad in (-3, 0))
    assert metrics.compute(NAMES, graded(negative)) == metrics.compute(NAMES, graded(zero))


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_over_queries(name):
    """The candidates of a query are drawn together: more of them do not make an interval narrower."""
    queries = random_queries(3, 60)
    rows, own = graded(queries), [metrics.compute((name,), graded({key: value})) for key, value in queries.items()]
    values = np.array([value[name] for value in own if value])
    measured = metrics.compute_with_intervals((name,), rows, 0)[name]
    assert measured.value == pytest.approx(values.mean())
    error = values.std() / np.sqrt(len(values))
    assert (measured.high - measured.low) == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_each_draw_is_the_mean_over_the_queries_whose_first_row_is_drawn():
    queries = random_queries(4)
    rows = graded(queries)
    names = [example.input.text for example in rows.examples]
    draws = next(bootstrap.draw_weights(len(rows), 1))[:4]
    for value, drawn in zip(metrics.load("ndcg_at_10").statistic(rows)(draws), draws, strict=True):
        copies = [(name, copy) for name in queries for copy in range(drawn[names.index(name)])]
        assert value == pytest.approx(by_library({copy: queries[copy[0]] for copy in copies}), abs=1e-6)


def test_a_draw_without_a_query_that_counts_says_nothing_new():
    rows = graded({"a": [(1, 0.2), (0, 0.9)], "none": [(0, 0.3), (0, 0.2)]})
    assert metrics.load("mrr").statistic(rows)(np.array([[0, 1, 1, 2]])).tolist() == [0.5]


def examples_of(texts, labels="01"):
    rows = [(text, labels[row % len(labels)]) for row, text in enumerate(texts)]
    return [Example(TextInput(text=text, text_pair=f"pair {row}"), label) for row, (text, label) in enumerate(rows)]


@pytest.mark.parametrize(("name", "labels"), [("text-classification", ("0", "1")), ("regression", ())])
def test_a_task_reports_them_where_most_rows_share_their_query(name, labels):
    task = tasks.load(name)
    spec = Spec(labels, task.Options())
    shared, alone = examples_of(["a", "a", "a", "b"]), examples_of("abcd")
    assert task.more_metrics(shared, spec) == NAMES
    assert task.more_metrics(alone, spec) == ()
    assert task.more_metrics(examples_of(["a", "a", "b", "c"]), spec) == ()  # half is not most
    single = [Example(TextInput(text=row.input.text), row.target) for row in shared]
    assert task.more_metrics(single, spec) == ()


def test_without_a_positive_label_there_are_none():
    examples = examples_of(["a"] * 6, "xyz")
    assert LABELS.more_metrics(examples, spec_of("xyz")) == ()
    assert LABELS.more_metrics(examples, spec_of("xyz", positive_label="y")) == NAMES


def test_splits_have_the_metrics_of_their_rows():
    """Here only the test split has queries, and the metrics are those of the probability of the positive label."""
    validation, test = examples_of("abcd"), examples_of(["a", "a", "b", "b"])
    predictions = [np.array([[0.0, score]], dtype=np.float32) for score in (1.0, 2.0, 3.0, 2.0)]
    rows = SimpleNamespace(validation=validation, test=test)
    both = {"validation": predictions, "test": predictions}
    measured = scoring.compute_metrics(LABELS, spec_of("01"), rows, both, 0)
    assert list(measured["validation"]) == list(LABELS.METRICS)
    assert list(measured["test"]) == [*LABELS.METRICS, *NAMES]
    assert measured["test"]["mrr"].value == 0.75
