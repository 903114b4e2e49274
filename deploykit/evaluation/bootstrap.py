"""95 % intervals by the bootstrap (Efron and Tibshirani, 1993), with the same resamples and quantiles everywhere."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000  # for each interval, a multiple of CHUNK; 25 of them lie beyond each end
QUANTILES = (0.025, 0.975)  # the ends of an interval
CHUNK = 50  # resamples drawn at once: the draws of a million rows take 400 MB


def draw_sums(table: Any, seed: int) -> Iterator[Floats]:
    """Draws rows with replacement and yields the sums of their counts, `(CHUNK, columns)`, `RESAMPLES` sums in all.

    Args:
        table: counts of each row, `(rows, columns)`; sparse, because most labels do not occur in a row. To compare two
            models on the same draws, put their columns side by side.
        seed: of the draws.
    """
    rows = table.shape[0]
    random, chances = np.random.default_rng(seed), np.full(rows, 1 / rows)
    for _ in range(RESAMPLES // CHUNK):
        yield random.multinomial(rows, chances, size=CHUNK) @ table


def resample(values: Floats, statistic: Callable[[Floats], Floats], random: np.random.Generator) -> Floats:
    """Returns a statistic of resampled values, `(RESAMPLES,)`.

    Args:
        values: `(count,)`.
        statistic: maps samples `(RESAMPLES, count)` to one value for each.
        random: the source of the draws.
    """
    return statistic(random.choice(values, (RESAMPLES, len(values))))


def median(samples: Floats) -> Floats:
    """Returns the median of each sample, as a statistic for `resample`."""
    return np.asarray(np.median(samples, axis=1))


def interval(samples: Floats) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of resampled values, `(resamples,)`."""
    low, high = np.quantile(samples, QUANTILES)
    return float(low), float(high)
