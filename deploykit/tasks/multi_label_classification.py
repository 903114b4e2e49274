"""Predicts any number of labels for a text or a pair of texts.

Each label has a probability of its own, and a threshold, which is tuned on the validation split for the highest F1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from deploykit.errors import DataError
from deploykit.methods import Frozen
from deploykit.tasks import (
    Array,
    Arrays,
    Column,
    Example,
    Float32,
    Int64,
    Observations,
    Spec,
    Target,
    TextInput,
    TextOptions,
)
from deploykit.tasks._classification import (  # noqa: F401  functions of this task
    binary_entropies,
    dump,
    encode,
    load,
    pipeline,
    read_text,
)
from deploykit.tokenizer import Features, joined

AUTO_CLASS = "AutoModelForSequenceClassification"
ORT_CLASS = "ORTModelForSequenceClassification"
OPTIMUM_TASK = "text-classification"
PROBLEM_TYPE = "multi_label_classification"
OUTPUTS = {"logits": ("labels",)}
TARGETS = {"labels": Target("logits", "binary_cross_entropy", ("labels",))}
COLUMNS = {
    "text": Column("text", "the text"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "labels": Column("labels", "the list of labels, which may be empty, or one text with the labels between commas"),
    "label_columns": Column(None, "the names of columns of 0 and 1, between commas; read instead of `labels`"),
}
EXAMPLES = (
    {"text": "a great film", "labels": ["joy", "trust"]},
    {"text": "the plot is weak", "labels": ["anger"]},
    {"text": "it begins at eight", "labels": []},
)
METRICS = ("micro_f1", "macro_f1", "average_precision")
FIGURES = frozenset({"changes", "labels"})
CAPABILITIES = frozenset({"explain", "pipeline", "tensors"})
PIPELINE_NESTED, PIPELINE_FUNCTION = True, "sigmoid"
TRUE, FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "", "0.0")
TRIED_THRESHOLDS = np.arange(0.05, 0.96, 0.05)
Input = TextInput


class Options(TextOptions):
    """Which labels an answer names."""

    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """Probability from which each label is named; null: tuned on the validation split for the highest F1 of the label,
    by steps of 0.05."""


class Answer(Frozen):
    """The prediction for one text."""

    labels: list[str] = Field(description="the labels whose probability reaches their threshold, likeliest first")
    scores: dict[str, float] = Field(description="the probability of every label")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads the text, and its labels from a list or from columns of 0 and 1."""
    named = columns.get("label_columns")
    flags = [name.strip() for name in named.split(",")] if named else []

    def read(row: Mapping[str, Any]) -> Example:
        pair = columns.get("text_pair")
        texts = TextInput(text=read_text(row, str(columns["text"])), text_pair=read_text(row, pair) if pair else None)
        labels = [name for name in flags if _flag(name, row[name])] if flags else _labels(row[str(columns["labels"])])
        return Example(texts, tuple(sorted(set(labels))))

    return read


def prepare(examples: Sequence[Example], options: Options) -> Options:
    """Returns the options as they are, after a check that the labels with a threshold exist.

    Raises:
        DataError: no training row has one of them.
    """
    labels = label_names(examples)
    for name in options.thresholds or ():
        if name not in labels:
            raise DataError(f"no training row has the label {name!r} of `thresholds`. There are: {', '.join(labels)}.")
    return options


def _flag(name: str, value: Any) -> bool:
    text = str(value if value is not None else "").strip().lower()
    if text not in (*TRUE, *FALSE):
        raise ValueError(f"the column {name!r} is {value!r}, expected 0 or 1")
    return text in TRUE


def _labels(value: Any) -> list[str]:
    labels = value.split(",") if isinstance(value, str) else value
    if not isinstance(labels, list) or not all(isinstance(label, (str, int)) for label in labels):
        raise ValueError(f"labels is {value!r}, expected a list of labels")
    names = [str(label).strip() for label in labels]
    if isinstance(value, str):
        names = [name for name in names if name]
    if "" in names:
        raise ValueError(f"labels is {value!r}, and one of them is empty")
    return names


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Sorts the labels."""
    return tuple(sorted({label for example in examples for label in example.target}))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels in the given order."""
    return tuple(labels)


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the labels."""
    return tuple(example.target)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Float32]:
    """Returns 0 or 1 for each label, shape `(labels,)`."""
    return {"labels": np.array([label in example.target for label in spec.labels], dtype=np.float32)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the logits, `(1, labels)`; of several windows the largest, because a label may apply to one of them."""
    largest: Float32 = np.stack([arrays["logits"] for arrays in outputs]).max(axis=0, keepdims=True)
    return largest


def tune(gold: Sequence[Int64], predictions: Sequence[Float32], spec: Spec) -> Options:
    """Returns options with the threshold of each label that gives it the highest F1 on the validation split."""
    options: Options = spec.options
    shares, true = np.concatenate([probabilities(row, spec) for row in predictions]), _matrix(gold, spec)
    thresholds = {}
    for index, label in enumerate(spec.labels):
        named = shares[:, [index]] >= TRIED_THRESHOLDS
        right = (named & true[:, [index]]).sum(axis=0)
        f1 = 2 * right / np.maximum(named.sum(axis=0) + true[:, index].sum(), 1)
        best = np.flatnonzero(f1 == f1.max())
        thresholds[label] = round(float(TRIED_THRESHOLDS[best[len(best) // 2]]), 2) if f1.max() > 0 else 0.5
    return options.model_copy(update={"thresholds": {**thresholds, **(options.thresholds or {})}})


def _matrix(decisions: Sequence[Int64], spec: Spec) -> Array:
    matrix = np.zeros((len(decisions), len(spec.labels)), dtype=bool)
    for row, decision in enumerate(decisions):
        matrix[row, decision] = True
    return matrix


def gold(example: Example, spec: Spec) -> Int64:
    """Returns the indices of the labels, ascending."""
    return np.array([index for index, label in enumerate(spec.labels) if label in example.target], dtype=np.int64)


def decide(prediction: Float32, spec: Spec) -> Int64:
    """Returns the indices of the labels that reach their thresholds, ascending."""
    limits = spec.options.thresholds or {}
    reached = probabilities(prediction, spec)[0] >= [limits.get(label, 0.5) for label in spec.labels]
    return np.flatnonzero(reached)


def items(decision: Int64, spec: Spec) -> list[tuple[str]]:
    """Lists the labels."""
    return [(spec.labels[index],) for index in decision]


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Returns the labels of the model."""
    return spec.labels


def probabilities(prediction: Float32, spec: Spec) -> Float32:
    """Returns the probability of each label, `(1, labels)`."""
    shares: Float32 = (1 / (1 + np.exp(-prediction))).astype(np.float32)
    return shares


def changes(example: Example, before: Int64, after: Int64, spec: Spec) -> list[dict[str, str]]:
    """Returns the text with its labels and those before and after, if they differ."""
    if np.array_equal(before, after):
        return []
    names = {"before": before, "after": after, "true": gold(example, spec)}
    answer_list = {key: ", ".join(spec.labels[index] for index in indices) for key, indices in names.items()}
    return [{"text": example.input.text, **answer_list}]


def distance(first: Float32, second: Float32) -> float:
    """Returns the largest difference of a probability; infinite if the shapes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(1 / (1 + np.exp(-first)) - 1 / (1 + np.exp(-second))).max())


def observe(predictions: Sequence[Float32], spec: Spec) -> Observations:
    """Returns the labels that are named, with their probabilities; a text may have none."""
    decisions = [decide(row, spec) for row in predictions]
    of_labels = [probabilities(row, spec)[0][labels] for row, labels in zip(predictions, decisions, strict=True)]
    confidences = np.concatenate([np.zeros(0, np.float32), *of_labels])
    units = np.array([len(labels) for labels in decisions], dtype=np.int64)
    labels = np.concatenate([np.zeros(0, np.int64), *decisions])
    return Observations(units, labels, confidences, binary_entropies(confidences))


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Returns the labels that reach their thresholds, and all probabilities."""
    shares, encoding, decision = probabilities(prediction, spec)[0], joined(features), decide(prediction, spec)
    return Answer(
        labels=[spec.labels[index] for index in sorted(decision, key=lambda index: -shares[index])],
        scores=dict(zip(spec.labels, shares.tolist(), strict=True)),
        tokens=len(encoding),
        windows=encoding.windows,
        truncated=encoding.truncated,
    )


def record(answer: Answer) -> dict[str, Any]:
    """Returns the labels with the probability of each."""
    return {"labels": answer.labels, "scores": answer.scores}


def tensors(answers: Sequence[Answer], spec: Spec) -> dict[str, Array]:
    """Returns the probabilities of all labels, `(answers, labels)`."""
    scores = np.array([[answer.scores[label] for label in spec.labels] for answer in answers], dtype=np.float32)
    return {"scores": scores.reshape(-1, len(spec.labels))}
