import json

import numpy as np
import pytest

from deploykit.artifact.execution import Execution
from deploykit.errors import ModelError
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.pruners._width import meter

pytestmark = pytest.mark.usefixtures("one_thread")


class Engine:
    """Records its batches."""

    def __init__(self):
        self.seen = []

    def run(self, batch):
        self.seen.append(batch)

    def shape(self, rows, tokens):
        return rows, tokens


@pytest.fixture
def timed(monkeypatch):
    """`timed(*samples)` sets the times of both engines on each workload; returns the list of bursts."""
    bursts = []

    def set_times(*samples):
        remaining = iter(samples)

        def time_in_turn(calls, seconds, burst_calls):
            assert seconds == meter.TIMING_S
            bursts.append(burst_calls)
            for call in calls.values():
                call()
            return dict(zip(calls, map(np.array, next(remaining)), strict=True))

        monkeypatch.setattr(meter.timing, "time_in_turn", time_in_turn)
        return bursts

    return set_times


def test_a_model_that_is_exported_as_several_graphs_is_refused(tiny_encoder, problem_of, tmp_path, monkeypatch):
    monkeypatch.setattr(meter.export, "write_graph", lambda *_: None)
    with pytest.raises(ModelError, match=r"exported as several\. Set `keep` in place of `speedup` or `max_drop`\.$"):
        meter.relative_timer(tiny_encoder(), problem_of(), Execution(), "none", tmp_path)


def test_a_share_is_the_median_of_the_ratios_averaged_over_the_workloads(timed):
    bursts = timed(([50, 5, 1], [100, 10, 1]), ([25, 1, 9], [100, 4, 9]))
    pruned, whole = Engine(), Engine()
    assert meter.relative_time(pruned, whole, [["long"], ["short", "middle"]]).value == (0.5 + 0.25) / 2
    assert pruned.seen == whole.seen == ["long", "short", "middle"]
    assert bursts == [meter.timing.BURST_CALLS, 1]  # several batches warm each other's caches


def test_the_interval_holds_the_share_and_is_wider_where_times_scatter(timed):
    random = np.random.default_rng(0)
    widths = []
    for scatter in (0.01, 0.2):
        timed((1 + scatter * random.normal(size=99), np.full(99, 2.0)))
        share = meter.relative_time(Engine(), Engine(), [["batch"]])
        assert share.low < share.value < share.high
        assert share.value == pytest.approx(0.5, abs=scatter)
        widths.append(share.high - share.low)
    assert widths[1] > 5 * widths[0]


def test_single_rows_have_typical_lengths(problem_of):
    problem = problem_of()
    lengths = sorted(len(row.features.encoding) for row in problem.train)
    shapes = [batch["input_ids"].shape for (batch,) in meter.single_row_workloads(problem, Engine())]
    assert shapes == [(1, lengths[int(at * (len(lengths) - 1))]) for at in (0.5, 0.1, 0.95)]


def test_mixed_rows_are_batched_as_the_whole_model_runs_fastest(problem_of, monkeypatch):
    monkeypatch.setattr(meter, "BATCH_TOKENS_TO_TRY", (8, 32, 64))
    seconds = dict(zip(meter.BATCH_TOKENS_TO_TRY, ([3.0, 9.0, 3.0], [2.0, 2.0, 9.0], [2.5, 2.5, 1.0]), strict=True))
    monkeypatch.setattr(
        meter.timing, "time_in_turn", lambda calls, *_, burst_calls: {name: np.array(seconds[name]) for name in calls}
    )
    problem = problem_of(count=300)
    workload = meter.mixed_workload(problem, Engine())
    rows = [batch["attention_mask"].sum(axis=1) for batch in workload]
    assert sum(map(len, rows)) == meter.MIXED_TEXTS
    assert len(workload) > 1
    assert all(batch["input_ids"].size <= 32 for batch in workload)
    assert [batch["input_ids"].shape[1] for batch in workload] == sorted(b["input_ids"].shape[1] for b in workload)
    assert len({int(length) for row in rows for length in row}) > 1


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_model_is_timed_as_it_would_serve_and_only_once(objective, tiny_encoder, problem_of, tmp_path, monkeypatch):
    seen = []

    def relative_time(pruned, whole, workloads):
        assert len(workloads) == (1 if objective == "throughput" else 3)
        seen.append([engine.run(workloads[0][0])["logits"] for engine in (pruned, whole)])
        return real(pruned, whole, workloads)

    real = meter.relative_time
    monkeypatch.setattr(meter, "relative_time", relative_time)
    monkeypatch.setattr(meter, "TIMING_S", 0.0)
    whole, problem = tiny_encoder(), problem_of()
    small = surgery.shrunk(whole, [KeptUnits((0,), tuple(range(64)))] * 2)
    measure = meter.relative_timer(whole, problem, Execution(threads=1), "none", tmp_path / "work", objective)
    share = measure(small)
    assert 0 < share.low <= share.value <= share.high
    assert measure(small) == share
    ((narrow, wide),) = seen
    assert narrow.shape == wide.shape == (len(narrow), 2)
    assert len(narrow) == 1 or objective == "throughput"
    assert not np.allclose(narrow, wide)
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["measured.json"]

    # a run that continues after a kill reads the stored times
    again = meter.relative_timer(whole, problem, Execution(threads=1), "none", tmp_path / "work", objective)
    assert again(small) == share
    assert len(seen) == 1
    assert json.loads((tmp_path / "work" / "measured.json").read_text()) == {"1x64 1x64": share.model_dump()}
    again(whole)
    assert len(seen) == 2
