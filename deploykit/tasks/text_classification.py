"""Predicts one label of two or more for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.methods import Frozen
from deploykit.tasks import Example, Float32, Int64, softmax
from deploykit.tokenizer import Encoding, Window

AUTO_CLASS = "AutoModelForSequenceClassification"
ORT_CLASS = "ORTModelForSequenceClassification"
OPTIMUM_TASK = "text-classification"
METRICS = ("accuracy", "macro_f1")
PIPELINE_NESTED = True


class Answer(Frozen):
    """The prediction for one text."""

    label: str = Field(description="the most probable label")
    score: float = Field(description="its probability, 0 to 1")
    scores: dict[str, float] = Field(description="the probability of every label")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def read(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
    """Reads the columns `text`, `text_pair` (if named) and `label`."""
    pair = columns.get("text_pair")
    label = row[str(columns["label"])]
    if label is None or isinstance(label, (list, dict, float)) or str(label).strip() == "":
        raise ValueError(f"the label is {label!r}, expected a word or a whole number")
    return Example(_text(row, str(columns["text"])), _text(row, pair) if pair else None, str(label).strip())


def _text(row: Mapping[str, Any], column: str) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column!r} is {text!r}, expected a text that is not empty")
    return text


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Sorts the labels; numbers by value."""
    names = {example.label for example in examples}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # the name orders "01" and "1"
    return tuple(sorted(names))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels in the given order."""
    return tuple(labels)


def classes(example: Example) -> tuple[str, ...]:
    """Returns the one label."""
    return (example.label,)


def units(text: str) -> Int64:
    """Returns the whole text as the one unit, `(1, 2)`."""
    return np.array([[0, len(text)]], dtype=np.int64)


def targets(example: Example, labels: Sequence[str]) -> Int64:
    """Returns the label's index, shape `(1,)`."""
    return np.array([labels.index(example.label)], dtype=np.int64)


def loss_targets(example: Example, encoding: Encoding, labels: Sequence[str]) -> Int64:
    """Returns the label's index, shape `()`."""
    return np.array(labels.index(example.label), dtype=np.int64)


def scores(logits: Float32, text: str, encoding: Encoding) -> Float32:
    """Reshapes the logits `(labels,)` to the one unit, `(1, labels)`."""
    return logits.reshape(1, -1)


def merge(scores: Sequence[Float32], windows: Sequence[Window], text: str) -> Float32:
    """Averages the probabilities of the windows, weighted by tokens; returns their logarithms, `(1, labels)`."""
    weights = np.array([len(window.encoding) for window in windows], dtype=np.float32)
    mean = weights @ softmax(np.concatenate(scores)) / weights.sum()
    merged: Float32 = np.log(np.maximum(mean, np.finfo(np.float32).tiny)).reshape(1, -1)
    return merged


def answer(scores: Float32, text: str, encoding: Encoding, labels: Sequence[str]) -> Answer:
    """Returns the most probable label with all probabilities."""
    probabilities = softmax(scores[0])
    best = int(probabilities.argmax())
    return Answer(
        label=labels[best],
        score=float(probabilities[best]),
        scores={label: float(value) for label, value in zip(labels, probabilities, strict=True)},
        tokens=len(encoding),
        windows=encoding.windows,
        truncated=encoding.truncated,
    )


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Lists labels with their probabilities, the most probable first."""
    ranked = sorted(answer.scores.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ranked[:top_k]]
