import pytest

from deploykit.artifact import Metric
from deploykit.artifact.execution import Execution
from deploykit.evaluation.timing import Latency
from deploykit.selection import choice
from deploykit.selection.choice import Candidate

SHORT, LONG = "batch 1, 5 tokens", "batch 1, 27 tokens"


def metric(value):
    return Metric(value=value, low=value, high=value)


def candidate(name, short, long, rate=100.0, size=100, **facts):
    times = {SHORT: short, LONG: long}
    return Candidate(
        name=name,
        graph="exported",
        quantizer="none",
        precision="float32",
        execution=Execution(),
        bytes=size,
        latency={text: Latency(p50=ms, low=ms, high=ms, p95=ms) for text, ms in times.items()},
        throughput=metric(rate),
        **facts,
    )


FLOAT = candidate("float32", 2.0, 20.0)


def chosen(*others, objective="latency", failing=None):
    """The name that is kept, and all reasons."""
    found = choice.choose([FLOAT, *others], objective, failing or {})
    assert [one.name for one in found] == ["float32", *(one.name for one in others)]
    kept = [one.name for one in found if one.kept]
    assert len(kept) <= 1
    return kept[0] if kept else None, {one.name: one.reason for one in found}


def test_a_candidate_that_breaks_a_gate_is_not_kept_however_fast():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1), failing={"int8": "max_drop is 0.0200, allowed 0.0100"})
    assert kept == "float32"
    assert reasons == {
        "float32": "the best at latency that keeps every gate",
        "int8": "stopped by a gate: max_drop is 0.0200, allowed 0.0100",
    }


def test_nothing_is_kept_where_no_candidate_passes_and_each_says_what_stopped_it():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1), failing={"float32": "too large", "int8": "too bad"})
    assert kept is None
    assert reasons == {"float32": "stopped by a gate: too large", "int8": "stopped by a gate: too bad"}


def test_what_is_slower_than_a_float_graph_that_a_gate_stops_may_be_kept():
    kept, reasons = chosen(candidate("int8", 3.0, 30.0, size=25), failing={"float32": "max_bytes is 100, allowed 50"})
    assert (kept, reasons["int8"]) == ("int8", "the best at latency that keeps every gate")


def test_a_candidate_that_is_slower_on_one_text_is_not_kept_however_fast_on_the_other():
    kept, reasons = chosen(candidate("int8", 0.5, 20.5))
    assert kept == "float32"
    assert reasons["int8"] == "slower than the float graph: batch 1, 27 tokens: 20.50 ms against 20.00 ms"


def test_every_text_on_which_a_candidate_is_slower_is_named():
    _, reasons = chosen(candidate("int8", 3.0, 30.0))
    assert reasons["int8"] == (
        "slower than the float graph: batch 1, 5 tokens: 3.00 ms against 2.00 ms;"
        " batch 1, 27 tokens: 30.00 ms against 20.00 ms"
    )


def test_noise_is_not_taken_for_slowness():
    assert chosen(candidate("int8", 1.0, 20.3))[0] == "int8"


def test_a_candidate_that_is_as_fast_as_the_float_graph_is_not_kept():
    kept, reasons = chosen(candidate("int8", 2.0, 20.0))
    assert (kept, reasons["int8"]) == ("float32", "1.00 times slower than float32")


def test_the_fastest_of_those_that_pass_is_kept_and_the_others_say_by_how_much_they_lost():
    kept, reasons = chosen(candidate("int8", 1.0, 10.0), candidate("int4", 0.5, 5.0), candidate("int2", 0.1, 30.0))
    assert kept == "int4"
    assert reasons["float32"] == "4.00 times slower than int4"
    assert reasons["int8"] == "2.00 times slower than int4"
    assert reasons["int2"].startswith("slower than the float graph")


def test_one_that_was_out_before_stays_out_with_its_reason():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1, reason="cannot be made: nothing to quantize"))
    assert (kept, reasons["int8"]) == ("float32", "cannot be made: nothing to quantize")


def test_throughput_asks_for_texts_a_second_alone():
    slow_alone, quick_alone = candidate("streams", 4.0, 40.0, rate=300), candidate("int8", 0.5, 5.0, rate=200)
    kept, reasons = chosen(slow_alone, quick_alone, candidate("int4", 0.5, 5.0, rate=50), objective="throughput")
    assert kept == "streams"
    assert reasons["int8"] == "1.50 times slower than streams"
    assert reasons["int4"] == "slower than the float graph: mixed lengths: 50 texts a second against 100"


def test_the_smallest_is_kept_if_it_is_slower_at_nothing():
    small, slow = candidate("int4", 1.9, 19.0, size=20), candidate("int2", 1.0, 10.0, rate=60, size=10)
    kept, reasons = chosen(candidate("int8", 1.0, 10.0, size=25), small, slow, objective="size")
    assert kept == "int4"
    assert reasons["int8"] == "1.25 times larger than int4"
    assert reasons["int2"].startswith("slower than the float graph: mixed lengths")


@pytest.mark.parametrize(
    ("objective", "expected"), [("latency", (2.0 * 20.0) ** 0.5), ("throughput", 10.0), ("size", 100.0)]
)
def test_what_an_objective_makes_small(objective, expected):
    assert choice.score(FLOAT, objective) == pytest.approx(expected)


def test_latency_counts_every_text_the_same():
    one, other = (candidate("x", *times) for times in ((1, 40), (2, 20)))
    assert choice.score(one, "latency") == pytest.approx(choice.score(other, "latency"))


def test_what_came_in_is_as_it_was():
    others = [FLOAT, candidate("int8", 1.0, 10.0)]
    choice.choose(others, "latency", {})
    assert [(found.kept, found.reason) for found in others] == [(False, ""), (False, "")]
