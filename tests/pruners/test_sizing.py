from dataclasses import replace

import numpy as np
import pytest
from clocks import additive

from deploykit.artifact import Metric
from deploykit.modeling import surgery
from deploykit.modeling.surgery import Shape
from deploykit.pruners._width import latency_table, sizing
from deploykit.pruners._width.latency_table import LatencyTable

# the times of `additive(0.03, 0.1, 0.36)`
TABLE = LatencyTable(np.arange(5) * 0.03 - 0.03, np.arange(3) * 0.1 - 0.1, 0.36 + 2 * 0.13)
RNG = np.random.default_rng(0)
HEADS, NEURONS = [RNG.random(4), RNG.random(4)], [RNG.random(128) / 30, RNG.random(128) / 30]


def shapes(kept):
    return [Shape(len(layer.heads), len(layer.neurons)) for layer in kept]


# a share


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_neurons_are_kept_in_multiples_of_64(keep):
    rng = np.random.default_rng(0)
    neurons = [rng.random(1536) * scale for scale in (1, 0.01, 3)]
    kept = sizing.keep_by_share([rng.random(12) for _ in neurons], neurons, keep)
    assert {len(layer.neurons) % 64 for layer in kept} == {0}
    assert min(len(layer.neurons) for layer in kept) >= 64
    assert sum(len(layer.neurons) for layer in kept) == 64 * max(3, round(keep * 72))
    for layer, row in zip(kept, neurons, strict=True):
        assert list(layer.neurons) == sorted(set(layer.neurons))
        best = np.argsort(-row)[: len(layer.neurons)]
        assert set(layer.neurons) == set(best.tolist())


def test_layers_without_heads_keep_none():
    kept = sizing.keep_by_share([np.zeros(0), RNG.random(4)], NEURONS, 0.5)
    assert [len(layer.heads) for layer in kept] == [0, 2]
    kept = sizing.keep_within_budget([np.zeros(0), np.zeros(0)], NEURONS, replace(TABLE, attention=np.zeros(1)), 1.0)
    assert shapes(kept) == [Shape(0, 128)] * 2


# a time


@pytest.mark.parametrize("budget", [0.62, 0.7, 0.8, 0.9])
def test_the_best_units_stay_within_the_time(budget):
    kept = sizing.keep_within_budget(HEADS, NEURONS, TABLE, budget)
    assert budget - 0.03 <= latency_table.predict_time(TABLE, shapes(kept)) <= budget
    for layer, heads, neurons in zip(kept, HEADS, NEURONS, strict=True):
        assert set(layer.heads) == set(np.argsort(-heads)[: len(layer.heads)].tolist())
        assert set(layer.neurons) == set(np.argsort(-neurons)[: len(layer.neurons)].tolist())


def test_the_time_decides_between_heads_and_neurons():
    heads, neurons = [np.ones(4)] * 2, [np.full(128, 1 / 64)] * 2  # a head is as important as a block
    expensive = replace(TABLE, attention=TABLE.attention * 5)
    assert shapes(sizing.keep_within_budget(heads, neurons, TABLE, 0.8)) == [Shape(4, 64)] * 2
    assert shapes(sizing.keep_within_budget(heads, neurons, expensive, 0.82)) == [Shape(1, 128)] * 2


# a speedup


class Spy:
    """Times models and records their sizes."""

    def __init__(self, measure):
        self.measure, self.seen = measure, []

    def __call__(self, model):
        self.seen.append(surgery.shapes(model))
        return self.measure(model)


def slower(factor):
    """Returns a timer whose times are those of the table, times a factor."""

    def measure(model):
        predicted = additive(0.03, 0.1, 0.36)(model).value * factor
        return Metric(value=predicted, low=predicted, high=predicted)

    return measure


def test_a_correct_prediction_is_accepted_at_once(tiny_encoder):
    spy = Spy(additive(0.03, 0.1, 0.36))
    kept, facts = sizing.keep_for_speedup(tiny_encoder(), HEADS, NEURONS, TABLE, spy, speedup=1.23)
    assert spy.seen == [shapes(kept)]
    share = latency_table.predict_time(TABLE, shapes(kept))
    assert 0.97 / 1.23 <= share <= 1 / 1.23
    result = facts["speedup"]
    assert (result["wanted"], result["predicted"]) == (1.23, pytest.approx(1 / share))
    interval = {"low": 1 / (1.1 * share), "high": 1 / (0.9 * share)}
    assert result["measured"] == pytest.approx({"value": 1 / share, **interval})


def test_a_model_that_is_slower_than_predicted_is_made_narrower_until_it_is_fast_enough(tiny_encoder):
    spy = Spy(slower(1.1))
    kept, facts = sizing.keep_for_speedup(tiny_encoder(), HEADS, NEURONS, TABLE, spy, speedup=1.25)
    assert 2 <= len(spy.seen) <= sizing.MAX_MEASUREMENTS
    times = [latency_table.predict_time(TABLE, sizes) for sizes in spy.seen]
    assert times[0] <= 0.8 < times[0] * 1.1
    assert times[-1] * 1.1 <= 0.8
    assert facts["speedup"]["measured"]["value"] >= 1.25
    assert facts["speedup"]["predicted"] > facts["speedup"]["measured"]["value"]
    assert shapes(kept) in spy.seen


def test_a_model_that_is_faster_than_predicted_keeps_more_units(tiny_encoder):
    spy = Spy(slower(0.85))
    kept, facts = sizing.keep_for_speedup(tiny_encoder(), HEADS, NEURONS, TABLE, spy, speedup=1.35)
    times = [latency_table.predict_time(TABLE, sizes) for sizes in spy.seen]
    assert times[-1] > times[0]
    assert latency_table.predict_time(TABLE, shapes(kept)) == max(time for time in times if time * 0.85 <= 1 / 1.35)
    assert facts["speedup"]["measured"]["value"] >= 1.35


@pytest.mark.parametrize("value", [0.01, 9.0])
def test_a_disturbed_measurement_changes_the_budget_little_and_logs_a_warning(value, tiny_encoder, caplog):
    spy = Spy(lambda _: Metric(value=value, low=value / 2, high=value * 2))
    sizing.keep_for_speedup(tiny_encoder(), HEADS, NEURONS, TABLE, spy, speedup=1.25)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["other processes disturbed the measurement; run it again on an idle machine"]
    for tries, sizes in enumerate(spy.seen):
        budget = 0.8 * sizing.TARGET_TIME_USE * (1.05 if value < 1 else 0.95) ** tries
        assert sizes == shapes(sizing.keep_within_budget(HEADS, NEURONS, TABLE, budget))


def test_if_no_model_is_fast_enough_the_fastest_is_returned(tiny_encoder):
    spy = Spy(slower(1.0))
    kept, facts = sizing.keep_for_speedup(tiny_encoder(), HEADS, NEURONS, TABLE, spy, speedup=5)
    assert shapes(kept) == [Shape(1, 64)] * 2
    assert len(spy.seen) == sizing.MAX_MEASUREMENTS
    assert facts["speedup"]["measured"]["value"] == pytest.approx(1 / 0.62)


def test_a_model_that_was_narrowed_before_is_narrowed_further(tiny_encoder):
    small = surgery.resized(tiny_encoder(), [Shape(2, 128), Shape(4, 64)])
    heads, neurons = [HEADS[0][:2], HEADS[1]], [NEURONS[0], NEURONS[1][:64]]
    kept, facts = sizing.keep_for_speedup(small, heads, neurons, TABLE, additive(0.03, 0.1, 0.36), speedup=1.3)
    assert all(after.heads <= size.heads for after, size in zip(shapes(kept), surgery.shapes(small), strict=True))
    assert facts["speedup"]["measured"]["value"] >= 1.3
