"""Predictions of a model for the validation and the test split, and the metrics that follow."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from deploykit.artifact import Artifact, Metric, load_predictions
from deploykit.data import Dataset
from deploykit.evaluation import abstention, metrics
from deploykit.evaluation.metrics import Outcomes, items, units
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, Prediction, Spec, Task

EVALUATED_SPLITS = ("validation", "test")
ORACLE_SLICE = "with the true entities given"
MAX_SLICES = 20  # that are measured one by one
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
    """Computes the task's metrics on each split that has predictions, and those that fit its rows."""
    by_split = {}
    for name, rows in predictions.items():
        examples = getattr(dataset, name)
        more = task.more_metrics(examples, spec) if hasattr(task, "more_metrics") else ()
        outcomes = Outcomes.of(task, spec, examples, rows)
        by_split[name] = metrics.with_intervals((*task.METRICS, *more), outcomes, seed)
    return by_split


def tables(
    task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction], seed: int
) -> dict[str, Any]:
    """Returns what the report shows of a split.

    Returns:
        `labels` (precision, recall, F1 and support of each), `confusion` (a matrix) and `abstention` (see
        `abstention.measure`), if the task has them, and `slices`, the number of rows and the metrics of the largest
        slices, if the data has any.
    """
    outcomes, figures = Outcomes.of(task, spec, examples, predictions), dict[str, Any]()
    if "labels" in task.FIGURES:
        figures["labels"] = items.per_label(outcomes)
    if "confusion" in task.FIGURES:
        figures["confusion"] = units.confusion(outcomes)
    if "coverage" in task.FIGURES:
        figures["abstention"] = abstention.measure(outcomes)
    if counts := Counter(example.slice for example in examples if example.slice):
        largest = sorted(name for name, _ in counts.most_common(MAX_SLICES))
        figures["slices"] = {name: _slice(outcomes, examples, name, seed) for name in largest}
    return figures


def describe_test(predictor: Predictor, dataset: Dataset, predictions: Predictions, seed: int) -> dict[str, Any]:
    """Returns `tables` of the test split, with a slice more for a task of two steps: the second step alone."""
    task, spec, examples = predictor.task, predictor.spec, dataset.test
    figures = tables(task, spec, examples, predictions["test"], seed)
    if hasattr(task, "oracle"):
        rows = predictor.predict([task.oracle(example) for example in examples])
        measured = _measured(Outcomes.of(task, spec, examples, rows), seed)
        figures["slices"] = {**figures.get("slices", {}), ORACLE_SLICE: measured}
    return figures


def _slice(outcomes: Outcomes, examples: Sequence[Example], name: str, seed: int) -> dict[str, Any]:
    """Returns the number of rows of a slice, and its metrics with their intervals."""
    rows = [row for row, example in enumerate(examples) if example.slice == name]
    gold, predictions, own = ([side[row] for row in rows] for side in (outcomes.gold, outcomes.predictions, examples))
    return _measured(replace(outcomes, gold=gold, predictions=predictions, examples=own), seed)


def _measured(outcomes: Outcomes, seed: int) -> dict[str, Any]:
    measured = metrics.with_intervals(outcomes.task.METRICS, outcomes, seed)
    return {"rows": len(outcomes), "metrics": {name: metric.model_dump() for name, metric in measured.items()}}
