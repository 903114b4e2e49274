from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rows import example_of

from deploykit.artifact.execution import Execution
from deploykit.evaluation import timing, workload
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor

LENGTHS = Lengths.from_counts({5: 15, 9: 75, 40: 9, 500: 1})


@pytest.fixture
def clock(monkeypatch):
    """Milliseconds pass, and are waited for a core, only when `clock(milliseconds, waited)` is called."""
    now = {"ms": 0.0, "waited": 500.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["ms"] / 1000)
    monkeypatch.setattr(timing.hardware, "thread_wait_s", lambda: now["waited"] / 1000)
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)

    def passes(milliseconds, waited=0.0):
        now["ms"] += milliseconds + waited
        now["waited"] += waited

    return passes


class Clocked:
    """An engine that takes `fixed + per_token * tokens + per_square * rows * width ** 2` milliseconds."""

    def __init__(self, clock, fixed=0.0, per_token=0.0, per_square=0.0, cache_tokens=np.inf, **execution):
        self.clock, self.fixed, self.per_token, self.per_square = clock, fixed, per_token, per_square
        self.cache_tokens, self.execution, self.shapes = cache_tokens, Execution(**execution), []

    def shape(self, rows, tokens):
        return rows, tokens

    def run(self, batch):
        rows, width = batch["input_ids"].shape
        self.shapes.append((rows, width))
        full = 2 if rows * width > self.cache_tokens else 1
        self.clock(self.fixed + full * self.per_token * rows * width + self.per_square * rows * width**2)


@pytest.fixture
def work(tokenizer, sentences):
    windows = tokenizer.windows([text for text, _ in sentences], max_windows=1)
    return workload.build(LENGTHS, tokenizer, [part for parts in windows for part in parts], seed=0)


def test_texts_are_of_the_lengths_in_use_the_median_first_and_no_longer_than_the_model_reads(work, tokenizer):
    assert list(work.singles) == ["batch 1, 9 tokens", "batch 1, 5 tokens", "batch 1, 40 tokens"]
    assert [len(text) for text in work.singles.values()] == [9, 5, 40]
    counts = Counter(map(len, work.mixed))
    assert set(counts) <= {5, 9, 40, tokenizer.max_tokens}
    assert 0.7 < counts[9] / workload.MIXED_TEXTS < 0.8
    assert {int(token) for text in work.mixed for token in text.encoding.ids} > {2, 3}  # real ones, of many texts


def test_mixed_texts_are_grouped_within_the_budget(work, clock):
    grouped = work.mixed_batches(100, Clocked(clock))
    assert sum(len(batch["input_ids"]) for batch in grouped) == workload.MIXED_TEXTS
    assert max(batch["input_ids"].size for batch in grouped) <= 100
    assert len(work.mixed_batches(1000, Clocked(clock))) < len(grouped)


def test_calls_are_timed_in_turn_after_a_call_that_is_not_counted(clock):
    seen = []

    def call(name, milliseconds):
        def run():
            seen.append(name)
            clock(milliseconds * (10 if len(seen) <= 3 else 1))  # the very first calls are slow

        return run

    found = timing.time_in_turn({"a": call("a", 1), "b": call("b", 2), "c": call("c", 3)}, seconds=0)
    assert {name: set(np.round(samples, 6)) for name, samples in found.items()} == {"a": {1}, "b": {2}, "c": {3}}
    assert {len(samples) for samples in found.values()} == {timing.MIN_ROUNDS}
    turns = seen[3:]
    assert len(turns) == 3 * timing.BURST_CALLS * timing.MIN_ROUNDS
    rounds = [turns[start : start + 3 * timing.BURST_CALLS] for start in range(0, len(turns), 3 * timing.BURST_CALLS)]
    assert all(Counter(one) == dict.fromkeys("abc", timing.BURST_CALLS) for one in rounds)
    assert all(len(set(one[start : start + timing.BURST_CALLS])) == 1 for one in rounds for start in range(0, 9, 3))


def test_no_call_has_always_the_same_neighbour(clock):
    seen = []
    calls = {name: lambda name=name: (seen.append(name), clock(1)) for name in "abcd"}
    timing.time_in_turn(calls, seconds=100)  # as many rounds as there may be
    turns = seen[len(calls) :: timing.BURST_CALLS]
    before = Counter(pairwise(turns))
    shares = [before[one, other] / timing.MAX_ROUNDS for one in calls for other in calls if one != other]
    assert min(shares) > 0.1  # a third each, less where a round ends and the next begins with the same
    itself = [before[name, name] / timing.MAX_ROUNDS for name in calls]
    assert max(itself) < 0.25  # half of the first and the last where orders alternate


def test_what_is_waited_for_a_core_is_not_counted(clock):
    calls = {"short": lambda: clock(1), "long": lambda: clock(4, waited=30)}  # long calls are interrupted
    found = timing.time_in_turn(calls, seconds=0)
    assert {name: set(np.round(samples, 6)) for name, samples in found.items()} == {"short": {1}, "long": {4}}


def test_more_seconds_bring_more_rounds_up_to_a_limit(clock):
    def rounds(seconds):
        return len(timing.time_in_turn({"it": lambda: clock(10)}, seconds)["it"])

    assert rounds(0) == timing.MIN_ROUNDS
    assert rounds(0.6) == 20  # a burst takes 30 ms
    assert rounds(100) == timing.MAX_ROUNDS
    assert (
        len(timing.time_in_turn({"it": lambda: clock(10)}, 0, min_rounds=timing.ROUGH_MIN_ROUNDS)["it"])
        == timing.ROUGH_MIN_ROUNDS
    )


def test_latency_is_the_median_with_an_interval_that_holds_it(clock, work):
    found = timing.latencies({"quick": Clocked(clock, 1.0), "slow": Clocked(clock, 1.0, 0.1)}, work, seconds=1)
    assert found["quick"]["batch 1, 40 tokens"].p50 == pytest.approx(1.0)
    assert found["slow"]["batch 1, 40 tokens"].p50 == pytest.approx(5.0)
    latency = timing._latency(np.array([1.0] * 20 + [9.0] * 2))
    assert (latency.low, latency.p50, latency.high) == (1.0, 1.0, 1.0)
    assert latency.p95 == pytest.approx(8.6, abs=0.5)
    spread = timing._latency(np.arange(1.0, 22.0))
    assert spread.low < spread.p50 == 11.0 < spread.high


def test_a_rate_counts_every_text_and_larger_batches_show_what_they_cost(clock, work):
    engine = Clocked(clock, fixed=1.0, per_token=0.01, cache_tokens=300)
    rates = timing.throughputs({"it": engine}, work, (64, 256, 2048), seconds=1)["it"]
    assert max(rates, key=lambda budget: rates[budget].value) == 256
    tokens = sum(batch["input_ids"].size for batch in work.mixed_batches(256, engine))
    expected = 1000 * workload.MIXED_TEXTS / (len(work.mixed_batches(256, engine)) + 0.01 * tokens)
    assert rates[256].value == pytest.approx(expected)
    assert rates[256].low <= rates[256].value <= rates[256].high


def test_engines_are_timed_on_batches_padded_as_in_use(clock, work, monkeypatch):
    engine = Clocked(clock, fixed=1.0, per_token=0.1)
    monkeypatch.setattr(engine, "shape", lambda rows, tokens: (-(-rows // 4) * 4, -(-tokens // 16) * 16))
    timing.latencies({"it": engine}, work, seconds=0)
    assert set(engine.shapes) == {(4, 16), (4, 48)}
    engine.shapes.clear()
    timing.throughputs({"it": engine}, work, (256,), seconds=0)
    assert {rows % 4 for rows, _ in engine.shapes} == {0}
    cost = timing.fit_cost(engine, work)
    assert (cost.fixed, cost.per_token) == pytest.approx((1e-3, 1e-4), rel=1e-3)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_a_part_of_the_texts_has_lengths_like_all_of_them(work, share):
    part = work.subsample(share)
    assert len(part.mixed) == max(1, round(share * workload.MIXED_TEXTS))
    assert part.singles == work.singles
    whole = sorted(map(len, work.mixed))
    assert {len(text) for text in part.mixed} <= set(whole)
    middle = np.median([len(text) for text in part.mixed])
    assert whole[int(0.35 * workload.MIXED_TEXTS)] <= middle <= whole[int(0.65 * workload.MIXED_TEXTS)]


def test_a_rough_measurement_of_throughput_is_short(clock, work):
    engine = Clocked(clock, fixed=1.0)
    part = work.subsample(0.1)
    timing.throughputs({"it": engine}, part, (2048,), seconds=0, min_rounds=timing.ROUGH_MIN_ROUNDS)
    assert len(engine.shapes) == len(part.mixed_batches(2048, engine)) * (1 + timing.ROUGH_MIN_ROUNDS)


def test_streams_get_the_batches_all_at_once(clock, work):
    engine = Clocked(clock, fixed=1.0, streams=2)
    timing.throughputs({"it": engine}, work, (256,), seconds=0)
    assert Counter(engine.shapes)[work.mixed_batches(256, engine)[0]["input_ids"].shape] % (1 + timing.MIN_ROUNDS) == 0


def test_the_cost_of_batches_is_found_again(clock, work):
    engine = Clocked(clock, fixed=2.0, per_token=0.1, per_square=0.002, batch_tokens=256)
    found = timing.fit_cost(engine, work)
    assert (found.fixed, found.per_token, found.per_square) == pytest.approx((2e-3, 1e-4, 2e-6), rel=1e-3)
    assert max(rows * width for rows, width in engine.shapes if rows > 1) <= 256
    assert found.seconds(4, 40) == pytest.approx((2.0 + 0.1 * 160 + 0.002 * 4 * 1600) / 1000, rel=1e-3)


def test_no_part_of_a_cost_is_negative(clock, work):
    found = timing.fit_cost(Clocked(clock, fixed=1.0), work)
    assert found.fixed == pytest.approx(1e-3, rel=1e-3)
    assert min(found.per_token, found.per_square) >= 0


@pytest.mark.parametrize("words", [[1], [1, 1, 9], [1, 9, 9], [2, 9]], ids=str)
def test_the_typical_time_is_that_of_one_input_of_median_length(words, clock, tmp_path, tiny_artifact):
    loaded = Predictor.load(tiny_artifact(tmp_path / "export"), cores=1)
    engine = Clocked(clock, per_token=0.5)
    predictor = Predictor(loaded.task, loaded.spec, loaded.tokenizer, engine)
    median = sorted(words)[(len(words) - 1) // 2] + 2
    rows = [example_of(" ".join(["film"] * count)) for count in words]
    assert timing.typical_latencies({"it": predictor}, rows) == ({"it": pytest.approx(0.5 * median)}, 0.0)
    assert set(engine.shapes) == {(1, median)}


def test_typical_times_are_measured_in_turn_and_say_how_busy_the_machine_was(clock, tmp_path, tiny_artifact):
    loaded, seen = Predictor.load(tiny_artifact(tmp_path / "export"), cores=1), []

    class Drifting(Clocked):
        """The machine becomes twice as slow while it is measured; a quarter of the time others hold the core."""

        def run(self, batch):
            seen.append(self.fixed)
            milliseconds = self.fixed * (1 if len(seen) < 60 else 2)
            self.clock(milliseconds, waited=milliseconds / 3)

    predictors = {
        name: replace(loaded, engine=Drifting(clock, fixed=ms)) for name, ms in (("torch", 4.0), ("int8", 1.0))
    }
    times, waited = timing.typical_latencies(predictors, [example_of("a film")])
    assert times["torch"] / times["int8"] == pytest.approx(4.0)
    assert waited == pytest.approx(0.25)
    rounds = [
        sorted(seen[start : start + 2 * timing.BURST_CALLS]) for start in range(2, len(seen), 2 * timing.BURST_CALLS)
    ]
    assert all(one == [1.0] * timing.BURST_CALLS + [4.0] * timing.BURST_CALLS for one in rounds)


class ClockedPredictor:
    """A predictor that takes as many milliseconds as the text says, on a clock of its own."""

    def __init__(self, monkeypatch):
        self.now, self.asked = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def predict(self, inputs):
        self.asked += [(item.text, item.text_pair) for item in inputs]
        self.now += float(inputs[0].text) / 1000


@pytest.mark.parametrize(("count", "timed"), [(40, 40), (5, 5), (1000, 300)])
def test_texts_are_timed_one_by_one_and_the_tail_is_reported(count, timed, monkeypatch):
    predictor = ClockedPredictor(monkeypatch)
    rows = [example_of(str(index % 100), "pair") for index in range(count)]
    found = timing.p95_latency(predictor, rows, seed=0)
    times = [float(text) for text, _ in predictor.asked[-timed:]]
    assert len(predictor.asked) == timed + min(timed, timing.P95_WARMUP_TEXTS)
    assert {pair for _, pair in predictor.asked} == {"pair"}
    assert found.value == pytest.approx(np.quantile(times, 0.95))
    assert found.low < found.value <= found.high <= max(times) + 1e-6
