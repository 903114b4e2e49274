"""Intervals against those that are known in closed form."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from deploykit.evaluation import bootstrap


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(10, 2, 400)
    samples = bootstrap.resample(values, lambda drawn: drawn.mean(axis=1), np.random.default_rng(0))
    half = 1.96 * values.std() / 20
    assert bootstrap.interval(samples) == (
        pytest.approx(values.mean() - half, abs=0.03),
        pytest.approx(values.mean() + half, abs=0.03),
    )


def test_sums_of_sparse_counts_are_those_of_dense_ones():
    counts = np.random.default_rng(1).integers(0, 3, (130, 7)).astype(float)
    sums = np.concatenate(list(bootstrap.draw_sums(csr_array(counts), seed=3)))
    draws = np.random.default_rng(3)
    size = bootstrap.CHUNK
    expected = [draws.multinomial(130, np.full(130, 1 / 130), size=size) @ counts for _ in range(1000 // size)]
    np.testing.assert_allclose(sums, np.concatenate(expected))
    assert sums.shape == (bootstrap.RESAMPLES, 7)


def test_a_median_lies_within_its_interval_and_equal_values_have_none():
    random = np.random.default_rng(0)
    low, high = bootstrap.interval(bootstrap.resample(np.arange(1.0, 22.0), bootstrap.median, random))
    assert low < 11 < high
    assert bootstrap.interval(bootstrap.resample(np.full(5, 3.0), bootstrap.median, random)) == (3.0, 3.0)
