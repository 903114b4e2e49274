import numpy as np
import pytest
from pydantic import ValidationError
from rows import example_of, inputs_of, spec_of

from deploykit import tasks
from deploykit.tasks import softmax
from deploykit.tasks import text_classification as task
from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, Encoding, Features, Tokenizer

COLUMNS = {"text": "text", "text_pair": None, "label": "label"}
PAIR = {**COLUMNS, "text_pair": "second"}


def read(row, columns):
    return task.reader([row], columns)(row)


@pytest.mark.parametrize("label", [None, "", "  ", 0.5, float("nan"), ["a"], {"a": 1}], ids=repr)
def test_a_label_that_is_no_word_is_refused(label):
    with pytest.raises(ValueError, match=r"^the label is .*, expected a word or a whole number$"):
        read({"text": "a", "label": label}, COLUMNS)


@pytest.mark.parametrize("text", [None, "", " \n", 5, ["a"]], ids=repr)
def test_a_text_that_is_empty_or_none_is_refused(text):
    with pytest.raises(ValueError, match=r"^'text' is .*, expected a text that is not empty$"):
        read({"text": text, "label": "x"}, COLUMNS)
    with pytest.raises(ValueError, match=r"^'second' is .*, expected a text that is not empty$"):
        read({"text": "a", "second": text, "label": "x"}, PAIR)


@pytest.mark.parametrize("column", ["text", "second", "label"])
def test_a_missing_column_is_a_key_error_with_its_name(column):
    row = {name: "a" for name in ("text", "second", "label") if name != column}
    with pytest.raises(KeyError) as caught:
        read(row, PAIR)
    assert caught.value.args == (column,)


def test_a_label_that_the_model_does_not_have_is_refused():
    example = example_of("a", label="z")
    with pytest.raises(ValueError, match="not in tuple"):
        task.gold(example, spec_of("xy"))
    with pytest.raises(ValueError, match="not in tuple"):
        task.targets(example, features(3), spec_of("xy"))


@pytest.mark.parametrize(("label", "expected"), [("x", "x"), (" x ", "x"), (1, "1"), ("1", "1"), (0, "0")])
def test_read(label, expected):
    assert read({"text": " a ", "label": label, "more": 1}, COLUMNS) == example_of(" a ", None, expected)
    assert read({"text": "a", "second": "b", "label": label}, PAIR) == example_of("a", "b", expected)


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
        assert task.label_names([example_of("a", label=label) for label in order]) == expected


def test_one_text_is_one_unit(tokenizer_folder):
    example, spec = example_of("the film", label="y"), spec_of("xy")
    (parts,) = task.encode([example.input], Tokenizer.load(tokenizer_folder, 16), spec)
    assert [(part.text, part.start) for part in parts] == [("the film", 0)]
    assert task.example_labels(example) == ("y",)
    assert task.gold(example, spec).tolist() == [1]
    target = task.targets(example, parts[0], spec)["labels"]
    assert (target.shape, target.dtype, int(target)) == ((), np.int64, 1)
    prediction = task.decode(outputs([1.0, 2.0]), parts, example.input, spec)
    assert (prediction.shape, prediction.dtype) == ((1, 2), np.float32)
    np.testing.assert_array_equal(task.decide(prediction, spec), task.gold(example, spec))
    assert task.observe([prediction] * 3, spec).units.tolist() == [1, 1, 1]


def features(tokens):
    ids = np.zeros(tokens, dtype=np.int64)
    return Features("", 0, Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, truncated=False))


def outputs(*rows):
    return [{"logits": np.array(row, dtype=np.float32)} for row in rows]


def test_every_window_of_a_text_has_its_label_as_target_and_pairs_have_no_windows(tokenizer_folder):
    tokenizer, spec = Tokenizer.load(tokenizer_folder, 8), spec_of("xy", max_windows=3)
    alone, short, pair = inputs_of(["film " * 40, "film", "film " * 40], [None, None, "great"])
    (windows,) = task.encode([alone], tokenizer, spec)
    example = example_of(alone.text, label="y")
    assert [int(task.targets(example, window, spec)["labels"]) for window in windows] == [1, 1, 1]
    assert windows[-1].encoding.truncated
    ((cut,),) = task.encode([alone], tokenizer, spec_of("xy", max_windows=1))
    assert (len(cut), cut.encoding.truncated) == (8, True)
    (first,), (second,) = task.encode([short, pair], tokenizer, spec)
    assert not first.encoding.truncated
    assert (second.encoding.ids == tokenizer.encode([pair.text], ["great"])[0].ids).all()
    assert second.encoding.truncated


def test_texts_beside_pairs_are_read_as_they_are_alone(tokenizer_folder):
    """A batch of a service may hold both; what one client sends must not change the answer to another."""
    tokenizer, spec = Tokenizer.load(tokenizer_folder, 8), spec_of("xy", max_windows=3)
    long = "film " * 8 * MAX_CHARACTERS_PER_TOKEN
    inputs = inputs_of([long, "film", "a film"], [None, "great", None])
    together = task.encode(inputs, tokenizer, spec)
    for item, parts in zip(inputs, together, strict=True):
        (alone,) = task.encode([item], tokenizer, spec)
        assert [part.encoding.ids.tolist() for part in parts] == [part.encoding.ids.tolist() for part in alone]


def test_changes_name_the_labels():
    example, spec = example_of("a film", label="x"), spec_of("xy")
    x, y = np.array([0]), np.array([1])
    assert task.changes(example, x, x, spec) == []
    assert task.changes(example, x, y, spec) == [{"text": "a film", "true": "x", "before": "x", "after": "y"}]


def test_predictions_come_back_from_their_arrays():
    random = np.random.default_rng(0)
    predictions = [random.normal(size=(1, 3)).astype(np.float32) for _ in range(5)]
    for part in (predictions, predictions[:1]):
        loaded = task.load(task.dump(part))
        assert [row.dtype for row in loaded] == [np.float32] * len(part)
        np.testing.assert_array_equal(loaded, part)


def test_the_answer_is_the_most_probable_label_with_all_probabilities(tokenizer_folder):
    (item,), spec = inputs_of(["film " * 20]), spec_of("abc", max_windows=1)
    (parts,) = task.encode([item], Tokenizer.load(tokenizer_folder, 8), spec)
    scores = np.log(np.array([[0.2, 0.5, 0.3]], dtype=np.float32)) + 100
    found = task.answer(scores, parts, item, spec)
    assert found.label == "b"
    assert found.score == pytest.approx(0.5, abs=1e-5)
    assert found.scores == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.3}, abs=1e-5)
    assert (found.tokens, found.windows, found.truncated) == (8, 1, True)
    with pytest.raises(ValidationError, match="Instance is frozen"):
        found.label = "a"


def test_probabilities_of_large_logits_are_finite():
    found = tasks.softmax(np.array([[1e4, 0.0], [-1e4, 0.0]], dtype=np.float32))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
    assert found.dtype == np.float32


def test_windows_are_averaged_by_their_tokens():
    (item,), spec = inputs_of(["film"]), spec_of("abc")
    logits = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    merged = task.decode(outputs(*logits), [features(10), features(10), features(5)], item, spec)
    assert merged.shape == (1, 3)
    assert merged.dtype == np.float32
    expected = sum(weight * softmax(row) for weight, row in zip((0.4, 0.4, 0.2), logits, strict=True))
    np.testing.assert_allclose(softmax(merged)[0], expected, rtol=1e-5)
    certain = outputs([200.0, 0.0, 0.0], [200.0, 0.0, 0.0])
    assert np.isfinite(task.decode(certain, [features(1), features(1)], item, spec)).all()
