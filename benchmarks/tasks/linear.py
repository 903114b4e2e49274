"""TF-IDF with a linear model: what a transformer has to beat on the rows of a recipe.

Words and pairs of words, each count dampened by its logarithm; the strength of the regularization is chosen on the
validation split. Texts of a pair are told apart: words of the second one get a prefix.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from deploykit.artifact import Metric
from deploykit.data import Dataset
from deploykit.tasks import Example

STRENGTHS = (0.3, 1, 3, 10, 30, 100)  # scikit-learn's C; of the ridge, its inverse
THRESHOLDS = np.linspace(0.05, 0.6, 23)  # of a label's probability
SAMPLES = 1000  # of the bootstrap
WORD = re.compile(r"\w+|[^\w\s]")
TASKS = ("text-classification", "multi-label-classification", "regression")


def measure(dataset: Dataset, task: str, seed: int) -> dict[str, Metric]:
    """Fits the baseline on the training split, and returns its metrics on the test split with 95 % intervals."""
    vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, min_df=2)
    train = vectorizer.fit_transform([_texts(row) for row in dataset.train])
    validation, test = (
        vectorizer.transform([_texts(row) for row in rows]) for rows in (dataset.validation, dataset.test)
    )
    fit = {"text-classification": _classes, "multi-label-classification": _labels, "regression": _numbers}[task]
    return fit((train, validation, test), [[row.target for row in rows] for rows in _splits(dataset)], seed)


def _splits(dataset: Dataset) -> tuple[Sequence[Example], ...]:
    return dataset.train, dataset.validation, dataset.test


def _texts(row: Example) -> tuple[str, ...]:
    return tuple(row.input.texts)


def _terms(texts: tuple[str, ...]) -> list[str]:
    terms = []
    for number, text in enumerate(texts):
        words = [f"{number}:{word}" if number else word for word in WORD.findall(text.lower())]
        terms += [*words, *(" ".join(pair) for pair in pairwise(words))]
    return terms


def _classes(inputs: Any, targets: Any, seed: int) -> dict[str, Metric]:
    models = [LogisticRegression(C=strength, max_iter=2000).fit(inputs[0], targets[0]) for strength in STRENGTHS]
    best = max(models, key=lambda model: model.score(inputs[1], targets[1]))
    predicted = best.predict(inputs[2])
    metrics = {
        "accuracy": accuracy_score,
        "macro_f1": lambda gold, own: f1_score(gold, own, average="macro", zero_division=0),
    }
    return {name: _interval(metric, np.array(targets[2]), predicted, seed) for name, metric in metrics.items()}


def _labels(inputs: Any, targets: Any, seed: int) -> dict[str, Metric]:
    binarizer = MultiLabelBinarizer().fit(targets[0])
    gold = [binarizer.transform(rows) for rows in targets]

    def micro(truth: Any, own: Any) -> float:
        return float(f1_score(truth, own, average="micro", zero_division=0))

    candidates = []
    for strength in STRENGTHS:
        model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=2000)).fit(inputs[0], gold[0])
        shares = model.predict_proba(inputs[1])
        candidates += [(micro(gold[1], shares > threshold), threshold, model) for threshold in THRESHOLDS]
    _, threshold, model = max(candidates, key=lambda candidate: candidate[0])
    return {"micro_f1": _interval(micro, gold[2], model.predict_proba(inputs[2]) > threshold, seed)}


def _numbers(inputs: Any, targets: Any, seed: int) -> dict[str, Metric]:
    from scipy.stats import spearmanr

    models = [Ridge(alpha=1 / strength).fit(inputs[0], targets[0]) for strength in STRENGTHS]
    best = min(models, key=lambda model: float(np.mean((model.predict(inputs[1]) - targets[1]) ** 2)))
    predicted = best.predict(inputs[2])
    metrics = {
        "spearman": lambda gold, own: float(spearmanr(gold, own).statistic),
        "rmse": lambda gold, own: float(np.sqrt(np.mean((gold - own) ** 2))),
    }
    return {name: _interval(metric, np.array(targets[2]), predicted, seed) for name, metric in metrics.items()}


def _interval(metric: Any, gold: Any, predicted: Any, seed: int) -> Metric:
    """Computes a metric, and its interval over drawn rows."""
    random = np.random.default_rng(seed)
    draws = (random.integers(0, len(gold), len(gold)) for _ in range(SAMPLES))
    values = [metric(gold[rows], predicted[rows]) for rows in draws]
    low, high = np.quantile(values, (0.025, 0.975))
    return Metric(value=float(metric(gold, predicted)), low=float(low), high=float(high))
