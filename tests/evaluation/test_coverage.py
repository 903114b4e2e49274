"""Coverage and accuracy at thresholds, as the report shows them."""

import numpy as np
import pytest
from rows import example_of, spec_of
from scipy.stats import binomtest

from deploykit import tasks
from deploykit.evaluation import abstention, scoring
from deploykit.evaluation.metrics import Outcomes

TASK = tasks.load("text-classification")
ROWS = 200


def rows(**options):
    """Rows whose label has a probability from 0.501 to 0.9985; those above 0.75 are right, and half of the others."""
    shares = np.linspace(0.501, 0.9985, ROWS)
    gold = ["y" if share > 0.75 or index % 2 else "x" for index, share in enumerate(shares)]
    examples = [example_of("a", label=label) for label in gold]
    predictions = [np.log(np.array([[1 - share, share]], dtype=np.float32)) for share in shares]
    return examples, predictions, spec_of("xy", **options)


def measured(**options):
    examples, predictions, spec = rows(**options)
    return abstention.measure(Outcomes.of(TASK, spec, examples, predictions))


def test_the_curve_answers_these_shares_of_the_rows_the_surest_first():
    curve = measured()["curve"]
    assert [point["coverage"]["value"] for point in curve] == [1, 0.95, 0.9, 0.8, 0.7, 0.5]
    assert [point["threshold"] for point in curve] == pytest.approx([0.5, 0.525, 0.55, 0.6, 0.65, 0.75], abs=2e-3)
    assert curve[0]["accuracy"]["value"] == pytest.approx(0.75, abs=0.01)
    assert curve[-1]["accuracy"]["value"] >= 0.99


def test_intervals_are_those_of_wilson_and_have_a_width_where_all_answers_are_right():
    chosen = measured(abstain_below=0.8)["chosen"]
    answered = round(chosen["coverage"]["value"] * ROWS)
    assert chosen["threshold"] == 0.8
    assert answered == 80
    for metric, part, whole in (("coverage", answered, ROWS), ("accuracy", answered, answered)):
        interval = binomtest(part, whole).proportion_ci(method="wilson")
        assert chosen[metric] == {"value": part / whole, "low": interval.low, "high": interval.high}
    assert chosen["accuracy"]["low"] < 0.96


def test_without_a_threshold_none_is_chosen_and_one_that_nothing_reaches_has_no_accuracy():
    assert measured()["chosen"] is None
    chosen = measured(abstain_below=1.0)["chosen"]
    assert (chosen["coverage"]["value"], chosen["accuracy"]) == (0.0, None)


def test_equal_probabilities_are_answered_together():
    examples, predictions, spec = rows()
    outcomes = Outcomes.of(TASK, spec, examples, [predictions[0]] * ROWS)
    assert {point["coverage"]["value"] for point in abstention.measure(outcomes)["curve"]} == {1.0}


def test_tables_have_it_for_text_classification_only():
    examples, predictions, spec = rows(abstain_below=0.7)
    table = scoring.report_tables(TASK, spec, examples, predictions, 0)
    assert table["abstention"] == measured(abstain_below=0.7)
    assert "coverage" not in tasks.load("token-classification").FIGURES


def test_metrics_are_computed_on_all_rows():
    examples, predictions, spec = rows(abstain_below=0.9)
    assert np.concatenate(Outcomes.of(TASK, spec, examples, predictions).decisions).tolist() == [1] * ROWS
