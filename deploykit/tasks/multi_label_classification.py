"""Predicts any number of labels for a text or a pair of texts.

A prediction is an array of logits, `(1, labels)`. The sigmoid of a logit is the probability of its label, whatever the
other labels. A label is named if its probability reaches its threshold, which is tuned on the validation split.
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
from deploykit.tokenizer import Features, join_windows

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
PIPELINE_ALWAYS_LISTS = True  # Hugging Face's inference API answers even a single input with a list
PIPELINE_ACTIVATION = "sigmoid"  # the only `function_to_apply` that its route accepts
TRUE_CELLS = ("1", "true", "yes", "1.0")  # of the columns `label_columns`, in lower case
FALSE_CELLS = ("0", "false", "no", "", "0.0")
CANDIDATE_THRESHOLDS = np.arange(0.05, 0.96, 0.05)  # that `tune` tries for each label
DEFAULT_THRESHOLD = 0.5  # of a label whose threshold is neither set nor tuned
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
    names = columns.get("label_columns")
    label_columns = [name.strip() for name in names.split(",")] if names else []

    def read(row: Mapping[str, Any]) -> Example:
        pair = columns.get("text_pair")
        texts = TextInput(text=read_text(row, str(columns["text"])), text_pair=read_text(row, pair) if pair else None)
        if label_columns:
            labels = [name for name in label_columns if _parse_flag(name, row[name])]
        else:
            labels = _parse_labels(row[str(columns["labels"])])
        return Example(texts, tuple(sorted(set(labels))))

    return read


def prepare(examples: Sequence[Example], options: Options) -> Options:
    """Returns the options unchanged, after a check that the labels in `thresholds` exist.

    Raises:
        DataError: no training row has one of these labels.
    """
    labels = label_names(examples)
    for name in options.thresholds or ():
        if name not in labels:
            raise DataError(f"no training row has the label {name!r} of `thresholds`. There are: {', '.join(labels)}.")
    return options


def _parse_flag(name: str, value: Any) -> bool:
    """Returns whether a cell of the column `name` says that the label applies; raises ValueError for other values."""
    text = str(value if value is not None else "").strip().lower()
    if text not in (*TRUE_CELLS, *FALSE_CELLS):
        raise ValueError(f"the column {name!r} is {value!r}, expected 0 or 1")
    return text in TRUE_CELLS


def _parse_labels(value: Any) -> list[str]:
    """Returns the labels of a cell: a list, or a text with labels between commas; raises ValueError for others."""
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
    """Returns the labels of all examples, sorted."""
    return tuple(sorted({label for example in examples for label in example.target}))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels unchanged: any order will do."""
    return tuple(labels)


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the labels of the example."""
    return tuple(example.target)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Float32]:
    """Returns 1 for each label that applies and 0 for the others, `(labels,)`."""
    return {"labels": np.array([label in example.target for label in spec.labels], dtype=np.float32)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the logits, `(1, labels)`; of several windows the largest, as a label may apply to one window alone."""
    largest: Float32 = np.stack([arrays["logits"] for arrays in outputs]).max(axis=0, keepdims=True)
    return largest


def tune(gold: Sequence[Int64], predictions: Sequence[Float32], spec: Spec) -> Options:
    """Returns options with the threshold of each label that has the highest F1 on the validation split.

    Of several best thresholds the middle one is taken. Thresholds that the recipe sets stay.
    """
    options: Options = spec.options
    shares = np.concatenate([probabilities(prediction, spec) for prediction in predictions])
    true, thresholds = _label_matrix(gold, spec), dict[str, float]()
    for index, label in enumerate(spec.labels):
        named = shares[:, [index]] >= CANDIDATE_THRESHOLDS  # (rows, thresholds)
        right = (named & true[:, [index]]).sum(axis=0)
        f1 = 2 * right / np.maximum(named.sum(axis=0) + true[:, index].sum(), 1)
        best = np.flatnonzero(f1 == f1.max())
        middle = round(float(CANDIDATE_THRESHOLDS[best[len(best) // 2]]), 2)
        thresholds[label] = middle if f1.max() > 0 else DEFAULT_THRESHOLD
    return options.model_copy(update={"thresholds": {**thresholds, **(options.thresholds or {})}})


def _label_matrix(decisions: Sequence[Int64], spec: Spec) -> Array:
    """Returns which labels each decision has, `(decisions, labels)`, of type bool."""
    matrix = np.zeros((len(decisions), len(spec.labels)), dtype=bool)
    for row, decision in enumerate(decisions):
        matrix[row, decision] = True
    return matrix


def gold(example: Example, spec: Spec) -> Int64:
    """Returns the indices of the true labels, ascending."""
    return np.array([index for index, label in enumerate(spec.labels) if label in example.target], dtype=np.int64)


def decide(prediction: Float32, spec: Spec) -> Int64:
    """Returns the indices of the labels whose probabilities reach their thresholds, ascending."""
    by_label = spec.options.thresholds or {}
    thresholds = [by_label.get(label, DEFAULT_THRESHOLD) for label in spec.labels]
    return np.flatnonzero(probabilities(prediction, spec)[0] >= thresholds)


def items(decision: Int64, spec: Spec) -> list[tuple[str]]:
    """Returns each label as an item of its own."""
    return [(spec.labels[index],) for index in decision]


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Returns the labels of the model."""
    return spec.labels


def probabilities(prediction: Float32, spec: Spec) -> Float32:
    """Returns the probability of each label, `(1, labels)`: the sigmoid of its logit."""
    return _sigmoid(prediction)


def _sigmoid(logits: Float32) -> Float32:
    shares: Float32 = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return shares


def changes(example: Example, before: Int64, after: Int64, spec: Spec) -> list[dict[str, str]]:
    """Returns the text with its true labels and those before and after; nothing if the decisions are the same."""
    if np.array_equal(before, after):
        return []
    decisions = {"before": before, "after": after, "true": gold(example, spec)}
    names = {key: ", ".join(spec.labels[index] for index in indices) for key, indices in decisions.items()}
    return [{"text": example.input.text, **names}]


def distance(first: Float32, second: Float32) -> float:
    """Returns the largest absolute difference of a probability, computed from logits; infinity if the shapes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(_sigmoid(first) - _sigmoid(second)).max())


def observe(predictions: Sequence[Float32], spec: Spec) -> Observations:
    """Returns the labels that reach their thresholds, with their probabilities; each counts as a unit of its text."""
    decisions = [decide(prediction, spec) for prediction in predictions]
    pairs = zip(predictions, decisions, strict=True)
    shares = [probabilities(prediction, spec)[0][labels] for prediction, labels in pairs]
    confidences = np.concatenate([np.zeros(0, np.float32), *shares])
    units = np.array([len(labels) for labels in decisions], dtype=np.int64)
    labels = np.concatenate([np.zeros(0, np.int64), *decisions])
    return Observations(units, labels, confidences, binary_entropies(confidences))


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Returns the labels that reach their thresholds, and the probabilities of all labels."""
    shares, encoding, decision = probabilities(prediction, spec)[0], join_windows(features), decide(prediction, spec)
    return Answer(
        labels=[spec.labels[index] for index in sorted(decision, key=lambda index: -shares[index])],
        scores=dict(zip(spec.labels, shares.tolist(), strict=True)),
        tokens=len(encoding),
        windows=encoding.windows,
        truncated=encoding.truncated,
    )


def record(answer: Answer) -> dict[str, Any]:
    """Returns the labels that were named, and the probabilities of all labels."""
    return {"labels": answer.labels, "scores": answer.scores}


def tensors(answers: Sequence[Answer], spec: Spec) -> dict[str, Array]:
    """Returns the probabilities of all labels as `scores`, `(answers, labels)`."""
    scores = np.array([[answer.scores[label] for label in spec.labels] for answer in answers], dtype=np.float32)
    return {"scores": scores.reshape(-1, len(spec.labels))}
