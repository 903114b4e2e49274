"""Predicts a number for a text or a pair of texts: a rating, a similarity, a price.

The model learns standardized numbers: those of the training split have mean 0 and standard deviation 1. A prediction is
such a number, in an array of shape `(1,)`. Decisions and answers are in the units of the data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    Observations,
    Spec,
    Target,
    TextInput,
    TextOptions,
)
from deploykit.tasks._classification import encode, read_text  # noqa: F401  functions of this task
from deploykit.tasks._ranking import Relevance, ranking_metrics
from deploykit.tasks._unlabelled import example_labels, label_names, label_order  # noqa: F401  functions of this task
from deploykit.tokenizer import Features, join_windows

AUTO_CLASS = "AutoModelForSequenceClassification"
ORT_CLASS = "ORTModelForSequenceClassification"
OPTIMUM_TASK = "text-classification"
PROBLEM_TYPE = "regression"
OUTPUTS = {"logits": ("labels",)}
OUTPUT_NAMES = ("score",)
TARGETS = {"labels": Target("logits", "squared_error")}
COLUMNS = {
    "text": Column("text", "the text"),
    "text_pair": Column(None, "the second text; naming it makes this a task on pairs of texts"),
    "score": Column("score", "the number"),
}
EXAMPLES = (
    {"text": "a great film", "score": 4.5},
    {"text": "the plot is weak", "score": 1},
    {"text": "it begins at eight", "score": 3},
)
METRICS = ("spearman", "pearson", "rmse")
FIGURES = frozenset[str]()
CAPABILITIES = frozenset({"pipeline", "tensors"})
PIPELINE_ALWAYS_LISTS = True  # Hugging Face's inference API answers even a single input with a list
PIPELINE_ACTIVATION = "none"  # the only `function_to_apply` that its route accepts
Input = TextInput


class Options(TextOptions):
    """How long texts are read, and the mean and deviation that standardize the numbers."""

    mean: float = 0.0
    """Mean of the training scores; set by training."""
    deviation: float = Field(default=1.0, gt=0)
    """Standard deviation of the training scores; set by training."""


class Answer(Frozen):
    """The prediction for one text."""

    score: float = Field(description="the number, in the units of the data")
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads the text and its number."""

    def read(row: Mapping[str, Any]) -> Example:
        pair, score = columns.get("text_pair"), row[str(columns["score"])]
        texts = TextInput(text=read_text(row, str(columns["text"])), text_pair=read_text(row, pair) if pair else None)
        try:
            number = float("nan") if isinstance(score, bool) else float(score)
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise ValueError(f"the score is {score!r}, expected a number such as 3.5")
        return Example(texts, number)

    return read


def fit_scale(examples: Sequence[Example], options: Options) -> Options:
    """Returns options with the mean and the standard deviation of the training scores."""
    scores = np.array([example.target for example in examples])
    return options.model_copy(update={"mean": float(scores.mean()), "deviation": float(scores.std()) or 1.0})


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Float32]:
    """Returns the standardized number, of shape `()`."""
    return {"labels": np.array((example.target - spec.options.mean) / spec.options.deviation, dtype=np.float32)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the standardized number, `(1,)`; of several windows the mean, weighted by their numbers of tokens."""
    weights = np.array([len(window) for window in features], dtype=np.float32)
    values = np.array([arrays["logits"][0] for arrays in outputs], dtype=np.float32)
    return np.array([weights @ values / weights.sum()], dtype=np.float32)


def gold(example: Example, spec: Spec) -> Array:
    """Returns the true number in the units of the data, `(1,)`."""
    return np.array([example.target])


def decide(prediction: Float32, spec: Spec) -> Array:
    """Returns the predicted number in the units of the data, `(1,)`."""
    decision: Array = prediction.astype(np.float64) * spec.options.deviation + spec.options.mean
    return decision


def changes(example: Example, before: Array, after: Array, spec: Spec) -> list[dict[str, str]]:
    """Returns the text with its true number and those before and after."""
    numbers = {"true": example.target, "before": before[0], "after": after[0]}
    return [{"text": example.input.text, **{name: f"{number:.4g}" for name, number in numbers.items()}}]


def distance(first: Float32, second: Float32) -> float:
    """Returns the absolute difference in standard deviations of the training numbers."""
    return float(np.abs(first - second).max())


def observe(predictions: Sequence[Float32], spec: Spec) -> Observations:
    """Returns no units: a number has no label and no confidence."""
    empty = np.zeros(0, np.float32)
    return Observations(np.zeros(len(predictions), np.int64), np.zeros(0, np.int64), empty, empty)


def dump(predictions: Sequence[Float32]) -> dict[str, Array]:
    """Returns the standardized numbers as `scores`, `(predictions,)`."""
    return {"scores": np.concatenate([np.zeros(0, np.float32), *predictions])}


def load(arrays: Arrays) -> list[Float32]:
    """Returns the predictions that `dump` turned into arrays."""
    return list(arrays["scores"].reshape(-1, 1))


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Returns the number in the units of the data."""
    encoding = join_windows(features)
    return Answer(
        score=float(decide(prediction, spec)[0]),
        tokens=len(encoding),
        windows=encoding.windows,
        truncated=encoding.truncated,
    )


def relevance(spec: Spec) -> Relevance:
    """Returns functions to the relevance, which is the number itself."""
    return Relevance(
        of_prediction=lambda prediction: float(decide(prediction, spec)[0]),
        of_gold=lambda gold: float(gold[0]),
        of_answer=lambda answer: answer.score,
    )


def more_metrics(examples: Sequence[Example], spec: Spec) -> tuple[str, ...]:
    """Lists the metrics of rankings, if most rows are pairs whose first text other rows have, too."""
    return ranking_metrics(examples)


def record(answer: Answer) -> dict[str, Any]:
    """Returns the number as `score`."""
    return {"score": answer.score}


def tensors(answers: Sequence[Answer], spec: Spec) -> dict[str, Array]:
    """Returns the numbers as `scores`, `(answers, 1)`."""
    return {"scores": np.array([[answer.score] for answer in answers], dtype=np.float32).reshape(-1, 1)}


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Returns the number as the score of a label `score`, as transformers' pipeline does for such a model."""
    return [{"label": OUTPUT_NAMES[0], "score": answer.score}]
