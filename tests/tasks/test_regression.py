import numpy as np
import pytest

from deploykit.tasks import Example, Spec, TextInput
from deploykit.tasks import regression as task
from deploykit.tokenizer import Encoding, Features

COLUMNS = {role: column.default for role, column in task.COLUMNS.items()}


def window(tokens=3):
    ids = np.zeros(tokens, np.int64)
    return Features("", 0, Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, truncated=False))


@pytest.mark.parametrize(("score", "expected"), [(3, 3.0), ("2.5", 2.5), (-1e3, -1000.0), (" 7 ", 7.0)], ids=repr)
def test_a_score_is_a_number(score, expected):
    assert task.reader([], COLUMNS)({"text": "a", "score": score}) == Example(TextInput(text="a"), expected)


@pytest.mark.parametrize("score", [None, "", "good", True, float("nan"), "inf", [1], "1,5"], ids=repr)
def test_what_is_no_number_is_refused(score):
    with pytest.raises(ValueError, match=r"^the score is .*, expected a number such as 3\.5$"):
        task.reader([], COLUMNS)({"text": "a", "score": score})


def test_the_model_learns_standardized_numbers_and_answers_in_units_of_the_data():
    rows = [Example(TextInput(text="a"), score) for score in (10.0, 20.0, 60.0)]
    spec = Spec((), task.fit_scale(rows, task.Options()))
    learned = [float(task.targets(row, window(), spec)["labels"]) for row in rows]
    assert np.mean(learned) == pytest.approx(0, abs=1e-6)
    assert np.std(learned) == pytest.approx(1)
    predictions = [
        task.decode([{"logits": np.array([value], np.float32)}], [window()], None, spec) for value in learned
    ]
    assert [task.decide(row, spec)[0] for row in predictions] == pytest.approx([10, 20, 60])
    assert task.answer(predictions[2], [window(5)], rows[2].input, spec).model_dump() == {
        "score": pytest.approx(60),
        "tokens": 5,
        "windows": 1,
        "truncated": False,
    }


def test_equal_scores_leave_the_deviation_at_one():
    options = task.fit_scale([Example(TextInput(text="a"), 4.0)] * 3, task.Options())
    assert (options.mean, options.deviation) == (4.0, 1.0)


def test_windows_are_averaged_by_their_tokens():
    outputs = [{"logits": np.array([value], np.float32)} for value in (1.0, 4.0)]
    assert task.decode(outputs, [window(9), window(3)], None, Spec((), task.Options())).tolist() == [1.75]
