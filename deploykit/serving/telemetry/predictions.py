"""Counts the texts and predictions of a service, and follows their drift from the rows of the evaluation.

Answered texts are collected, and counted together once there are enough of them or the metrics are requested. Counting
them one by one would take much longer: numpy's calls for one short text take longer than its tokenization.
"""

import threading
from collections.abc import Sequence

import numpy as np

from deploykit import tasks
from deploykit.artifact import Manifest
from deploykit.inference.drift import Distribution, Drift
from deploykit.serving.telemetry.metrics import DRIFT_FEATURES, Metrics
from deploykit.tasks import Prediction
from deploykit.tokenizer import Encoding

# A text that waits to be counted weighs 1 for each 16 tokens, at least 1. The waiting ones are counted above 64.
MAX_WAITING_WEIGHT = 64
TOKENS_PER_WEIGHT = 16


class PredictionStatistics:
    """Fills the metrics of predictions.

    Args:
        metrics: the metrics to fill.
        manifest: of the package: the labels, and the distributions in the evaluation, which older packages lack.
    """

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        self._metrics, self._task, self._spec = metrics, tasks.task_of(manifest), tasks.spec_of(manifest)
        reference = manifest.details.get("package", {}).get("reference", {})
        features = {name: Distribution.model_validate(reference[name]) for name in DRIFT_FEATURES if name in reference}
        self._drift = Drift(features)
        self._predictions: list[Prediction] = []
        self._encodings: list[Encoding] = []
        self._waiting_weight = 0
        self._lock = threading.Lock()

    def add(self, predictions: Sequence[Prediction], encodings: Sequence[Encoding]) -> None:
        """Adds the predictions of a request and the encodings of its texts, to be counted soon."""
        with self._lock:
            self._predictions += predictions
            self._encodings += encodings
            self._waiting_weight += sum(max(1, len(encoding) // TOKENS_PER_WEIGHT) for encoding in encodings)
        if self._waiting_weight > MAX_WAITING_WEIGHT:
            self.count()

    def count(self) -> None:
        """Counts all that was added, and updates the gauges of drift."""
        with self._lock:
            predictions, encodings = self._predictions, self._encodings
            self._predictions, self._encodings, self._waiting_weight = [], [], 0
        if encodings:
            self._count(predictions, encodings)
        for name, index in self._drift.psi().items():
            self._metrics.drift.labels(name).set(index)

    def _count(self, predictions: Sequence[Prediction], encodings: Sequence[Encoding]) -> None:
        """Counts predictions and texts in the metrics, and adds them to the distributions of drift."""
        self._metrics.count_texts(encodings)
        self._drift.count("length", list(map(len, encodings)))
        observed = self._task.observe(predictions, self._spec)
        if not len(observed.labels):
            return
        units = observed.units[observed.units > 0]
        weights = 1 / np.repeat(units, units)  # the units of a text count as one text
        self._drift.count("label", observed.labels, weights)
        self._drift.count("confidence", observed.confidences, weights)
        self._metrics.count_predictions(tasks.observed_labels(self._task, self._spec), observed)
