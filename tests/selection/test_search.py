import dataclasses
import errno
import logging
import os
import sys
from collections import Counter
from dataclasses import replace

import onnx
import pytest
from models import set_times

from deploykit import engines, hardware
from deploykit.artifact import Metric
from deploykit.artifact.execution import Execution
from deploykit.errors import GateError
from deploykit.evaluation import timing, workload
from deploykit.evaluation.comparison import compare
from deploykit.evaluation.workload import Lengths
from deploykit.graphs import variants
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.quantizers import auto, dynamic
from deploykit.recipe import GateSection
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import evaluator as module
from deploykit.selection import measurements, search, sensitivity
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench, Evaluation
from deploykit.selection.search import Entry

FLOAT, DYNAMIC, STATIC = Spec(), Spec(quantizer="dynamic"), Spec(quantizer="static")
BFLOAT = Spec(execution=Execution(engine="openvino", precision="bfloat16"))
LIMITS = GateSection(max_drop=0.01, inconclusive="accept")


@pytest.fixture(scope="module")
def base(exported_of, problem_of):
    """The float graph of a tiny model on one core, and its file."""
    problem, file = problem_of("text-classification"), exported_of("bert") / "model.onnx"
    engine = engines.load("onnxruntime").load(file, Execution())
    return Predictor(problem.task, problem.spec, problem.tokenizer, engine), file


@pytest.fixture
def bench(base, dataset_of, tmp_path, monkeypatch):
    """What a search works on; `drops` says by how much each kind of candidate is worse, and counts the judgements."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    predictor, file = base
    rows = dataset_of("text-classification").validation
    predictions = predictor.predict([row.input for row in rows])
    none = compare(predictor.task, predictor.spec, rows, predictions, predictions, 0)
    bench_drops, judged = {}, Counter()

    def evaluate(spec, opened):
        judged[spec.name] += 1
        assert len(opened.predict(["a film"])) == 1
        drop = bench_drops.get((spec.quantizer, len(spec.float_nodes)), 0.0)
        metric = Metric(value=0.9 - drop, low=0.0, high=1.0)
        return Evaluation(
            metric=metric, comparison=none.model_copy(update={"drop": Metric(value=drop, low=drop, high=drop)})
        )

    features = [part for parts in predictor.encode([row.input for row in rows]) for part in parts]
    found = Bench(
        graph=file,
        base=predictor,
        folder=tmp_path / "graphs",
        workload=workload.build(Lengths.from_counts({5: 1, 9: 2}), predictor.tokenizer, features, 0),
        calibration=pad_in_batches(features[:16], predictor.tokenizer, 8),
        evaluate=evaluate,
        gates=LIMITS,
        data_key="d",
    )
    object.__setattr__(found, "drops", bench_drops)
    object.__setattr__(found, "judged", judged)
    return found


@pytest.fixture
def clock(monkeypatch):
    """`clock(bench, {spec: milliseconds})`: what each candidate takes, whatever the machine does."""
    seen = Counter()

    def fixed(bench, times):
        opened = Bench.open
        known = {(key.quantizer, key.execution, len(key.float_nodes)): value for key, value in times.items()}

        def spy(self, spec):
            predictor = opened(self, spec)
            return replace(predictor, engine=Named(predictor.engine, spec))

        def milliseconds(_, engine):
            spec = getattr(engine, "spec", FLOAT)
            seen[spec.name] += 1
            return known[spec.quantizer, spec.execution, len(spec.float_nodes)]

        monkeypatch.setattr(Bench, "open", spy)
        set_times(monkeypatch, milliseconds)
        return seen

    return fixed


class Named:
    """An engine that knows which candidate it is."""

    def __init__(self, engine, spec):
        self.run, self.shape, self.execution, self.spec = engine.run, engine.shape, engine.execution, spec


def kept(candidates):
    (name,) = [found.name for found in candidates if found.kept]
    return name


def test_the_fastest_that_passes_is_kept_and_all_say_why(bench, clock):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0, STATIC: 2.2, BFLOAT: 8.0})
    _, candidates = search.search([FLOAT, DYNAMIC, STATIC, BFLOAT], bench, auto.Options())
    assert [found.name for found in candidates] == [
        "float32, onnxruntime",
        "dynamic int8, onnxruntime",
        "static int8, onnxruntime",
        "float32, openvino bfloat16",
    ]
    assert kept(candidates) == "dynamic int8, onnxruntime"
    reasons = [found.reason for found in candidates]
    assert reasons == [
        "2.00 times slower than dynamic int8, onnxruntime",
        "the best at latency that passes every gate",
        "1.10 times slower than dynamic int8, onnxruntime",
        "2.00 times the float graph's latency in the first measurement",
    ]
    assert all(found.comparison for found in candidates)  # there was time to judge all
    assert candidates[1].bytes == bench.file(DYNAMIC).stat().st_size < candidates[0].bytes
    assert candidates[1].execution.batch_tokens == search.BATCH_TOKENS[0]
    assert not candidates[3].latency


def test_what_was_found_before_is_not_measured_again(bench, clock):
    seen = clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0})
    _, first = search.search([FLOAT, DYNAMIC], bench, auto.Options())
    timed, judged = Counter(seen), Counter(bench.judged)
    assert timed
    assert judged
    _, second = search.search([FLOAT, DYNAMIC], bench, auto.Options())
    assert second == first
    assert (seen, bench.judged) == (timed, judged)
    _, third = search.search([FLOAT, DYNAMIC], replace_key(bench), auto.Options())
    assert third == first
    assert seen != timed


@pytest.mark.parametrize(("gate", "times"), [({}, 1), ({"max_p95_ms": 50.0}, 2)])
def test_what_is_timed_is_judged_again_where_it_runs_otherwise(bench, gate, times):
    found = dataclasses.replace(bench, gates=LIMITS.model_copy(update=gate))
    two = [Entry(Spec(execution=Execution(threads=1, streams=streams))) for streams in (1, 2)]
    search.evaluate(two, found)
    assert sum(bench.judged.values()) == times


def replace_key(bench):
    """The same bench on other data."""
    return Bench(**{**{name: getattr(bench, name) for name in Bench.__dataclass_fields__}, "data_key": "other"})


def test_another_machine_measures_anew(bench, monkeypatch):
    before = bench.key
    monkeypatch.setattr(hardware, "cpu_name", lambda: "another CPU")
    assert replace(bench).key != before


def test_a_gate_stops_the_fastest_and_the_fallback_returns_the_worst_products_to_float(bench, clock):
    two = [replace(DYNAMIC, float_nodes=("x",) * count) for count in (1, 2)]
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0, two[0]: 2.5, two[1]: 3.0})
    bench.drops.update({("dynamic", 0): 0.03, ("dynamic", 1): 0.02, ("dynamic", 2): 0.005})
    _, candidates = search.search([FLOAT, DYNAMIC], bench, auto.Options())
    assert [found.name for found in candidates][2:] == ["dynamic int8, 2 MatMuls in float, onnxruntime"]
    assert kept(candidates) == "dynamic int8, 2 MatMuls in float, onnxruntime"
    assert candidates[1].reason.startswith("stopped by a gate:   max_drop is 0.0300")
    ranking = sensitivity.rank(bench.graph, dynamic, dynamic.Options(), bench.calibration, bench.folder)
    assert set(candidates[2].float_nodes) == {damage.node for damage in ranking[:2]}
    graph = onnx.load(bench.file(candidate_grid.spec_of(candidates[2], Execution()))).graph
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == len(ranking) - 2


def test_the_fallback_is_not_tried_where_nothing_is_to_be_gained_or_where_it_is_off(bench, clock, monkeypatch):
    monkeypatch.setattr(sensitivity, "rank", lambda *_: pytest.fail("ranked"))
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0, STATIC: 1.9})
    bench.drops["dynamic", 0] = 0.03
    _, candidates = search.search([FLOAT, DYNAMIC, STATIC], bench, auto.Options())  # a faster one passes
    assert kept(candidates) == "static int8, onnxruntime"
    _, candidates = search.search([FLOAT, DYNAMIC], bench, auto.Options(fallback=False))
    assert kept(candidates) == "float32, onnxruntime"


def test_none_is_kept_where_none_passes(bench, clock):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0})
    small = replace(bench, gates=GateSection(max_bytes=10))
    _, candidates = search.search([FLOAT, DYNAMIC], small, auto.Options(fallback=False))
    assert not any(found.kept for found in candidates)
    assert all("max_bytes" in found.reason for found in candidates)


def test_one_that_cannot_be_made_says_why_and_stops_nothing(bench, clock, monkeypatch):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0})
    monkeypatch.setattr(variants, "write", lambda *_: (_ for _ in ()).throw(GateError("no attention here")))
    _, candidates = search.search([FLOAT, replace(DYNAMIC, graph="attention"), DYNAMIC], bench, auto.Options())
    assert candidates[1].reason == "cannot be made: no attention here"
    assert kept(candidates) == "dynamic int8, onnxruntime"


class NativeError(Exception):
    """What a library raises: none of ours."""


def fail(*_, **__):
    raise NativeError("[ONNXRuntimeError] : 9 :\n NOT_IMPLEMENTED")


def failing(kind, monkeypatch):
    """Makes the library fail that quantizes, opens or runs graphs with bytes; returns how the reason begins."""
    if kind == "quantize":
        monkeypatch.setattr(dynamic, "quantize", fail)
        return "cannot be made: "
    opened = Bench.open

    def broken(self, spec):
        predictor = opened(self, spec)
        if spec.quantizer != "dynamic":
            return predictor
        return fail() if kind == "open" else replace(predictor, engine=Broken(predictor.engine))

    monkeypatch.setattr(Bench, "open", broken)
    return "cannot be run: "


class Broken:
    """An engine that fails at each batch."""

    def __init__(self, engine):
        self.shape, self.execution, self.run = engine.shape, engine.execution, fail


@pytest.mark.parametrize("kind", ["quantize", "open", "run"])
def test_a_library_that_fails_at_one_candidate_stops_nothing(kind, bench, monkeypatch, caplog):
    reason = failing(kind, monkeypatch)
    with caplog.at_level(logging.DEBUG, "deploykit.selection"):
        _, candidates = search.search([FLOAT, DYNAMIC], bench, auto.Options(minutes=0.2))
    assert kept(candidates) == "float32, onnxruntime"
    assert candidates[1].reason == reason + "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED"
    assert any("NativeError" in str(record.exc_info) for record in caplog.records)


@pytest.mark.parametrize("when", ["evaluate", "time", "repair"])
def test_a_library_that_fails_later_stops_nothing_either(when, bench, clock, monkeypatch):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0, replace(DYNAMIC, float_nodes=("x",)): 2.0})
    if when == "evaluate":
        evaluate = bench.evaluate
        bench = replace(bench, evaluate=lambda spec, opened: fail() if spec == DYNAMIC else evaluate(spec, opened))
    if when == "time":
        rates = timing.throughputs

        def all_fail(engines, *how):
            broken = any(getattr(engine, "spec", FLOAT) == DYNAMIC for engine in engines.values())
            return fail() if broken and len(how[1]) == len(search.BATCH_TOKENS) else rates(engines, *how)

        monkeypatch.setattr(timing, "throughputs", all_fail)
        run = Named.__init__

        def init(self, engine, spec):
            run(self, engine, spec)
            if spec == DYNAMIC:
                self.run = lambda batch: engine.run(batch) if len(batch["input_ids"]) < 8 else fail()

        monkeypatch.setattr(Named, "__init__", init)
        bench.drops["dynamic", 0] = 0.0
    if when == "repair":
        bench.drops["dynamic", 0] = 0.03
        monkeypatch.setattr(sensitivity, "rank", fail)
    _, candidates = search.search([FLOAT, DYNAMIC], bench, auto.Options())
    assert kept(candidates) == "float32, onnxruntime"
    expected = "stopped by a gate" if when == "repair" else "cannot be run: [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED"
    assert candidates[1].reason.startswith(expected)


def test_a_full_disk_is_no_fault_of_a_candidate(bench, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dynamic, "quantize", full)
    with pytest.raises(OSError, match="No space left"):
        search.search([FLOAT, DYNAMIC], bench, auto.Options(minutes=0.2))


@pytest.mark.parametrize("error", [ImportError("libtbb.so.12: cannot open shared object file"), OSError("no libtbb")])
def test_an_engine_that_is_installed_and_broken_is_not_tried(error, monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "deploykit.engines.openvino", raising=False)
    monkeypatch.setattr(engines, "openvino", None, raising=False)

    class Finder:
        def find_spec(self, name, *_):
            if name == "openvino":
                raise error

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    candidate_grid._warn_once.cache_clear()
    assert candidate_grid.installed_engines() == ["onnxruntime"]
    assert "the engine openvino cannot be imported here" in caplog.text
    assert "libtbb" in caplog.text


def test_one_whose_answers_are_wrong_is_out(bench, clock):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0})

    def evaluate(spec, opened):
        if spec.quantizer == "dynamic":
            raise GateError("9 of 10 golden answers change")
        return bench.evaluate(spec, opened)

    _, candidates = search.search([FLOAT, DYNAMIC], replace(bench, evaluate=evaluate), auto.Options())
    assert (kept(candidates), candidates[1].reason) == ("float32, onnxruntime", "9 of 10 golden answers change")


def test_when_the_minutes_are_over_the_float_graph_is_still_there(bench, clock):
    clock(bench, {FLOAT: 4.0, DYNAMIC: 2.0})
    _, candidates = search.search([FLOAT, DYNAMIC], bench, auto.Options(minutes=1e-9))
    assert kept(candidates) == "float32, onnxruntime"
    assert candidates[1].reason == "not tried: the minutes of the search were over"


def test_the_best_are_tried_with_their_cores_shared_in_the_other_way(bench, clock):
    together, apart = (replace(FLOAT, execution=Execution(threads=t, streams=s)) for t, s in ((2, 1), (1, 2)))
    clock(bench, {together: 4.0, apart: 1.0})
    two = replace(bench, base=replace(bench.base, engine=Named(bench.base.engine, together)))
    two.base.engine.execution = together.execution
    _, candidates = search.search([together], two, auto.Options())
    assert kept(candidates) == "float32, onnxruntime, 2 x 1 threads"


def test_a_grid_holds_what_this_machine_can_run_the_float_graph_first():
    specs = candidate_grid.specs(auto.Options(), 2, ("avx512f", "amx_bf16"))
    assert specs[0] == Spec(execution=Execution(threads=2))
    places = {(spec.execution.engine, spec.execution.precision, spec.quantizer) for spec in specs}
    assert ("openvino", "bfloat16", "none") in places
    assert ("openvino", "float32", "dynamic") not in places  # OpenVINO has no kernels for it
    assert {spec.graph for spec in specs if spec.execution.engine == "onnxruntime"} == set(variants.VARIANTS)
    assert {spec.graph for spec in specs if spec.execution.engine == "openvino"} == {"exported"}
    assert len(specs) == len(set(specs))
    assert [variants.VARIANTS.index(spec.graph) for spec in specs] == sorted(
        variants.VARIANTS.index(s.graph) for s in specs
    )
    assert {spec.execution.precision for spec in candidate_grid.specs(auto.Options(), 2, ("avx2",))} == {"float32"}


def test_a_grid_can_be_narrowed_and_throughput_shares_the_cores():
    narrow = auto.Options(
        engines=("onnxruntime",), graphs=("exported",), quantizers=("dynamic",), objective="throughput"
    )
    float_graph, dynamic = candidate_grid.specs(narrow, 4, ())
    assert (float_graph.execution.threads, float_graph.quantizer) == (4, "none")
    assert (dynamic.execution.threads, dynamic.execution.streams, dynamic.quantizer) == (1, 4, "dynamic")


def test_a_grid_tries_a_gpu_in_float_where_there_is_one(monkeypatch):
    here = candidate_grid.specs(auto.Options(), 2, ())
    monkeypatch.setattr(engines.load("onnxruntime"), "devices", lambda: ("cpu", "cuda"))
    assert [spec for spec in candidate_grid.specs(auto.Options(), 2, ()) if spec.execution.device == "cpu"] == here
    for objective in ("latency", "throughput", "size"):
        there = candidate_grid.specs(auto.Options(objective=objective), 2, ())
        on_gpu = [spec for spec in there if spec.execution.device == "cuda"]
        assert {(spec.graph, spec.quantizer) for spec in on_gpu} == {
            (graph, way) for graph in variants.VARIANTS for way in ("none", "float16")
        }
        assert {spec.execution for spec in on_gpu} == {Execution(device="cuda", threads=2)}
    narrow = auto.Options(quantizers=("dynamic", "none"), graphs=("exported",), engines=("onnxruntime",))
    assert [spec.name for spec in candidate_grid.specs(narrow, 2, ())] == [
        "float32, onnxruntime",
        "dynamic int8, onnxruntime",
        "float32, onnxruntime on cuda",
    ]


def test_graphs_that_can_be_asked_for_are_those_that_there_are():
    assert auto.Options(graphs=variants.VARIANTS).graphs == variants.VARIANTS


def test_a_candidate_can_be_made_again_from_what_is_reported():
    spec = Spec("merged", "dynamic", (("per_channel", False),), Execution(threads=2), ("a", "b"))
    entry = Entry(spec, bytes=3)
    assert candidate_grid.spec_of(entry.candidate(LIMITS), spec.execution) == spec


def test_a_file_that_is_there_is_not_written_again_and_a_broken_one_never_is(bench, monkeypatch):
    first = bench.file(DYNAMIC)
    before = first.stat().st_mtime_ns
    assert bench.file(DYNAMIC).stat().st_mtime_ns == before
    assert bench.facts(DYNAMIC)["quantized"] > 0
    monkeypatch.setattr(variants, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.file(replace(DYNAMIC, graph="merged"))
    assert {file.suffix for file in bench.folder.iterdir()} == {".onnx", ".json"}
    assert {file.stem for file in bench.folder.glob("*.onnx")} == {first.stem}


def test_memory_survives_what_is_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
    calls = iter(range(9))
    key = measurements.key_of("a", 1)
    assert [measurements.get_or_compute(key, lambda: next(calls)) for _ in range(3)] == [0, 0, 0]
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert measurements.get_or_compute(key, lambda: next(calls)) == 1
    assert measurements.get_or_compute(measurements.key_of("a", 2), lambda: next(calls)) == 2
    assert measurements.get_or_compute(key, lambda: next(calls)) == 1


def test_memory_that_cannot_be_written_costs_no_measurement(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("a file, and no directory")
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert [measurements.get_or_compute(measurements.key_of("a", 1), lambda: 7) for _ in range(2)] == [7, 7]
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.startswith(
        f"the measurements cannot be stored ([Errno 20] Not a directory: '{tmp_path / 'file' / 'cache'}"
    )
    assert line.endswith("set DEPLOYKIT_CACHE to a writable directory.")


def test_a_user_without_a_home_measures_all_the_same(monkeypatch, caplog):
    for name in ("DEPLOYKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["unknown"])  # as in a container with a user of its own
    assert measurements.get_or_compute(measurements.key_of("a", 1), lambda: 7) == 7
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the measurements cannot be stored (Could not determine home directory.)")


def test_an_error_of_a_measurement_speaks_of_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
    with pytest.raises(NativeError) as caught:
        measurements.get_or_compute(measurements.key_of("a", 1), fail)
    assert caught.value.__context__ is None


def test_memory_forgets_what_was_not_asked_for_for_longest(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(measurements, "MAX_FILES", 4)
    keys = [measurements.key_of("a", number) for number in range(6)]
    for age, key in enumerate(keys[:4]):
        measurements.get_or_compute(key, lambda: 1)
        os.utime(measurements.file_of(key), (1e9 + age, 1e9 + age))
    measurements.get_or_compute(keys[0], lambda: 2)  # asked for again
    measurements.get_or_compute(keys[4], lambda: 1)
    measurements.get_or_compute(keys[5], lambda: 1)
    assert len(list(tmp_path.rglob("*.json"))) <= 4
    assert measurements.get_or_compute(keys[0], lambda: 2) == 1
    assert measurements.get_or_compute(keys[1], lambda: 2) == 2


def test_screening_takes_as_many_texts_as_take_little_time(bench, monkeypatch):
    assert (
        len(bench.screening_workload.mixed) == workload.MIXED_TEXTS
    )  # a tiny model is done with all of them in no time
    slow = replace(bench)
    seconds = iter((0.0, 10 * module.SCREENING_SAMPLE_S))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(seconds))
    assert len(slow.screening_workload.mixed) == round(workload.MIXED_TEXTS / 10)


def test_arithmetic_of_the_cpu_is_screened_early_and_other_graphs_late(bench, monkeypatch):
    fused = Spec("fused", "dynamic", (), FLOAT.execution)
    screened = []
    monkeypatch.setattr(search, "_screen_one", lambda spec, *_: screened.append(spec) or {"ratio": 1.0, "bytes": 1})
    entries = [Entry(spec) for spec in (FLOAT, fused, DYNAMIC, BFLOAT)]
    search.screen(entries, bench, "latency", deadline=float("inf"))
    assert screened == [FLOAT, BFLOAT, DYNAMIC, fused]
    assert [entry.spec for entry in entries] == [FLOAT, fused, DYNAMIC, BFLOAT]  # reports keep their order
