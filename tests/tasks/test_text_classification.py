import numpy as np
import pytest
from pydantic import ValidationError

from deploykit import tasks
from deploykit.tasks import Example, softmax
from deploykit.tasks import text_classification as task
from deploykit.tokenizer import Encoding, Tokenizer, Window

COLUMNS = {"text": "text", "text_pair": None, "label": "label"}
PAIR = {**COLUMNS, "text_pair": "second"}


@pytest.mark.parametrize("label", [None, "", "  ", 0.5, float("nan"), ["a"], {"a": 1}], ids=repr)
def test_a_label_that_is_no_word_is_refused(label):
    with pytest.raises(ValueError, match=r"^the label is .*, expected a word or a whole number$"):
        task.read({"text": "a", "label": label}, COLUMNS)


@pytest.mark.parametrize("text", [None, "", " \n", 5, ["a"]], ids=repr)
def test_a_text_that_is_empty_or_none_is_refused(text):
    with pytest.raises(ValueError, match=r"^'text' is .*, expected a text that is not empty$"):
        task.read({"text": text, "label": "x"}, COLUMNS)
    with pytest.raises(ValueError, match=r"^'second' is .*, expected a text that is not empty$"):
        task.read({"text": "a", "second": text, "label": "x"}, PAIR)


@pytest.mark.parametrize("column", ["text", "second", "label"])
def test_a_missing_column_is_a_key_error_with_its_name(column):
    row = {name: "a" for name in ("text", "second", "label") if name != column}
    with pytest.raises(KeyError) as caught:
        task.read(row, PAIR)
    assert caught.value.args == (column,)


def test_a_label_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        task.targets(Example("a", label="z"), ("x", "y"))


@pytest.mark.parametrize(("label", "expected"), [("x", "x"), (" x ", "x"), (1, "1"), ("1", "1"), (0, "0")])
def test_read(label, expected):
    assert task.read({"text": " a ", "label": label, "more": 1}, COLUMNS) == Example(" a ", None, expected)
    assert task.read({"text": "a", "second": "b", "label": label}, PAIR) == Example("a", "b", expected)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("bac", ("a", "b", "c")),
        (["10", "9", "1"], ("1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1", "01"], ("01", "1")),
    ],
)
def test_labels_are_sorted_and_numbers_by_value(labels, expected):
    for order in (labels, labels[::-1]):
        assert task.label_names([Example("a", label=label) for label in order]) == expected


def test_one_text_is_one_unit(tokenizer_folder):
    example = Example("the film", label="y")
    (encoding,) = Tokenizer.load(tokenizer_folder, 16).encode([example.text])
    assert task.units(example.text).tolist() == [[0, 8]]
    assert task.classes(example) == ("y",)
    assert task.targets(example, ("x", "y")).tolist() == [1]
    target = task.loss_targets(example, encoding, ("x", "y"))
    assert (target.shape, target.dtype, int(target)) == ((), np.int64, 1)
    assert task.scores(np.array([1.0, 2.0], dtype=np.float32), example.text, encoding).shape == (1, 2)


def test_the_answer_is_the_most_probable_label_with_all_probabilities(tokenizer_folder):
    (encoding,) = Tokenizer.load(tokenizer_folder, 8).encode(["film " * 20])
    scores = np.log(np.array([[0.2, 0.5, 0.3]], dtype=np.float32)) + 100
    found = task.answer(scores, "", encoding, ("a", "b", "c"))
    assert found.label == "b"
    assert found.score == pytest.approx(0.5, abs=1e-5)
    assert found.scores == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.3}, abs=1e-5)
    assert (found.tokens, found.truncated) == (8, True)
    with pytest.raises(ValidationError, match="Instance is frozen"):
        found.label = "a"


def test_probabilities_of_large_logits_are_finite():
    found = tasks.softmax(np.array([[1e4, 0.0], [-1e4, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
    assert found.dtype == np.float32


def test_windows_are_averaged_by_their_tokens():
    def window(tokens):
        ids = np.zeros(tokens, dtype=np.int64)
        return Window("", 0, Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, truncated=False))

    random = np.random.default_rng(0)
    logits = [random.normal(size=(1, 3)).astype(np.float32) for _ in range(3)]
    merged = task.merge(logits, [window(10), window(10), window(5)], "")
    assert merged.shape == (1, 3)
    assert merged.dtype == np.float32
    expected = sum(weight * softmax(row) for weight, row in zip((0.4, 0.4, 0.2), logits, strict=True))
    np.testing.assert_allclose(softmax(merged), expected, rtol=1e-5)
    certain = [np.array([[200.0, 0.0, 0.0]], np.float32)] * 2
    assert np.isfinite(task.merge(certain, [window(1), window(1)], "")).all()
