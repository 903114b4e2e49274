import numpy as np
import pytest

from deploykit.evaluation import latency
from deploykit.tasks import Example


class Clocked:
    """A predictor that takes as many milliseconds as the text says, on a clock of its own."""

    def __init__(self, monkeypatch):
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def predict(self, texts, pairs):
        self.asked += zip(texts, pairs, strict=True)
        self.now += float(texts[0]) / 1000


@pytest.mark.parametrize(("count", "timed"), [(40, 40), (5, 5), (1000, 300)])
def test_texts_are_timed_one_by_one_and_the_tail_is_reported(count, timed, monkeypatch):
    predictor = Clocked(monkeypatch)
    rows = [Example(str(index % 100), "pair") for index in range(count)]
    found = latency.p95(predictor, rows, seed=0)
    times = [float(text) for text, _ in predictor.asked[-timed:]]
    assert len(predictor.asked) == timed + min(timed, latency.FIRST)
    assert {pair for _, pair in predictor.asked} == {"pair"}
    assert found.value == pytest.approx(np.quantile(times, 0.95))
    assert found.low < found.value <= found.high <= max(times) + 1e-6
