"""Predicts one of two or more labels for a text or a pair of texts.

A prediction is an array of logits, `(1, labels)`. If the best label's probability is below a threshold, the answer says
that the model abstains, and still names the label.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.methods import Frozen
from deploykit.tasks import (
    Array,
    Arrays,
    Column,
    Example,
    Float32,
    Int64,
    Observations,
    Prediction,
    Spec,
    Target,
    TextInput,
    softmax,
)
from deploykit.tasks._abstention import TextAbstentionOptions, tune_threshold
from deploykit.tasks._classification import (  # noqa: F401  functions of this task
    decide,
    distance,
    dump,
    encode,
    load,
    pipeline,
    probabilities,
    read_label,
    read_text,
)
from deploykit.tasks._classification import observe as observe_labels
from deploykit.tasks._ranking import Relevance, check_positive_label, positive_label, ranking_metrics
from deploykit.tokenizer import Features, join_windows

AUTO_CLASS = "AutoModelForSequenceClassification"
ORT_CLASS = "ORTModelForSequenceClassification"
OPTIMUM_TASK = "text-classification"
OUTPUTS = {"logits": ("labels",)}
TARGETS = {"labels": Target("logits", "cross_entropy")}
COLUMNS = {
    "text": Column("text", "the text"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "label": Column("label", "the label, a word or a whole number"),
}
EXAMPLES = ({"text": "a great film", "label": "positive"}, {"text": "the plot is weak", "label": "negative"})
METRICS = ("accuracy", "macro_f1", "matthews", "roc_auc")
FIGURES = frozenset({"changes", "labels", "confusion", "calibration", "coverage"})
CAPABILITIES = frozenset({"explain", "feedback", "pipeline", "tensors"})
PIPELINE_ALWAYS_LISTS = True  # Hugging Face's inference API answers even a single input with a list
Input = TextInput


class Options(TextAbstentionOptions):
    """How long texts are read, when the model abstains, and which label's probability ranks pairs."""

    positive_label: str | None = None
    """Label whose probability ranks the second texts of pairs for a first one; null: of two labels such as `0` and
    `1`, `no` and `yes`, `false` and `true`, `not_x` and `x`, the one that affirms; of others none, so there is no
    ranking."""


class Answer(Frozen):
    """The prediction for one text."""

    label: str = Field(description="the most probable label")
    score: float = Field(description="its probability, 0 to 1")
    scores: dict[str, float] = Field(description="the probability of every label")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")
    abstained: bool = Field(description="whether the score is too low to rely on the label")


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads the columns `text`, `text_pair` (if named) and `label`."""
    return lambda row: _read(row, columns)


def _read(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
    pair = columns.get("text_pair")
    label = read_label(row, columns)
    texts = TextInput(text=read_text(row, str(columns["text"])), text_pair=read_text(row, pair) if pair else None)
    return Example(texts, label)


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the labels of all examples, sorted; if all are numbers, by value."""
    names = {example.target for example in examples}
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # "01" and "1" have the same value
    return tuple(sorted(names))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels unchanged: any order will do."""
    return tuple(labels)


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the one label of the example."""
    return (example.target,)


def prepare(examples: Sequence[Example], options: Options) -> Options:
    """Returns the options unchanged, after a check that `positive_label` is a label of the data.

    Raises:
        DataError: no training row has it.
    """
    check_positive_label(examples, options.positive_label)
    return options


def gold(example: Example, spec: Spec) -> Int64:
    """Returns the index of the true label, `(1,)`."""
    return np.array([spec.labels.index(example.target)], dtype=np.int64)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the index of the true label, of shape `()`."""
    return {"labels": np.array(spec.labels.index(example.target), dtype=np.int64)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the logits, `(1, labels)`.

    Those of several windows are the logarithms of their mean probabilities, weighted by the windows' numbers of tokens.
    """
    if len(outputs) == 1:
        return outputs[0]["logits"][np.newaxis]
    logits = np.stack([arrays["logits"] for arrays in outputs])
    weights = np.array([len(window) for window in features], dtype=np.float32)
    mean = weights @ softmax(logits) / weights.sum()
    merged: Float32 = np.log(np.maximum(mean, np.finfo(np.float32).tiny)).reshape(1, -1)
    return merged


def tune(gold: Sequence[Int64], predictions: Sequence[Float32], spec: Spec) -> Options:
    """Returns options with the threshold that reaches `abstain_accuracy` on the validation split, if that is set."""
    options: Options = spec.options
    if options.abstain_accuracy is None:
        return options
    observed = observe_labels(predictions, spec)
    right = observed.labels == np.concatenate(gold)
    threshold = tune_threshold(observed.confidences, right, options.abstain_accuracy)
    return options.model_copy(update={"abstain_below": threshold, "abstain_accuracy": None})


def observe(predictions: Sequence[Prediction], spec: Spec) -> Observations:
    """Returns label, confidence and entropy of each text, and the number of texts for which the model abstains."""
    observed = observe_labels(predictions, spec)
    return replace(observed, abstained=int((observed.confidences < _threshold(spec)).sum()))


def _threshold(spec: Spec) -> float:
    """Returns the probability below which the model abstains; 0 if it never does."""
    return spec.options.abstain_below or 0.0


def items(decision: Int64, spec: Spec) -> list[tuple[str]]:
    """Returns the label as the only item."""
    return [(spec.labels[decision[0]],)]


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Returns the labels of the model."""
    return spec.labels


def changes(example: Example, before: Int64, after: Int64, spec: Spec) -> list[dict[str, str]]:
    """Returns the input's title with the true label and those before and after; nothing if the two are the same."""
    if np.array_equal(before, after):
        return []
    names = {"before": spec.labels[before[0]], "after": spec.labels[after[0]]}
    return [{"text": example.input.title, "true": example.target, **names}]


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Returns the most probable label with the probabilities of all labels."""
    shares, encoding = softmax(prediction[0]), join_windows(features)
    best = int(shares.argmax())
    return Answer(
        label=spec.labels[best],
        score=float(shares[best]),
        scores=dict(zip(spec.labels, shares.tolist(), strict=True)),
        tokens=len(encoding),
        windows=encoding.windows,
        truncated=encoding.truncated,
        abstained=bool(shares[best] < _threshold(spec)),
    )


def relevance(spec: Spec) -> Relevance | None:
    """Returns functions to the relevance: the probability of the positive label; None if there is no such label."""
    positive = positive_label(spec.labels, spec.options.positive_label)
    if positive is None:
        return None
    index = spec.labels.index(positive)
    return Relevance(
        of_prediction=lambda prediction: float(softmax(prediction[0])[index]),
        of_gold=lambda gold: float(gold[0] == index),
        of_answer=lambda answer: answer.scores[positive],
    )


def more_metrics(examples: Sequence[Example], spec: Spec) -> tuple[str, ...]:
    """Lists the metrics of rankings, if a label is positive and most rows share their first text with others."""
    return ranking_metrics(examples) if relevance(spec) else ()


def record(answer: Answer) -> dict[str, Any]:
    """Returns the label with its probability, and whether the model abstained."""
    return {"label": answer.label, "confidence": answer.score, "abstained": answer.abstained}


def tensors(answers: Sequence[Answer], spec: Spec) -> dict[str, Array]:
    """Returns `label`, `(answers,)`, and the probabilities of all labels as `scores`, `(answers, labels)`."""
    scores = np.array([[answer.scores[label] for label in spec.labels] for answer in answers], dtype=np.float32)
    labels = np.array([answer.label for answer in answers], dtype=object)
    return {"label": labels, "scores": scores.reshape(-1, len(spec.labels))}
