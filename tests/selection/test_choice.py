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
    """Returns the name that is kept (or None), and all reasons by name."""
    candidates = choice.choose([FLOAT, *others], objective, failing or {})
    assert [entry.name for entry in candidates] == ["float32", *(entry.name for entry in others)]
    kept = [entry.name for entry in candidates if entry.kept]
    assert len(kept) <= 1
    return kept[0] if kept else None, {entry.name: entry.reason for entry in candidates}


def test_a_candidate_that_breaks_a_gate_is_not_kept_however_fast():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1), failing={"int8": "max_drop is 0.0200, allowed 0.0100"})
    assert kept == "float32"
    assert reasons == {
        "float32": "the best at latency that passes every gate",
        "int8": "stopped by a gate: max_drop is 0.0200, allowed 0.0100",
    }


def test_if_no_candidate_passes_none_is_kept_and_each_names_the_gate():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1), failing={"float32": "too large", "int8": "too bad"})
    assert kept is None
    assert reasons == {"float32": "stopped by a gate: too large", "int8": "stopped by a gate: too bad"}


def test_a_candidate_slower_than_a_float_graph_that_a_gate_stops_may_be_kept():
    kept, reasons = chosen(candidate("int8", 3.0, 30.0, size=25), failing={"float32": "max_bytes is 100, allowed 50"})
    assert (kept, reasons["int8"]) == ("int8", "the best at latency that passes every gate")


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


def test_a_difference_within_noise_does_not_count_as_slower():
    assert chosen(candidate("int8", 1.0, 20.3))[0] == "int8"


def test_a_candidate_that_is_as_fast_as_the_float_graph_is_not_kept():
    kept, reasons = chosen(candidate("int8", 2.0, 20.0))
    assert (kept, reasons["int8"]) == ("float32", "1.00 times slower than float32")


def test_the_fastest_that_passes_is_kept_and_the_others_report_their_ratio():
    kept, reasons = chosen(candidate("int8", 1.0, 10.0), candidate("int4", 0.5, 5.0), candidate("int2", 0.1, 30.0))
    assert kept == "int4"
    assert reasons["float32"] == "4.00 times slower than int4"
    assert reasons["int8"] == "2.00 times slower than int4"
    assert reasons["int2"].startswith("slower than the float graph")


def test_a_candidate_with_a_reason_stays_ruled_out():
    kept, reasons = chosen(candidate("int8", 0.1, 0.1, reason="cannot be made: nothing to quantize"))
    assert (kept, reasons["int8"]) == ("float32", "cannot be made: nothing to quantize")


def test_throughput_is_judged_by_texts_per_second_only():
    slow_alone, quick_alone = candidate("streams", 4.0, 40.0, rate=300), candidate("int8", 0.5, 5.0, rate=200)
    kept, reasons = chosen(slow_alone, quick_alone, candidate("int4", 0.5, 5.0, rate=50), objective="throughput")
    assert kept == "streams"
    assert reasons["int8"] == "1.50 times slower than streams"
    assert reasons["int4"] == "slower than the float graph: mixed lengths: 50 texts/s against 100"


def test_the_smallest_is_kept_if_it_is_nowhere_slower():
    small, slow = candidate("int4", 1.9, 19.0, size=20), candidate("int2", 1.0, 10.0, rate=60, size=10)
    kept, reasons = chosen(candidate("int8", 1.0, 10.0, size=25), small, slow, objective="size")
    assert kept == "int4"
    assert reasons["int8"] == "1.25 times larger than int4"
    assert reasons["int2"].startswith("slower than the float graph: mixed lengths")


@pytest.mark.parametrize(
    ("objective", "expected"), [("latency", (2.0 * 20.0) ** 0.5), ("throughput", 10.0), ("size", 100.0)]
)
def test_each_objective_minimizes_its_own_value(objective, expected):
    assert choice.cost(FLOAT, objective) == pytest.approx(expected)


def test_every_length_has_the_same_weight_in_latency():
    uneven, even = (candidate("x", *times) for times in ((1, 40), (2, 20)))
    assert choice.cost(uneven, "latency") == pytest.approx(choice.cost(even, "latency"))


def test_the_given_candidates_are_not_changed():
    candidates = [FLOAT, candidate("int8", 1.0, 10.0)]
    choice.choose(candidates, "latency", {})
    assert [(entry.kept, entry.reason) for entry in candidates] == [(False, ""), (False, "")]


def test_candidates_of_older_manifests_are_read():
    content = candidate("int8", 1.0, 10.0).model_dump()
    assert "float_nodes" in content
    earlier = {**content, "keep": ["/layer.0/MatMul"]}
    del earlier["float_nodes"]
    assert Candidate.model_validate(earlier).float_nodes == ("/layer.0/MatMul",)
