from itertools import pairwise

import numpy as np
import pytest

from deploykit import selection
from deploykit.artifact import Metric
from deploykit.evaluation.comparison import Comparison
from deploykit.predictor import Predictor
from deploykit.selection import Candidate, Latency
from deploykit.tasks import Example

SHORT, LONG = "batch 1, 5 tokens", "batch 8, 27 tokens"
EVEN = Metric(value=0.0, low=0.0, high=0.0)
EQUAL = Comparison(
    metric="accuracy", drop=EVEN, flips=EVEN, calibration=EVEN, by_label={}, by_length={}, rows=10, flipped=()
)


def candidate(name, short, long):
    latency = {batch: Latency(p50=p50, low=p50, high=p50) for batch, p50 in ((SHORT, short), (LONG, long))}
    return Candidate(
        name=name,
        precision=name,
        engine="onnxruntime",
        threads=1,
        bytes=1,
        metric=Metric(value=0.9, low=0.8, high=1.0),
        latency=latency,
        comparison=EQUAL,
    )


FLOAT = candidate("float32", 2.0, 20.0)


def chosen(*others, broken=None):
    """The name that is kept, and all reasons."""
    found = selection.choose([FLOAT, *others], broken or {})
    assert [one.name for one in found] == ["float32", *(one.name for one in others)]
    (kept,) = (one.name for one in found if one.kept)
    return kept, {one.name: one.reason for one in found}


class Spy:
    """An engine that writes down that it ran, and on what."""

    def __init__(self, name, engine, seen):
        self.label, self.engine, self.seen = name, engine, seen

    def run(self, batch):
        self.seen.append((self.label, batch["input_ids"].shape))
        return self.engine.run(batch)


@pytest.fixture
def predictor(tmp_path, tiny_artifact):
    return Predictor.load(tiny_artifact(tmp_path / "export"), cores=1)


@pytest.fixture
def rows(sentences):
    return [Example(text) for text, _ in sentences[:40]]


# the choice


def test_a_candidate_that_breaks_a_gate_is_not_kept_however_fast():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1), broken={"int8": "max_drop is 0.0200, allowed 0.0100"})
    assert kept == "float32"
    assert reasons == {
        "float32": "the fastest that keeps every gate",
        "int8": "breaks a gate: max_drop is 0.0200, allowed 0.0100",
    }


def test_a_candidate_that_is_slower_on_one_batch_is_not_kept_however_fast_on_the_other():
    kept, reasons = chosen(candidate("int8", 0.5, 20.5))
    assert kept == "float32"
    assert reasons["int8"] == "slower than the float32 graph at batch 8, 27 tokens: 20.50 ms against 20.00 ms"


def test_every_batch_on_which_a_candidate_is_slower_is_named():
    _, reasons = chosen(candidate("int8", 3.0, 30.0))
    assert reasons["int8"] == (
        "slower than the float32 graph at batch 1, 5 tokens: 3.00 ms against 2.00 ms;"
        " batch 8, 27 tokens: 30.00 ms against 20.00 ms"
    )


def test_noise_is_not_taken_for_slowness():
    assert chosen(candidate("int8", 1.0, 20.3))[0] == "int8"


def test_a_candidate_that_is_as_fast_as_the_float_graph_is_not_kept():
    kept, reasons = chosen(candidate("int8", 2.0, 20.0))
    assert (kept, reasons["int8"]) == ("float32", "1.00 times slower than float32")


def test_the_fastest_of_those_that_pass_is_kept_and_the_others_say_by_how_much_they_lost():
    kept, reasons = chosen(candidate("int8", 1.0, 10.0), candidate("int4", 0.5, 5.0), candidate("int2", 0.1, 30.0))
    assert kept == "int4"
    assert reasons == {
        "float32": "4.00 times slower than int4",
        "int8": "2.00 times slower than int4",
        "int4": "the fastest that keeps every gate",
        "int2": "slower than the float32 graph at batch 8, 27 tokens: 30.00 ms against 20.00 ms",
    }


def test_a_gate_comes_before_the_clock():
    _, reasons = chosen(candidate("int8", 9.0, 90.0), broken={"int8": "max_flips is 1.0000, allowed 0.1000"})
    assert reasons["int8"].startswith("breaks a gate")


def test_alone_the_float_graph_is_kept():
    assert chosen()[0] == "float32"


def test_speed_counts_every_batch_the_same():
    assert selection.speed(FLOAT) == pytest.approx(np.sqrt(2.0 * 20.0))
    assert selection.speed(candidate("a", 1, 40)) == pytest.approx(selection.speed(candidate("b", 2, 20)))


# the measurement


def test_candidates_are_timed_in_turn_round_by_round(predictor, rows):
    seen = []
    predictors = {
        name: Predictor(predictor.task, predictor.labels, predictor.tokenizer, Spy(name, predictor.engine, seen))
        for name in ("float32", "int8", "int4")
    }
    batches = {"one": [0], "two": [1, 2]}
    found = selection.measure(predictors, rows, batches)
    assert {name: set(latencies) for name, latencies in found.items()} == {name: {"one", "two"} for name in predictors}
    names = [name for name, _ in seen]
    turns = [names[start : start + 3] for start in range(0, len(names), 3)]
    assert len(turns) == 2 * (1 + selection.ROUNDS)  # a first call each, which is not timed
    assert all(sorted(turn) == ["float32", "int4", "int8"] for turn in turns)
    timed = turns[1 : 1 + selection.ROUNDS]
    assert all(one == other[::-1] for one, other in pairwise(timed))  # nobody is always first
    assert [shape[0] for _, shape in seen] == [1] * 3 * 16 + [2] * 3 * 16


def test_the_median_is_reported_and_a_slower_engine_is_found_slower(predictor, rows, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(selection.time, "perf_counter", lambda: clock["now"])

    class Clocked:
        def __init__(self, milliseconds):
            self.times = iter([1000.0, *milliseconds])  # the first call is not timed

        def run(self, batch):
            clock["now"] += next(self.times) / 1000
            return np.zeros((1, 2), dtype=np.float32)

    quick, slow = [5.0] * 14 + [500.0], [float(value) for value in range(1, 16)]
    predictors = {
        name: Predictor(predictor.task, predictor.labels, predictor.tokenizer, Clocked(times))
        for name, times in (("quick", quick), ("slow", slow))
    }
    found = selection.measure(predictors, rows, {"one": [0]})
    assert found["quick"]["one"].model_dump() == pytest.approx({"p50": 5.0, "low": 5.0, "high": 5.0})
    assert found["slow"]["one"].model_dump() == pytest.approx({"p50": 8.0, "low": 4.5, "high": 11.5})


def test_batches_are_of_the_lengths_of_the_data_the_median_first(predictor, rows):
    of = [len(found) for found in predictor.tokenizer.encode([row.text for row in rows])]
    short, middle, long = (sorted(of)[int(share * 39)] for share in (0.1, 0.5, 0.9))
    *singles, (name, eight) = selection.probes(rows, predictor).items()
    assert [(label, of[index]) for label, (index,) in singles] == [
        (f"batch 1, {length} tokens", length) for length in (middle, short, long)
    ]
    assert len(eight) == 8
    assert name == f"batch 8, {max(of[index] for index in eight)} tokens"
    assert min(of[index] for index in eight) == middle


@pytest.mark.parametrize(
    "lengths",
    [[1], [1, 1, 1], [1, 1, 1, 1, 1, 9], [1, 9, 9, 9, 9, 9], [2, 9]],
    ids=lambda lengths: "-".join(map(str, lengths)),
)
def test_the_typical_time_is_that_of_one_input_of_median_length(lengths, predictor):
    seen = []
    spied = Predictor(predictor.task, predictor.labels, predictor.tokenizer, Spy("it", predictor.engine, seen))
    rows = [Example(" ".join(["film"] * words)) for words in lengths]
    assert selection.typical(spied, rows) > 0
    median = sorted(lengths)[int(0.5 * (len(lengths) - 1))]
    assert {shape for _, shape in seen} == {(1, median + 2)}
    found = selection.measure({"it": predictor}, rows, selection.probes(rows, predictor))["it"]
    assert all(latency.low <= latency.p50 <= latency.high for latency in found.values())
