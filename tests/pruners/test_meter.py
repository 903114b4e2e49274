import json

import numpy as np
import pytest

from deploykit import architectures
from deploykit.architectures import Kept
from deploykit.errors import ModelError
from deploykit.execution import Execution
from deploykit.pruners import _timing

pytestmark = pytest.mark.usefixtures("one_thread")


class Clocked:
    """An engine that takes the next of its times, in seconds, and waits; the first call is not timed."""

    waits = 0.0

    def __init__(self, clock, times):
        self.clock, self.times, self.calls = clock, iter([1000.0, *times]), []

    def run(self, batch):
        seconds = next(self.times)
        self.clock["now"] += seconds + self.waits
        self.clock["waited"] += self.waits
        self.calls.append((self.clock["now"], batch))


@pytest.fixture
def clock(monkeypatch):
    found = {"now": 0.0, "waited": 5.0}
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: found["now"])
    monkeypatch.setattr(_timing.hardware, "waited", lambda: found["waited"])
    return found


def test_a_model_that_is_exported_as_several_graphs_is_refused(tiny_encoder, problem_of, tmp_path, monkeypatch):
    monkeypatch.setattr(_timing.tracing, "write_graph", lambda *_: None)
    with pytest.raises(ModelError, match=r"exported as several\. Set `keep` in place of `speedup` or `max_drop`\.$"):
        _timing.meter(tiny_encoder(), problem_of(), Execution(), "none", tmp_path)


def test_a_share_is_the_median_of_the_ratios_averaged_over_the_batches(clock):
    one = Clocked(clock, [*([0.5] * 8), 99.0, 7.0, *([0.25] * 8), 99.0])  # each batch has a first call and nine more
    found = _timing.share(one, Clocked(clock, [*([1.0] * 9), 7.0, *([1.0] * 9)]), ["long", "short"])
    assert (found.value, found.low, found.high) == pytest.approx((0.375, 0.375, 0.375))


def test_what_others_take_of_the_cores_is_not_counted(clock):
    one, whole = Clocked(clock, [0.1] * 99), Clocked(clock, [0.4] * 99)
    whole.waits = 3.0  # longer calls are interrupted
    assert _timing.share(one, whole, ["it"]).value == pytest.approx(0.25)


def test_the_interval_holds_the_share_and_is_wider_where_times_scatter(clock):
    random = np.random.default_rng(0)
    widths = []
    for scatter in (0.01, 0.2):
        one = Clocked(clock, 0.001 * (1 + scatter * random.normal(size=99)))
        found = _timing.share(one, Clocked(clock, [0.002] * 99), ["it"])
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(0.5, abs=scatter)
        widths.append(found.high - found.low)
    assert widths[1] > 5 * widths[0]


def test_engines_take_turns_and_neither_is_always_first(clock):
    one, whole = (Clocked(clock, [0.01] * 99) for _ in range(2))
    _timing.share(one, whole, ["it"])
    first = [a < b for (a, _), (b, _) in zip(one.calls[1:], whole.calls[1:], strict=True)]
    assert first == [bool(turn % 2) for turn in range(99)]


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-6, 99), (0.06, 17), (60.0, 9)])
def test_the_time_that_is_spent_is_bounded(seconds, rounds, clock):
    one, whole = (Clocked(clock, [seconds] * 99) for _ in range(2))
    _timing.share(one, whole, ["it"])
    assert len(one.calls) == len(whole.calls) == 1 + rounds


def test_batches_are_of_the_median_length(problem_of):
    problem = problem_of()
    lengths = sorted(len(row.encoding) for row in problem.train)
    one, eight = _timing.typical(problem)
    middle = (len(lengths) - 1) // 2
    assert one["input_ids"].shape == (1, lengths[middle])
    assert eight["input_ids"].shape == (8, lengths[middle + 7])


def test_a_model_is_timed_as_it_would_serve_and_only_once(tiny_encoder, problem_of, tmp_path, monkeypatch):
    seen = []

    def share(one, whole, batches):
        seen.append([engine.run(batches[1]) for engine in (one, whole)])
        return real(one, whole, batches)

    real = _timing.share
    monkeypatch.setattr(_timing, "share", share)
    monkeypatch.setattr(_timing, "SECONDS", 0.01)
    whole, problem = tiny_encoder(), problem_of()
    small = architectures.shrunk(whole, [Kept((0,), tuple(range(64)))] * 2)
    measure = _timing.meter(whole, problem, Execution(threads=1), "none", tmp_path / "work")
    found = measure(small)
    assert 0 < found.low <= found.value <= found.high
    assert measure(small) == found
    ((narrow, wide),) = seen
    assert narrow.shape == wide.shape == (8, 2)
    assert not np.allclose(narrow, wide)
    assert [file.name for file in (tmp_path / "work").iterdir()] == ["measured.json"]

    again = _timing.meter(whole, problem, Execution(threads=1), "none", tmp_path / "work")  # as after a kill
    assert again(small) == found
    assert len(seen) == 1
    assert json.loads((tmp_path / "work" / "measured.json").read_text()) == {"1x64 1x64": found.model_dump()}
    again(whole)
    assert len(seen) == 2
