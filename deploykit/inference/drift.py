"""How far what a service sees has moved from what its model was judged on: the population stability index.

`PSI = sum (p - q) ln(p / q)` over bins of equal weight in the reference (Siddiqi, 2006, chapter 6): below 0.1 nothing
has moved, above 0.25 it should be looked at. Numbers only, never a text; numpy only, so that a service can have it.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from deploykit.methods import Frozen

BINS = 10
LEAST = 200  # texts, before anything is said
MEMORY = 1 - 1 / 2000  # of what each text says after the next one: some thousands are remembered
SMOOTHING = 0.5  # of a text in each bin, so that an empty one is not infinitely far

Float64 = npt.NDArray[np.float64]


class Feature(Frozen):
    """What one number was distributed like: `edges` between bins, and the share of texts in each."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], edges: Sequence[float] | None = None) -> "Feature":
        """Takes values as the reference, at least one.

        Args:
            values: of the texts that the model was judged on.
            edges: between bins, ascending; default: such that all weigh about the same.
        """
        if edges is None:
            inner = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")  # values, not what is between
            edges = np.unique(inner[inner < max(values)]).tolist()
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        return cls(edges=tuple(map(float, edges)), shares=tuple((counts / counts.sum()).tolist()))


def reference(lengths: Sequence[int], rows: Sequence[npt.NDArray[np.float32]], labels: int) -> dict[str, Feature]:
    """Describes the texts that a model was judged on.

    Args:
        lengths: in tokens.
        rows: probabilities of the units of each text, `(units, labels)`.
        labels: how many there are.

    Returns:
        The features `length`, `confidence` and `label`; the last two are of units.
    """
    units = np.concatenate([row for row in rows if len(row)])
    return {
        "length": Feature.of(lengths),
        "confidence": Feature.of(units.max(axis=1).tolist()),
        "label": Feature.of(units.argmax(axis=1).tolist(), (np.arange(labels - 1) + 0.5).tolist()),
    }


class Drift:
    """Follows what a service sees.

    Args:
        known: the reference, by feature.
    """

    def __init__(self, known: Mapping[str, Feature]) -> None:
        self._known = dict(known)
        self._edges = {name: np.array(found.edges) for name, found in known.items()}
        self._counts = {name: np.zeros(len(found.shares)) for name, found in known.items()}
        self._seen = dict.fromkeys(known, 0)  # texts
        self._lock = threading.Lock()

    def see(self, name: str, values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Takes in values of a feature; what is not in the reference is let pass.

        Args:
            name: of the feature.
            values: shape `(units,)`, of one text or several.
            weights: of each value, so that those of a text make one together; default: each is of a text of its own.
        """
        if name not in self._known or not np.size(values):
            return
        texts = np.size(values) if weights is None else round(float(np.sum(weights)))
        places = np.searchsorted(self._edges[name], values, side="left")
        seen = np.bincount(places, weights, minlength=len(self._counts[name]))
        with self._lock:  # requests are counted in several threads
            self._counts[name] = self._counts[name] * MEMORY**texts + seen
            self._seen[name] += texts

    def psi(self) -> dict[str, float]:
        """Returns the index of each feature; 0 until enough texts were seen."""
        return {
            name: _psi(np.array(found.shares), self._counts[name]) if self._seen[name] >= LEAST else 0.0
            for name, found in self._known.items()
        }


def _psi(shares: Float64, counts: Float64) -> float:
    """Compares shares with counts, both smoothed alike."""
    total = counts.sum()
    was, now = (found + SMOOTHING for found in (shares * total, counts))
    was, now = was / was.sum(), now / now.sum()
    return float(((now - was) * np.log(now / was)).sum())


def entropies(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns how undecided probabilities `(units, labels)` are, from 0 for certain to 1 for all the same."""
    largest = np.log(max(rows.shape[1], 2))
    entropy: npt.NDArray[np.float32] = -(rows * np.log(np.maximum(rows, 1e-12))).sum(axis=1) / largest
    return entropy
