"""95 % intervals by the bootstrap (Efron and Tibshirani, 1993), with the same resamples and quantiles everywhere."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000  # for each interval, a multiple of CHUNK; 25 of them lie beyond each end
QUANTILES = (0.025, 0.975)  # the ends of an interval
CHUNK = 50  # resamples drawn at once: the draws of a million rows take 400 MB


def draw_weights(rows: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Draws rows with replacement, and yields how often each was drawn, `(CHUNK, rows)`, `RESAMPLES` draws in all."""
    random, chances = np.random.default_rng(seed), np.full(rows, 1 / rows)
    for _ in range(RESAMPLES // CHUNK):
        yield random.multinomial(rows, chances, size=CHUNK)


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
