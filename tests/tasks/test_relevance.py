"""How relevant the second text of a pair is: the positive label, and the numbers of regression."""

import numpy as np
import pytest
from rows import example_of, spec_of

from deploykit.errors import DataError
from deploykit.tasks import Spec, regression
from deploykit.tasks import text_classification as task
from deploykit.tasks._ranking import positive_label


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("0", "1"), "1"),
        (("no", "yes"), "yes"),
        (("False", "True"), "True"),
        (("duplicate", "not_duplicate"), "duplicate"),
        (("not relevant", "relevant"), "relevant"),
        (("Non-Answer", "answer"), "answer"),
        (("1", "2"), None),
        (("negative", "positive"), None),
        (("a", "not_b"), None),
        (("0", "1", "2"), None),
    ],
    ids=str,
)
def test_of_two_labels_the_one_that_affirms_is_positive(labels, positive):
    assert positive_label(labels, None) == positive
    assert positive_label(labels[::-1], None) == positive
    assert positive_label(labels, labels[0]) == labels[0]


def test_the_relevance_is_the_probability_of_the_positive_label():
    spec = spec_of("xyz", positive_label="y")
    relevance, prediction = task.relevance(spec), np.log(np.array([[0.5, 0.3, 0.2]], dtype=np.float32))
    assert relevance.of_prediction(prediction) == pytest.approx(0.3)
    assert [relevance.of_gold(np.array([label])) for label in range(3)] == [0, 1, 0]
    assert relevance.of_answer(task.Answer.model_construct(scores={"x": 0.5, "y": 0.3})) == 0.3
    assert task.relevance(spec_of("xyz")) is None


def test_the_relevance_of_regression_is_its_number_in_the_units_of_the_data():
    relevance = regression.relevance(Spec((), regression.Options(mean=3.0, deviation=2.0)))
    assert relevance.of_prediction(np.array([0.5], dtype=np.float32)) == 4.0
    assert relevance.of_gold(np.array([2.5])) == 2.5
    assert relevance.of_answer(regression.Answer(score=1.5, tokens=1, windows=1, truncated=False)) == 1.5


def test_a_positive_label_that_no_row_has_stops_before_training():
    examples = [example_of("a", "b", label) for label in ("spam", "ham")]
    with pytest.raises(DataError, match=r"no training row has the positive_label 'yes'\. The labels are: ham, spam\."):
        task.prepare(examples, task.Options(positive_label="yes"))
    options = task.Options(positive_label="ham")
    assert task.prepare(examples, options) is options
    assert task.prepare(examples, task.Options()) == task.Options()
