import json

import numpy as np
import pytest
from rows import example_of

from deploykit import tasks
from deploykit.data import statistics
from deploykit.data.examples import Split
from deploykit.tasks import Span
from deploykit.tokenizer import Tokenizer

TEXT = tasks.load("text-classification")
TOKEN = tasks.load("token-classification")


def split(name, *examples):
    return Split(name, f"/data/{name}.csv", "line", examples, tuple(range(len(examples))))


def summary(train, validation=None, test=None, cut=(), task=TEXT):
    parts = [train, validation or [example_of("v", label="a")], test or [example_of("t", label="b")]]
    names = ("train", "validation", "test")
    splits = {name: split(name, *rows) for name, rows in zip(names, parts, strict=True)}
    return statistics.summarize(splits, dict(cut), task)


def test_counts_of_rows_labels_and_copies():
    train = [
        example_of(text, label=label) for text, label in (("x", "a"), ("y", "a"), ("x ", "a"), ("y", "b"), ("z", "a"))
    ]
    found = summary(train, cut={"test": 0.25})
    assert found["rows"] == {"train": 5, "validation": 1, "test": 1}
    assert found["sources"] == {"train": "train.csv", "validation": "validation.csv", "test": "test.csv, share 0.25"}
    assert found["labels"] == {"train": {"a": 4, "b": 1}, "validation": {"a": 1}, "test": {"b": 1}}
    assert found["duplicates"] == {"train": 2, "validation": 0, "test": 0}
    assert found["conflicts"] == {"train": 1, "validation": 0, "test": 0}
    assert found["imbalance"] == 4.0
    assert found["without_spans"] == {}
    assert found["warnings"] == [
        "2 of 5 rows of the train split repeat an earlier one.",
        "1 of them in the train split have another label than the first; one of the two is wrong.",
        "the validation split has no row of: b.",
        "the test split has no row of: a.",
    ]
    assert json.loads(json.dumps(found)) == found


def test_leakage_is_counted_in_the_later_split():
    rows = [example_of("x", label="a"), example_of("y", label="b")]
    found = summary(rows, test=[rows[0], rows[0], rows[1], example_of("z", label="a")])
    assert found["leakage"] == {"train/validation": 0, "train/test": 3, "validation/test": 0}
    assert "3 rows of the test split occur in the train split, too; scores flatter the model." in found["warnings"]


def test_a_skewed_split_is_warned_about():
    rows = [example_of(f"x{number}", label="a") for number in range(20)] + [
        example_of("y", label="b"),
        example_of("z", label="b"),
    ]
    assert summary(rows)["imbalance"] == 10.0
    assert summary(rows)["warnings"][-1].startswith("the most frequent label of the training split is 10 times as")


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("neg", "Neg", "pos"), "'Neg' and 'neg'"),
        (("neg", "neg\u200b", "NEG"), r"'NEG', 'neg' and 'neg\u200b'"),
        (("not spam", "notspam", "not\u00a0spam"), r"'not spam', 'notspam' and 'not\xa0spam'"),
        (("1", "1.0", "01", "2"), "'01', '1' and '1.0'"),
        (("straße", "STRASSE"), "'STRASSE' and 'straße'"),
        (("\ufb01lm", "film"), "'film' and '\ufb01lm'"),
    ],
)
def test_labels_that_hardly_differ_are_warned_about(labels, named):
    rows = [example_of(f"x{number}", label=label) for number, label in enumerate(labels)]
    warnings = summary(rows, validation=rows, test=rows)["warnings"]
    assert [warning for warning in warnings if "differ only" in warning] == [
        f"the labels {named} differ only in case, in characters that cannot be seen, or in how a number is written:"
        " write them in one way, if they mean the same."
    ]


def test_labels_of_spans_that_hardly_differ_are_warned_about_too():
    spans = [example_of("a b", spans=(Span(0, 1, "PER"), Span(2, 3, "per")))]
    assert "the labels 'PER' and 'per' differ only" in " ".join(summary(spans, spans, spans, task=TOKEN)["warnings"])


@pytest.mark.parametrize("labels", [("1", "10", "1.5"), ("a", "b"), ("a-b", "a_b", "ab"), ("nan", "inf", "1e1", "10")])
def test_labels_that_differ_are_not_warned_about(labels):
    rows = [example_of(f"x{number}", label=label) for number, label in enumerate(labels)]
    assert "differ only" not in " ".join(summary(rows, validation=rows, test=rows)["warnings"])


def test_spans_are_counted_and_so_are_texts_without_any():
    train = [
        example_of("a b", spans=(Span(0, 1, "X"), Span(2, 3, "X"))),
        *(example_of(text, spans=()) for text in "cde"),
    ]
    found = summary(train, [example_of("f", spans=())], [example_of("g", spans=(Span(0, 1, "X"),))], task=TOKEN)
    assert found["labels"] == {"train": {"X": 2}, "validation": {}, "test": {"X": 1}}
    assert found["without_spans"] == {"train": 0.75, "validation": 1.0, "test": 0.0}


@pytest.mark.parametrize("other", ["a  b", "a b"])
def test_copies_with_other_white_space_are_compared_by_their_words(other):
    at = other.index("b")
    train = [example_of("a b", spans=(Span(2, 3, "X"),)), example_of(other, spans=(Span(at, at + 1, "X"),))]
    assert summary(train, train, train, task=TOKEN)["conflicts"]["train"] == 0
    elsewhere = [train[0], example_of(other, spans=(Span(0, 1, "X"),))]
    assert summary(elsewhere, train, train, task=TOKEN)["conflicts"]["train"] == 1


def test_the_distribution_is_that_of_numpy_and_every_value_is_in_one_bin():
    values = [int(value) for value in np.random.default_rng(0).integers(1, 200, size=500)]
    found = statistics.describe_distribution(values)
    assert found["p95"] == pytest.approx(np.percentile(values, 95), abs=0.05)
    assert found["mean"] == pytest.approx(np.mean(values), abs=0.005)
    assert (found["max"], sum(found["histogram"]["counts"])) == (max(values), 500)
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1 == 21


def test_few_different_lengths_make_few_bins():
    assert statistics.describe_distribution([2, 2, 1])["histogram"] == {"edges": [0.0, 1.0, 2.0], "counts": [0, 3]}


def test_token_lengths_are_those_before_truncation(tokenizer_folder):
    tokenizer = Tokenizer.load(tokenizer_folder, max_tokens=8)
    rows = [
        example_of("the film is great"),
        example_of("the film " * 10),
        example_of("the film", "is great ."),
        example_of("日"),
    ]
    found = statistics.describe_token_lengths(rows, tokenizer)
    assert (found["max"], found["mean"]) == (22, (6 + 22 + 8 + 3) / 4)
    assert (found["max_tokens"], found["truncated"]) == (8, 1)
    assert found["unknown_share"] == pytest.approx(1 / (39 - 2 * 3 - 3), abs=1e-6)  # of three texts and a pair
    assert found["mostly_unknown"] == 1
    assert len(tokenizer.encode(["the film " * 10])[0]) == 8  # the tokenizer still truncates


def test_token_lengths_agree_with_what_the_tokenizer_truncates(tokenizer_folder, sentences):
    tokenizer = Tokenizer.load(tokenizer_folder, max_tokens=9)
    texts = [text for text, _ in sentences]
    truncated = sum(found.truncated for found in tokenizer.encode(texts))
    found = statistics.describe_token_lengths([example_of(text) for text in texts], tokenizer)
    assert found["truncated"] == truncated
    assert 0 < truncated < len(texts)
