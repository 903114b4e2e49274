"""Counts the texts and predictions of a service, and follows their drift from the rows of the evaluation.

Texts are counted many at once, which takes a fraction of the time: numpy's calls for one short text take longer than
its tokenization. So they wait until there are enough of them, or until the metrics are requested.
"""

import threading
from collections.abc import Sequence

import numpy as np

from deploykit.artifact import Manifest
from deploykit.inference.drift import Drift, Feature, entropies
from deploykit.serving.telemetry.metrics import DRIFTING, Metrics
from deploykit.tasks import Float32, softmax
from deploykit.tokenizer import Encoding

MAX_WAITING = 64  # texts and units that are not counted yet


class PredictionStatistics:
    """Fills the metrics of predictions.

    Args:
        metrics: that are filled.
        manifest: has the labels, and the distributions in the evaluation; older packages have no distributions.
    """

    def __init__(self, metrics: Metrics, manifest: Manifest) -> None:
        self._metrics, self._labels = metrics, manifest.labels
        features = manifest.details.get("package", {}).get("reference", {})
        self._drift = Drift({name: Feature.model_validate(features[name]) for name in DRIFTING if name in features})
        self._scores: list[Float32] = []
        self._encodings: list[Encoding] = []
        self._waiting = 0
        self._lock = threading.Lock()

    def add(self, scores: Sequence[Float32], encodings: Sequence[Encoding]) -> None:
        """Adds the answers of a request.

        Args:
            scores: one array `(units, labels)` per text.
            encodings: of the texts.
        """
        with self._lock:
            self._scores += scores
            self._encodings += encodings
            self._waiting += sum(max(len(rows), 1) for rows in scores)
        if self._waiting > MAX_WAITING:
            self.count()

    def count(self) -> None:
        """Counts the answers that were added, and updates the gauges of drift."""
        with self._lock:
            scores, encodings = self._scores, self._encodings
            self._scores, self._encodings, self._waiting = [], [], 0
        if encodings:
            self._count(scores, encodings)
        for name, index in self._drift.psi().items():
            self._metrics.drift.labels(name).set(index)

    def _count(self, scores: Sequence[Float32], encodings: Sequence[Encoding]) -> None:
        self._metrics.read(encodings)
        self._drift.see("length", list(map(len, encodings)))
        units = [len(rows) for rows in scores if len(rows)]
        if not units:
            return
        probabilities = softmax(np.concatenate([rows for rows in scores if len(rows)]))
        weights = 1 / np.repeat(units, units)  # the units of a text count as one text
        best, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
        self._drift.see("label", best, weights)
        self._drift.see("confidence", confidences, weights)
        self._metrics.predicted(self._labels, best, confidences, entropies(probabilities))
