"""Predictions of a model for the validation and the test split, and the metrics that follow."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from deploykit.artifact import Artifact, Metric, load_predictions
from deploykit.data import Dataset
from deploykit.evaluation import metrics
from deploykit.evaluation.metrics import Outcomes, items, units
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, Prediction, Spec, Task

EVALUATED_SPLITS = ("validation", "test")
Predictions = Mapping[str, list[Prediction]]  # by split, one for each row


def predict(predictor: Predictor, examples: Sequence[Example], name: str) -> list[Prediction]:
    """Predicts for the rows of a split under a progress bar."""
    track = partial(tqdm, desc=name, unit="batch", disable=None)
    return predictor.predict([row.input for row in examples], track=track)


def predict_all(predictor: Predictor, dataset: Dataset) -> dict[str, list[Prediction]]:
    """Predicts for the validation and the test split."""
    return {name: predict(predictor, getattr(dataset, name), name) for name in EVALUATED_SPLITS}


def stored(artifact: Artifact, task: Task) -> dict[str, list[Prediction]]:
    """Reads the predictions of an artifact, by split."""
    return {name: task.load(arrays) for name, arrays in load_predictions(artifact).items()}


def count_tokens(predictor: Predictor, examples: Sequence[Example]) -> list[int]:
    """Counts the tokens that the model reads of each row, special tokens and overlaps of windows included."""
    return [sum(map(len, parts)) for parts in predictor.encode([row.input for row in examples])]


def compute_metrics(
    task: Task, spec: Spec, dataset: Dataset, predictions: Predictions, seed: int
) -> dict[str, dict[str, Metric]]:
    """Computes the task's metrics on each split that has predictions."""
    by_split = {}
    for name, rows in predictions.items():
        outcomes = Outcomes.of(task, spec, getattr(dataset, name), rows)
        by_split[name] = metrics.with_intervals(task.METRICS, outcomes, seed)
    return by_split


def tables(task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Returns precision, recall, F1 and support of each label, and the confusion matrix, if the task has them."""
    outcomes = Outcomes.of(task, spec, examples, predictions)
    figures: dict[str, Any] = {"labels": items.per_label(outcomes)} if "labels" in task.FIGURES else {}
    return {**figures, "confusion": units.confusion(outcomes)} if "confusion" in task.FIGURES else figures
