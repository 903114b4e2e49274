"""Counts the texts and predictions of a service, and follows their drift from the rows of the evaluation."""

from collections.abc import Sequence

import numpy as np

from deploykit.artifact import Manifest
from deploykit.inference.drift import Drift, Feature, entropies
from deploykit.serving.telemetry.metrics import DRIFTING, Metrics
from deploykit.tasks import Float32, softmax
from deploykit.tokenizer import Encoding


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

    def count(self, scores: Sequence[Float32], encodings: Sequence[Encoding]) -> None:
        """Counts the answers of a request, the units of all texts at once.

        Args:
            scores: one array `(units, labels)` per text.
            encodings: of the texts.
        """
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

    def update_drift(self) -> None:
        """Sets the gauges of drift."""
        for name, index in self._drift.psi().items():
            self._metrics.drift.labels(name).set(index)
