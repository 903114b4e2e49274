"""95 % intervals by the bootstrap (Efron and Tibshirani, 1993).

A resample, or sample, has as many values as the data, drawn from it with replacement.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000  # for each interval, so that 25 lie beyond each end
QUANTILES = (0.025, 0.975)  # the ends of a 95 % interval
DRAWS_AT_ONCE = 50  # a divisor of RESAMPLES; so many draws of a million rows take 400 MB


def draw_weights(rows: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yields how often each row was drawn in each of `RESAMPLES` resamples, in arrays `(DRAWS_AT_ONCE, rows)`."""
    random, probabilities = np.random.default_rng(seed), np.full(rows, 1 / rows)
    for _ in range(RESAMPLES // DRAWS_AT_ONCE):
        yield random.multinomial(rows, probabilities, size=DRAWS_AT_ONCE)


def resample(values: Floats, statistic: Callable[[Floats], Floats], random: np.random.Generator) -> Floats:
    """Computes a statistic of each of `RESAMPLES` resamples, `(RESAMPLES,)`.

    Args:
        values: the data, `(count,)`.
        statistic: maps all resamples, `(RESAMPLES, count)`, to their statistics, `(RESAMPLES,)`.
        random: the source of the draws.
    """
    return statistic(random.choice(values, (RESAMPLES, len(values))))


def median(samples: Floats) -> Floats:
    """Returns the median of each sample, `(samples,)`; a statistic for `resample`."""
    return np.asarray(np.median(samples, axis=1))


def interval(samples: Floats) -> tuple[float, float]:
    """Returns the ends of the 95 % interval, given a statistic of each resample, `(resamples,)`."""
    low, high = np.quantile(samples, QUANTILES)
    return float(low), float(high)
