"""Drift of what a service sees from what its model was evaluated on: the population stability index.

`PSI = sum (p - q) ln(p / q)` over bins of equal weight in the reference (Siddiqi, 2006, chapter 6): below 0.1 there is
no drift, above 0.25 it should be looked into. Numbers only, never a text.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deploykit.methods import Frozen
from deploykit.tasks import Observations

BINS = 10
MIN_TEXTS = 200  # before a drift is reported
FORGETTING_FACTOR = 1 - 1 / 2000  # weight of the past per text: about two thousand texts count
SMOOTHING_TEXTS = 0.5  # added to each bin, so that an empty one does not make the index infinite

Float64 = npt.NDArray[np.float64]


class Feature(Frozen):
    """The distribution of one number: `edges` between bins, and the share of texts in each bin."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], edges: Sequence[float] | None = None) -> "Feature":
        """Counts values, at least one; the default edges give the bins about the same weight."""
        if edges is None:
            inner = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")  # only values that occur
            edges = np.unique(inner[inner < max(values)]).tolist()
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        return cls(edges=tuple(map(float, edges)), shares=tuple((counts / counts.sum()).tolist()))


def reference(lengths: Sequence[int], observed: Observations, labels: int) -> dict[str, Feature]:
    """Describes the texts of an evaluation.

    Args:
        lengths: in tokens.
        observed: of the predictions for these texts.
        labels: number of labels.

    Returns:
        The features `length`, and `confidence` and `label` of units, if the task has them.
    """
    features = {"length": Feature.of(lengths)}
    if len(observed.labels):
        features["confidence"] = Feature.of(observed.confidences.tolist())
        features["label"] = Feature.of(observed.labels.tolist(), (np.arange(labels - 1) + 0.5).tolist())
    return features


class Drift:
    """Follows the features of a service.

    Args:
        reference: the features of the evaluation, by name.
    """

    def __init__(self, reference: Mapping[str, Feature]) -> None:
        self._reference = dict(reference)
        self._edges = {name: np.array(feature.edges) for name, feature in reference.items()}
        self._counts = {name: np.zeros(len(feature.shares)) for name, feature in reference.items()}
        self._texts = dict.fromkeys(reference, 0)
        self._lock = threading.Lock()

    def see(self, name: str, values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Counts values of a feature; one that is not in the reference is ignored.

        Args:
            name: of the feature.
            values: shape `(units,)`, of one or several texts.
            weights: of each value, such that those of a text sum to one; default: each value is a text.
        """
        if name not in self._reference or not np.size(values):
            return
        texts = np.size(values) if weights is None else round(float(np.sum(weights)))
        bins = np.searchsorted(self._edges[name], values, side="left")
        counts = np.bincount(bins, weights, minlength=len(self._counts[name]))
        with self._lock:  # requests are counted in several threads
            self._counts[name] = self._counts[name] * FORGETTING_FACTOR**texts + counts
            self._texts[name] += texts

    def psi(self) -> dict[str, float]:
        """Returns the index of each feature; 0 until enough texts were seen."""
        return {
            name: _psi(np.array(feature.shares), self._counts[name]) if self._texts[name] >= MIN_TEXTS else 0.0
            for name, feature in self._reference.items()
        }


def _psi(shares: Float64, counts: Float64) -> float:
    """Compares shares of the reference with counts, both smoothed alike."""
    before, after = shares * counts.sum() + SMOOTHING_TEXTS, counts + SMOOTHING_TEXTS
    before, after = before / before.sum(), after / after.sum()
    return float(((after - before) * np.log(after / before)).sum())
