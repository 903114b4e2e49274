import numpy as np
import pytest
from rows import spec_of

from deploykit import tasks
from deploykit.inference import drift
from deploykit.inference.drift import Distribution, Drift


@pytest.fixture
def random():
    return np.random.default_rng(0)


def moved(known, values):
    """Shows values one text at a time and returns the index."""
    found = Drift({"it": known})
    for value in values:
        found.count("it", [value])
    return found.psi()["it"]


def test_bins_of_the_reference_weigh_the_same(random):
    known = Distribution.of(random.normal(size=5000).tolist())
    assert len(known.shares) == drift.BINS
    assert known.shares == pytest.approx([0.1] * 10, abs=0.01)


@pytest.mark.parametrize("values", [[5.0], [5.0] * 100, [1.0, 2.0], [0.0] * 90 + [9.0] * 10])
def test_a_reference_of_few_different_values_has_few_bins(values):
    known = Distribution.of(values)
    assert sum(known.shares) == pytest.approx(1)
    assert all(share > 0 for share in known.shares)
    assert moved(known, values * (1000 // len(values))) < 0.01


def test_the_same_again_has_not_moved(random):
    known = Distribution.of(random.lognormal(3, 0.5, size=1000).tolist())
    assert moved(known, random.lognormal(3, 0.5, size=3000)) < 0.1


@pytest.mark.parametrize(("shift", "least", "most"), [(0.2, 0.02, 0.2), (0.5, 0.15, 0.6), (2.0, 2.0, 20.0)])
def test_what_has_moved_is_far_by_as_much(random, shift, least, most):
    known = Distribution.of(random.normal(size=5000).tolist())
    assert least < moved(known, random.normal(shift, size=4000)) < most


def test_the_index_is_the_formula():
    known = Distribution(edges=(0.5,), shares=(0.5, 0.5))
    assert moved(known, [0] * 300 + [1] * 100) != 0
    counts = np.array([300.0, 100.0])
    was, now = np.array([200.5, 200.5]) / 401, (counts + 0.5) / 401
    assert drift._psi(np.array([0.5, 0.5]), counts) == pytest.approx(((now - was) * np.log(now / was)).sum())


def test_nothing_is_said_of_few_texts():
    known = Distribution.of([1.0, 2.0, 3.0])
    assert moved(known, [99.0] * (drift.MIN_TEXTS - 1)) == 0
    assert moved(known, [99.0] * drift.MIN_TEXTS) > 1


def test_what_was_long_ago_is_forgotten(random):
    known = Distribution.of(random.normal(size=5000).tolist())
    far, near = random.normal(5, size=3000), random.normal(size=20000)
    assert moved(known, far) > 1
    assert moved(known, [*far, *near]) < 0.1


def test_texts_of_many_units_weigh_no_more_than_others():
    found = Drift({"label": Distribution.of([0, 1], [0.5])})
    for _ in range(500):
        found.count("label", [*[0] * 1000, 1], [*[0.001] * 1000, 1.0])
    assert found.psi()["label"] < 0.01
    found.count("label", [])
    found.count("other", [1])  # nobody knows it


def test_the_reference_is_of_lengths_certainties_and_labels(random):
    rows = [random.dirichlet(np.ones(3), size=count).astype(np.float32) for count in (1, 4, 0, 2)]
    observed = tasks.load("token-classification").observe([np.log(row) for row in rows], spec_of("abc"))
    known = drift.reference([5, 9, 2, 7], observed, 3)
    assert list(known) == ["length", "confidence", "label"]
    assert len(known["label"].shares) == 3
    units = np.concatenate(rows)
    assert known["label"].shares == pytest.approx((np.bincount(units.argmax(axis=1), minlength=3) / 7).tolist())
    assert Distribution.model_validate(known["length"].model_dump(mode="json")) == known["length"]
