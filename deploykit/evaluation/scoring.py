"""Scores of a predictor on the validation and the test split, and the metrics that follow."""

from collections.abc import Mapping, Sequence
from functools import partial

from tqdm import tqdm

from deploykit.artifact import Metric
from deploykit.data import Dataset
from deploykit.evaluation import metrics
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, Float32, Task
from deploykit.tokenizer import Tokenizer

EVALUATED_SPLITS = ("validation", "test")
Scores = Mapping[str, list[Float32]]


def score(predictor: Predictor, examples: Sequence[Example], name: str) -> list[Float32]:
    """Predicts a split under a progress bar; one array `(units, labels)` per row."""
    track = partial(tqdm, desc=name, unit="batch", disable=None)
    return predictor.predict([row.text for row in examples], [row.pair for row in examples], track=track)


def score_all(predictor: Predictor, dataset: Dataset) -> dict[str, list[Float32]]:
    """Predicts the validation and the test split."""
    return {name: score(predictor, getattr(dataset, name), name) for name in EVALUATED_SPLITS}


def count_tokens(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[int]:
    """Counts the tokens of each row as the model reads it: with special tokens, cut to the tokenizer's `max_tokens`."""
    return [len(row) for row in tokenizer.encode([row.text for row in examples], [row.pair for row in examples])]


def compute_metrics(
    task: Task, dataset: Dataset, labels: Sequence[str], scores: Scores, seed: int
) -> dict[str, dict[str, Metric]]:
    """Computes the task's metrics on each split that has scores."""
    by_split = {}
    for name, rows in scores.items():
        gold = [task.targets(example, labels) for example in getattr(dataset, name)]
        by_split[name] = metrics.with_intervals(task.METRICS, gold, metrics.predictions(rows), labels, seed)
    return by_split
