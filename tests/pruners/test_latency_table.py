import json

import numpy as np
import pytest
from clocks import additive

from deploykit.artifact.execution import Execution
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits, Shape
from deploykit.pruners._width import latency_table, meter

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_last_block_of_neurons_may_be_incomplete():
    assert [latency_table.block_count(neurons) for neurons in (1, 64, 65, 128, 1536)] == [1, 1, 2, 2, 24]


def test_a_few_sizes_from_one_to_all_are_measured():
    assert latency_table.counts_to_measure([12] * 6).tolist() == [1, 4, 6, 9, 12]
    assert latency_table.counts_to_measure([3, 2]).tolist() == [1, 2, 3]
    assert latency_table.counts_to_measure([1, 1]).tolist() == [1]
    assert latency_table.counts_to_measure([0, 0]).tolist() == [0]  # a model whose heads cannot be removed


def test_costs_between_the_measured_sizes_are_interpolated():
    costs = latency_table.unit_costs([12, 12], [0.5, 0.6, 0.7, 0.9])  # at 1, 4, 6 and 9
    expected = np.interp(np.arange(13), [1, 4, 6, 9, 12], np.array([0, 0.1, 0.2, 0.4, 0.5]) / 2)
    np.testing.assert_allclose(costs, expected)


def test_costs_never_fall_whatever_the_noise():
    for seed in range(20):
        times = np.sort(np.random.default_rng(seed).random(4)) + np.random.default_rng(seed).normal(size=4) * 0.2
        costs = latency_table.unit_costs([12] * 6, times.tolist())
        assert (np.diff(costs) >= 0).all()
        assert costs[0] == costs[1] == 0
        assert len(costs) == 13


def test_units_count_as_removed_only_in_layers_that_had_them():
    sizes = [12, 4]
    times = [(0.3 + 0.05 * sum(min(size, count) for size in sizes)) / 1.1 for count in (1, 4, 6, 9)]
    costs = latency_table.unit_costs(sizes, times)
    np.testing.assert_allclose(np.diff(costs)[1:], 0.05 / 1.1)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_on_a_machine_with_additive_times_the_table_predicts_every_model(kind, tiny_encoder):
    whole = tiny_encoder(kind)
    measure = additive(0.03, 0.1, 0.36)  # 2 layers of 4 heads and 2 blocks: 1 in all
    table = latency_table.measure_latency_table(whole, measure)
    assert (table.attention.shape, table.feed_forward.shape) == ((5,), (3,))
    assert table.fixed == pytest.approx(0.36 + 2 * (0.03 + 0.1))
    assert latency_table.predict_time(table, surgery.shapes(whole)) == pytest.approx(1)
    for kept in (
        [KeptUnits((0,), tuple(range(64)))] * 2,
        [KeptUnits((0, 1, 3), tuple(range(128))), KeptUnits((2,), tuple(range(70)))],
    ):
        small = surgery.shrunk(whole, kept)
        assert latency_table.predict_time(table, surgery.shapes(small)) == pytest.approx(measure(small).value)


def test_the_whole_models_time_is_one_where_times_do_not_add_up():
    table = latency_table.LatencyTable(np.array([0.0, 0, 0.1]), np.array([0.0, 0, 0.2]), 0.5)
    assert latency_table.predict_time(table, [Shape(1, 64), Shape(2, 128), Shape(0, 100)]) == pytest.approx(1.0)
    assert latency_table.predict_time(table, [Shape(1, 64)]) == 0.5


@pytest.mark.parametrize("quantizer", ["dynamic", "none"])
def test_a_table_can_be_measured_and_never_falls(quantizer, tiny_encoder, problem_of, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "TIMING_S", 0.0)
    whole = tiny_encoder()
    measure = meter.relative_timer(whole, problem_of(), Execution(threads=1), quantizer, tmp_path)
    table = latency_table.measure_latency_table(whole, measure)
    for costs in (table.attention, table.feed_forward):
        assert costs[0] == costs[1] == 0
        assert (np.diff(costs) >= 0).all()
    assert json.loads((tmp_path / "measured.json").read_text()).keys() == {
        *(f"{heads}x128 {heads}x128" for heads in (1, 2, 3)),
        "4x64 4x64",
    }
    assert all(share["low"] > 0 for share in json.loads((tmp_path / "measured.json").read_text()).values())
    assert latency_table.predict_time(table, surgery.shapes(whole)) == pytest.approx(1)
