"""Text classification that abstains: the options, the threshold that is tuned, and what an answer says."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rows import spec_of

from deploykit.tasks import TextInput
from deploykit.tasks import text_classification as task
from deploykit.tokenizer import Encoding, Features

SHARES = (0.95, 0.9, 0.9, 0.8, 0.7, 0.6)  # probability of the label of each row
RIGHT = (True, True, False, True, True, False)  # accuracy from each on: 1, 2/3 (of two alike), 3/4, 4/5, 4/6


def prediction(share):
    """Of the labels x and y, y has this probability."""
    return np.log(np.array([[1 - share, share]], dtype=np.float32))


def window():
    ids = np.zeros(3, np.int64)
    return Features("", 0, Encoding(ids, ids, np.zeros((3, 2), np.int64), 0, truncated=False))


def tuned(accuracy, shares=SHARES, right=RIGHT):
    gold = [np.array([int(is_right)]) for is_right in right]
    return task.tune(gold, [prediction(share) for share in shares], spec_of("xy", abstain_accuracy=accuracy))


def answer(share, **options):
    return task.answer(prediction(share), [window()], TextInput(text="a"), spec_of("xy", **options))


@pytest.mark.parametrize("options", [{"abstain_below": 1.1}, {"abstain_below": -0.1}, {"abstain_accuracy": 0}], ids=str)
def test_a_threshold_is_a_probability_and_an_accuracy_a_share(options):
    with pytest.raises(ValidationError, match=r"(less|greater) than"):
        task.Options(**options)


def test_a_threshold_and_an_accuracy_exclude_each_other():
    with pytest.raises(ValidationError, match="either abstain_below or abstain_accuracy"):
        task.Options(abstain_below=0.5, abstain_accuracy=0.9)


def test_without_a_threshold_no_answer_abstains():
    assert not answer(0.5).abstained
    assert not answer(0.5, abstain_below=0).abstained


def test_an_answer_below_the_threshold_abstains_and_gives_label_and_scores_all_the_same():
    uncertain, certain = answer(0.7, abstain_below=0.75), answer(0.8, abstain_below=0.75)
    assert (uncertain.abstained, certain.abstained) == (True, False)
    assert (uncertain.label, uncertain.score) == ("y", pytest.approx(0.7))
    assert uncertain.scores == pytest.approx({"x": 0.3, "y": 0.7})
    assert task.record(uncertain) == {"label": "y", "confidence": uncertain.score, "abstained": True}
    assert task.pipeline(uncertain, None) == task.pipeline(answer(0.7), None)


def test_abstaining_changes_no_decision():
    spec = spec_of("xy", abstain_below=0.99)
    assert task.decide(prediction(0.7), spec).tolist() == [1]


@pytest.mark.parametrize(
    ("accuracy", "threshold"), [(0.6, 0.6), (4 / 6, 0.6), (0.7, 0.7), (0.8, 0.7), (0.81, 0.95), (1, 0.95)]
)
def test_the_threshold_is_the_lowest_that_gives_the_accuracy(accuracy, threshold):
    options = tuned(accuracy)
    assert options.abstain_below == pytest.approx(threshold)
    assert options.abstain_accuracy is None
    assert task.Options.model_validate_json(options.model_dump_json()) == options


def test_the_row_at_the_threshold_is_answered():
    options = tuned(0.8)
    assert not answer(0.7, abstain_below=options.abstain_below).abstained
    assert answer(0.6999, abstain_below=options.abstain_below).abstained


def test_options_without_an_accuracy_stay():
    for options in (task.Options(), task.Options(abstain_below=0.4)):
        assert task.tune([np.array([1])], [prediction(0.9)], spec_of("xy", **options.model_dump())) == options


def test_an_accuracy_that_no_threshold_gives_is_a_warning_and_almost_nothing_is_answered(caplog):
    assert tuned(0.9, (0.9, 0.8), (False, True)).abstain_below == 1.0
    (message,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith("no threshold gives the answers an accuracy of 0.9 on the 2 validation rows")


def test_the_log_says_how_many_rows_are_answered_and_warns_of_few(caplog):
    caplog.set_level(logging.INFO)
    tuned(0.8)
    tuned(0.8, (0.9,) * 50, (True,) * 50)
    assert [record.message for record in caplog.records] == [
        "abstain_below is tuned to 0.7000: 5 of 6 validation rows are answered, 80.0 % of them right",
        "only 5 validation rows are answered: so few say little about the accuracy",
        "abstain_below is tuned to 0.9000: 50 of 50 validation rows are answered, 100.0 % of them right",
    ]


@given(
    st.lists(st.tuples(st.sampled_from((0.55, 0.6, 0.7, 0.9, 0.99)), st.booleans()), min_size=1, max_size=12),
    st.sampled_from((0.3, 0.5, 0.75, 0.9, 1.0)),
)
def test_no_lower_threshold_gives_the_accuracy(rows, accuracy):
    shares, right = zip(*rows, strict=True)
    confidences, right = np.array([answer(share).score for share in shares]), np.array(right)
    reaching = [limit for limit in set(confidences) if right[confidences >= limit].mean() >= accuracy]
    assert tuned(accuracy, shares, right).abstain_below == pytest.approx(min(reaching, default=1.0))


def test_what_a_service_counts():
    predictions = [prediction(share) for share in SHARES]
    assert task.observe(predictions, spec_of("xy")).abstained == 0
    observed = task.observe(predictions, spec_of("xy", abstain_below=0.85))
    assert observed.abstained == 3
    answers = [answer(share, abstain_below=0.85).abstained for share in SHARES]
    assert sum(answers) == observed.abstained
