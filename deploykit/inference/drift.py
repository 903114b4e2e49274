"""Measures how far the texts of a service have drifted from those of the evaluation, by the population stability index.

`PSI = sum (p - q) ln(p / q)` over bins that have equal shares in the evaluation (Siddiqi, 2006, chapter 6). Below 0.1
there is no drift; above 0.25 somebody should find the reason. Only numbers are kept, never a text.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deploykit.methods import Frozen
from deploykit.tasks import Observations

BINS = 10  # of a feature, at most
MIN_TEXTS = 200  # an index of fewer texts would be noise
FORGETTING_FACTOR = 1 - 1 / 2000  # each text multiplies the earlier counts by this: about 2000 texts count
SMOOTHING_TEXTS_PER_BIN = 0.5  # added to each bin, because an empty bin would make the index infinite

Float64 = npt.NDArray[np.float64]


class Distribution(Frozen):
    """The distribution of one feature of texts.

    Attributes:
        edges: between the bins, ascending; a value that equals an edge belongs to the bin below it.
        shares: of the texts in each bin, one more than edges.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], edges: Sequence[float] | None = None) -> "Distribution":
        """Counts values, at least one; with the default edges, the bins have about the same share."""
        if edges is None:
            # This method returns only values that occur. An edge at the largest value would leave the last bin empty.
            deciles = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")
            edges = np.unique(deciles[deciles < max(values)]).tolist()
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        return cls(edges=tuple(map(float, edges)), shares=tuple((counts / counts.sum()).tolist()))


def reference(lengths: Sequence[int], observed: Observations, labels: int) -> dict[str, Distribution]:
    """Returns the distributions of the features of an evaluation.

    Args:
        lengths: of the texts, in tokens.
        observed: labels and confidences of the predictions for these texts.
        labels: number of labels.

    Returns:
        By feature: `length` of texts; `confidence` and `label` (the label's index) of units, if the task has labels.
    """
    distributions = {"length": Distribution.of(lengths)}
    if len(observed.labels):
        distributions["confidence"] = Distribution.of(observed.confidences.tolist())
        edges_between_labels = (np.arange(labels - 1) + 0.5).tolist()
        distributions["label"] = Distribution.of(observed.labels.tolist(), edges_between_labels)
    return distributions


class Drift:
    """Counts the features of the texts of a service, and compares them with those of the evaluation.

    Args:
        reference: the distributions in the evaluation, by feature.
    """

    def __init__(self, reference: Mapping[str, Distribution]) -> None:
        self._reference = dict(reference)
        self._edges = {name: np.array(feature.edges) for name, feature in reference.items()}
        self._counts = {name: np.zeros(len(feature.shares)) for name, feature in reference.items()}
        self._texts = dict.fromkeys(reference, 0)
        self._lock = threading.Lock()

    def count(self, name: str, values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Counts values of a feature; a feature that is not in the reference is ignored.

        Args:
            name: of the feature.
            values: of the units of one or several texts, shape `(units,)`.
            weights: of the values, the same shape; those of each text must sum to 1. Default: each value is a text.
        """
        if name not in self._reference or not np.size(values):
            return
        texts = np.size(values) if weights is None else round(float(np.sum(weights)))
        bins = np.searchsorted(self._edges[name], values, side="left")
        counts = np.bincount(bins, weights, minlength=len(self._counts[name]))
        with self._lock:  # several threads count requests
            self._counts[name] = self._counts[name] * FORGETTING_FACTOR**texts + counts
            self._texts[name] += texts

    def psi(self) -> dict[str, float]:
        """Returns the population stability index by feature; 0 until `MIN_TEXTS` texts were counted."""
        return {
            name: _psi(np.array(feature.shares), self._counts[name]) if self._texts[name] >= MIN_TEXTS else 0.0
            for name, feature in self._reference.items()
        }


def _psi(shares: Float64, counts: Float64) -> float:
    """Returns the index for shares of the reference and counts of texts in the same bins, both smoothed."""
    expected = shares * counts.sum() + SMOOTHING_TEXTS_PER_BIN
    actual = counts + SMOOTHING_TEXTS_PER_BIN
    expected, actual = expected / expected.sum(), actual / actual.sum()
    return float(((actual - expected) * np.log(actual / expected)).sum())
