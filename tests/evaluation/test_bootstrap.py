"""Intervals against those that are known in closed form."""

import numpy as np
import pytest

from deploykit.evaluation import bootstrap


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(10, 2, 400)
    samples = bootstrap.resample(values, lambda drawn: drawn.mean(axis=1), np.random.default_rng(0))
    half = 1.96 * values.std() / 20
    assert bootstrap.interval(samples) == (
        pytest.approx(values.mean() - half, abs=0.03),
        pytest.approx(values.mean() + half, abs=0.03),
    )


def test_rows_are_drawn_with_replacement_as_often_as_there_are_rows():
    weights = np.concatenate(list(bootstrap.draw_weights(130, seed=3)))
    assert weights.shape == (bootstrap.RESAMPLES, 130)
    assert set(weights.sum(axis=1)) == {130}
    assert weights.var() == pytest.approx(1 - 1 / 130, rel=0.02)  # of a binomial distribution
    np.testing.assert_array_equal(weights[: bootstrap.DRAWS_AT_ONCE], next(bootstrap.draw_weights(130, seed=3)))


def test_a_median_lies_within_its_interval_and_equal_values_have_none():
    random = np.random.default_rng(0)
    low, high = bootstrap.interval(bootstrap.resample(np.arange(1.0, 22.0), bootstrap.median, random))
    assert low < 11 < high
    assert bootstrap.interval(bootstrap.resample(np.full(5, 3.0), bootstrap.median, random)) == (3.0, 3.0)
