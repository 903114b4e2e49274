"""Counts the texts and predictions of a service, and follows their drift from the rows of the evaluation.

Texts are counted many at once, which takes a fraction of the time: numpy's calls for one short text take longer than
its tokenization. So they wait until there are enough of them, or until the metrics are requested.
"""

import threading
from collections.abc import Sequence

import numpy as np

from deploykit import tasks
from deploykit.artifact import Manifest
from deploykit.inference.drift import Distribution, Drift
from deploykit.serving.telemetry.metrics import DRIFTING, Metrics
from deploykit.tasks import Prediction
from deploykit.tokenizer import Encoding

MAX_WAITING = 64  # parts of texts that are not counted yet
TOKENS_PER_PART = 16


class PredictionStatistics:
    """Fills the metrics of predictions.

    Args:
        metrics: that are filled.
        manifest: has the labels, and the distributions in the evaluation; older packages have no distributions.
    """

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        self._metrics, self._task, self._spec = metrics, tasks.of_manifest(manifest), tasks.spec_of(manifest)
        features = manifest.details.get("package", {}).get("reference", {})
        self._drift = Drift(
            {name: Distribution.model_validate(features[name]) for name in DRIFTING if name in features}
        )
        self._predictions: list[Prediction] = []
        self._encodings: list[Encoding] = []
        self._waiting = 0
        self._lock = threading.Lock()

    def add(self, predictions: Sequence[Prediction], encodings: Sequence[Encoding]) -> None:
        """Adds the predictions of a request, and the encodings of its texts."""
        with self._lock:
            self._predictions += predictions
            self._encodings += encodings
            self._waiting += sum(max(1, len(encoding) // TOKENS_PER_PART) for encoding in encodings)
        if self._waiting > MAX_WAITING:
            self.count()

    def count(self) -> None:
        """Counts the answers that were added, and updates the gauges of drift."""
        with self._lock:
            predictions, encodings = self._predictions, self._encodings
            self._predictions, self._encodings, self._waiting = [], [], 0
        if encodings:
            self._count(predictions, encodings)
        for name, index in self._drift.psi().items():
            self._metrics.drift.labels(name).set(index)

    def _count(self, predictions: Sequence[Prediction], encodings: Sequence[Encoding]) -> None:
        self._metrics.read(encodings)
        self._drift.count("length", list(map(len, encodings)))
        observed = self._task.observe(predictions, self._spec)
        if not len(observed.labels):
            return
        units = observed.units[observed.units > 0]
        weights = 1 / np.repeat(units, units)  # the units of a text count as one text
        self._drift.count("label", observed.labels, weights)
        self._drift.count("confidence", observed.confidences, weights)
        self._metrics.predicted(tasks.observed_labels(self._task, self._spec), observed)
