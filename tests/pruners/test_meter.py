import json

import numpy as np
import pytest

from deploykit import architectures
from deploykit.architectures import Kept
from deploykit.errors import ModelError
from deploykit.execution import Execution
from deploykit.pruners import _timing

pytestmark = pytest.mark.usefixtures("one_thread")


class Engine:
    """Writes down on what it ran."""

    def __init__(self):
        self.seen = []

    def run(self, batch):
        self.seen.append(batch)


@pytest.fixture
def timed(monkeypatch):
    """`timed(*samples)`: the milliseconds, of one and of the whole, that are found on each batch."""

    def given(*samples):
        left = iter(samples)

        def in_turn(calls, seconds):
            assert seconds == _timing.SECONDS
            for call in calls.values():
                call()
            return dict(zip(calls, map(np.array, next(left)), strict=True))

        monkeypatch.setattr(_timing.timing, "in_turn", in_turn)

    return given


def test_a_model_that_is_exported_as_several_graphs_is_refused(tiny_encoder, problem_of, tmp_path, monkeypatch):
    monkeypatch.setattr(_timing.tracing, "write_graph", lambda *_: None)
    with pytest.raises(ModelError, match=r"exported as several\. Set `keep` in place of `speedup` or `max_drop`\.$"):
        _timing.meter(tiny_encoder(), problem_of(), Execution(), "none", tmp_path)


def test_a_share_is_the_median_of_the_ratios_averaged_over_the_batches(timed):
    timed(([50, 5, 1], [100, 10, 1]), ([25, 1, 9], [100, 4, 9]))
    one, whole = Engine(), Engine()
    assert _timing.share(one, whole, ["long", "short"]).value == (0.5 + 0.25) / 2
    assert one.seen == whole.seen == ["long", "short"]


def test_the_interval_holds_the_share_and_is_wider_where_times_scatter(timed):
    random = np.random.default_rng(0)
    widths = []
    for scatter in (0.01, 0.2):
        timed((1 + scatter * random.normal(size=99), np.full(99, 2.0)))
        found = _timing.share(Engine(), Engine(), ["it"])
        assert found.low < found.value < found.high
        assert found.value == pytest.approx(0.5, abs=scatter)
        widths.append(found.high - found.low)
    assert widths[1] > 5 * widths[0]


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
    monkeypatch.setattr(_timing, "SECONDS", 0.0)
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
