"""Predictions of a model for the validation and the test split, and the metrics and tables that follow from them."""

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
ORACLE_SLICE = "with the true entities given"  # the second step of a task alone, without errors of the first
MAX_SLICES = 20  # the largest ones, which the report shows
Predictions = Mapping[str, list[Prediction]]  # by split, one for each row


def predict(predictor: Predictor, examples: Sequence[Example], name: str) -> list[Prediction]:
    """Predicts for the rows of a split, with a progress bar that shows the split's name."""
    track = partial(tqdm, desc=name, unit="batch", disable=None)
    return predictor.predict([row.input for row in examples], track=track)


def predict_all(predictor: Predictor, dataset: Dataset) -> dict[str, list[Prediction]]:
    """Predicts for the validation and the test split."""
    return {name: predict(predictor, getattr(dataset, name), name) for name in EVALUATED_SPLITS}


def load_stored(artifact: Artifact, task: Task) -> dict[str, list[Prediction]]:
    """Reads the predictions that an artifact stores, by split."""
    return {name: task.load(arrays) for name, arrays in load_predictions(artifact).items()}


def count_tokens(predictor: Predictor, examples: Sequence[Example]) -> list[int]:
    """Counts the tokens that the model reads of each row, including special tokens and overlaps of windows."""
    return [sum(map(len, windows)) for windows in predictor.encode([row.input for row in examples])]


def compute_metrics(
    task: Task, spec: Spec, dataset: Dataset, predictions: Predictions, seed: int
) -> dict[str, dict[str, Metric]]:
    """Computes metrics by split and name: those of the task, and those that the task adds for the rows of a split."""
    by_split = {}
    for name, rows in predictions.items():
        examples = getattr(dataset, name)
        more = task.more_metrics(examples, spec) if hasattr(task, "more_metrics") else ()
        outcomes = Outcomes.of(task, spec, examples, rows)
        by_split[name] = metrics.compute_with_intervals((*task.METRICS, *more), outcomes, seed)
    return by_split


def report_tables(
    task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction], seed: int
) -> dict[str, Any]:
    """Returns the tables that the report shows of a split.

    Returns:
        If the task has them: `labels` (precision, recall, F1 and support of each), `confusion` (a matrix), and
        `abstention` (see `abstention.measure`). If the data has slices: `slices`, the number of rows and the metrics of
        the largest ones.
    """
    outcomes, tables = Outcomes.of(task, spec, examples, predictions), dict[str, Any]()
    if "labels" in task.FIGURES:
        tables["labels"] = items.per_label(outcomes)
    if "confusion" in task.FIGURES:
        tables["confusion"] = units.confusion(outcomes)
    if "coverage" in task.FIGURES:
        tables["abstention"] = abstention.measure(outcomes)
    if counts := Counter(example.slice for example in examples if example.slice):
        largest = sorted(name for name, _ in counts.most_common(MAX_SLICES))
        tables["slices"] = {name: _slice_row(_outcomes_of_slice(outcomes, name), seed) for name in largest}
    return tables


def tables_of_test(predictor: Predictor, dataset: Dataset, predictions: Predictions, seed: int) -> dict[str, Any]:
    """Returns the `report_tables` of the test split.

    A task of two steps, such as entities and their relations, gets one more slice, `ORACLE_SLICE`.
    """
    task, spec, examples = predictor.task, predictor.spec, dataset.test
    tables = report_tables(task, spec, examples, predictions["test"], seed)
    if hasattr(task, "oracle"):
        oracle_predictions = predictor.predict([task.oracle(example) for example in examples])
        oracle_row = _slice_row(Outcomes.of(task, spec, examples, oracle_predictions), seed)
        tables["slices"] = {**tables.get("slices", {}), ORACLE_SLICE: oracle_row}
    return tables


def _outcomes_of_slice(outcomes: Outcomes, name: str) -> Outcomes:
    """Returns the outcomes of the rows of a slice."""
    rows = [row for row, example in enumerate(outcomes.examples) if example.slice == name]
    gold, predictions = ([values[row] for row in rows] for values in (outcomes.gold, outcomes.predictions))
    return replace(outcomes, gold=gold, predictions=predictions, examples=[outcomes.examples[row] for row in rows])


def _slice_row(outcomes: Outcomes, seed: int) -> dict[str, Any]:
    """Returns a row of the table of slices: the number of rows, and the metrics with their intervals."""
    measured = metrics.compute_with_intervals(outcomes.task.METRICS, outcomes, seed)
    return {"rows": len(outcomes), "metrics": {name: metric.model_dump() for name, metric in measured.items()}}
