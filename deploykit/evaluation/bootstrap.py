"""95 % intervals by resampling (Efron and Tibshirani, 1993): as many resamples and the same quantiles everywhere.

Figures of models follow from counts that are summed over rows. Counts are sparse: a row has to do with few of the
labels, and a table of all of them would take gigabytes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
QUANTILES = (0.025, 0.975)
CHUNK = 50  # resamples at a time, so that a million rows fit into memory


def chunks(table: Any, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """Yields the sums of the counts of rows drawn with replacement, some samples at a time, `(samples, columns)`.

    Args:
        table: what was counted in each row, a sparse `(rows, columns)`. Two models that are compared on the same rows
            stand side by side in it: paired.
        seed: of the draws.
        resamples: how many samples in all.
    """
    rows = table.shape[0]
    random, chances = np.random.default_rng(seed), np.full(rows, 1 / rows)
    for start in range(0, resamples, CHUNK):
        yield random.multinomial(rows, chances, size=min(CHUNK, resamples - start)) @ table


def sums(table: Any, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Returns all of `chunks`, `(resamples, columns)`."""
    return np.concatenate(list(chunks(table, seed, resamples)))


def of_values(values: Floats, statistic: Callable[[Floats], Floats], random: np.random.Generator) -> Floats:
    """Returns a statistic of values drawn with replacement, `(RESAMPLES,)`.

    Args:
        values: `(count,)`.
        statistic: takes `(RESAMPLES, count)` and gives one value for each sample.
        random: draws.
    """
    return statistic(random.choice(values, (RESAMPLES, len(values))))


def median(samples: Floats) -> Floats:
    """Returns the median of each sample; a statistic for `of_values`."""
    return np.asarray(np.median(samples, axis=1))


def interval(samples: Floats) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of resampled values, `(resamples,)`."""
    low, high = np.quantile(samples, QUANTILES)
    return float(low), float(high)
