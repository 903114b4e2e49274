"""Choosing again, and explaining: on a real package that was chosen from real candidates."""

import json
import shutil

import numpy as np
import onnx
import pytest
from models import set_times

from deploykit import artifact
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact
from deploykit.artifact.cost import Cost
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, GateError, InputError
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.quantizers import auto
from deploykit.selection import evaluator
from deploykit.stages import bundle, explanation, exporting, packaging, quantization, retuning
from deploykit.stages.opened_package import open_package

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT, DYNAMIC, STATIC = ("float32", "dynamic int8", "static int8")
SEARCHED = {"method": "auto", "engines": ["onnxruntime"], "graphs": ["exported"], "fallback": False}


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """`clock(name=milliseconds)`: what candidates take whose names begin so, whatever the machine does."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return lambda **times: set_clock(monkeypatch, **times)


def set_clock(patch, **times):
    opened = evaluator.Bench.open

    def spy(self, spec):
        predictor = opened(self, spec)
        predictor.engine.name = spec.name
        return predictor

    def of(engine):
        name = getattr(engine, "name", FLOAT)
        return next(ms for start, ms in times.items() if name.startswith(start))

    patch.setattr(evaluator.Bench, "open", spy)
    set_times(patch, lambda _, engine: of(engine))


@pytest.fixture(scope="module")
def made(tmp_path_factory, fitted, sealed_checkpoint, job_of):
    """A package that runs in int8, and would do so statically too."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_CACHE", str(folder / "cache"))
        patch.setattr(exporting.hardware, "cpu_limit", lambda: 1)
        set_clock(patch, float32=4.0, dynamic=1.0, static=2.0)
        small = surgery.shrunk(fitted("text-classification")[0], [KeptUnits((0, 1, 2), tuple(range(128)))] * 2)
        parent = sealed_checkpoint(folder / "train", small)
        gates = {"max_drop": 0.2, "inconclusive": "accept"}
        graph = quantization.quantize(
            job_of("quantize", exporting.export(job_of("export", parent)), quantize=SEARCHED, gates=gates)
        )
        return packaging.package(job_of("package", graph, package={"store": False, "golden": 32}, gates=gates))


@pytest.fixture
def package(made, tmp_path):
    """A package of one's own."""
    return Artifact.load(shutil.copytree(made.path, tmp_path / "package"))


def rewrite(package, change):
    """Changes the manifest, as another version or another machine would have written it."""
    content = json.loads((package.path / "manifest.json").read_text())
    change(content)
    (package.path / "manifest.json").write_text(json.dumps(content))


def test_what_is_no_package_is_refused(tmp_path, tiny_artifact):
    with pytest.raises(InputError, match="is no package with measured candidates"):
        retuning.retune(tiny_artifact(tmp_path / "export").path)


def test_an_output_that_is_there_is_refused(package, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        retuning.retune(package.path, tmp_path)


def test_a_package_without_its_float_graph_is_refused(package):
    (package.path / FLOAT_GRAPH).unlink()
    rewrite(package, lambda content: content["files"].pop(FLOAT_GRAPH))
    with pytest.raises(ArtifactError, match="carries no float graph to choose from"):
        retuning.retune(package.path)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match=r"minutes: Input should be greater than 0, got -1\."):
        retuning.parse_options(minutes=-1)


def test_on_another_machine_another_candidate_is_kept_and_the_package_is_whole(package, clock):
    assert package.manifest.execution.engine == "onnxruntime"
    clock(float32=4.0, dynamic=8.0, static=1.0)
    found = retuning.retune(package.path, options=auto.Options(engines=("onnxruntime",)))
    assert found.path == package.path.with_name("package-retuned")
    again = Artifact.load(found.path)
    again.verify()
    golden.verify(found.path)
    graph = onnx.load(again.file(GRAPH)).graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)  # it was dynamic before
    assert again.file(FLOAT_GRAPH).read_bytes() == package.file(FLOAT_GRAPH).read_bytes()
    assert again.manifest.cost == Cost(fixed=0.25)
    assert again.manifest.parent_digest == package.digest
    assert again.manifest.key != package.manifest.key
    assert "static int8, onnxruntime (chosen again on " in again.file("README.md").read_text()
    assert "the figures are those of: dynamic int8, onnxruntime)" in again.file("README.md").read_text()
    asked = golden.load(again)
    predictor = Predictor.load(again, 1)
    served = predictor.predict(asked.items(predictor.task))
    np.testing.assert_allclose(served, golden.from_stored(asked.predictions, predictor.task), atol=1e-4)
    assert asked.float_predictions == golden.load(package).float_predictions
    assert set(bundle.pinned_requirements(bundle.SERVING_PACKAGES)) == set(
        again.file("requirements.txt").read_text().split()
    )


def test_the_code_is_a_fresh_copy_and_a_signature_stays_behind(package, clock, caplog):
    library = package.path / artifact.LIBRARY
    (library / "renamed_since.py").write_text("")
    (library / "errors.py").write_text("# of an older version\n")
    (library / "__pycache__").mkdir()
    (library / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"")
    (package.path / artifact.SIGNATURE).write_text("{}")

    def record(content):
        for name in ("renamed_since.py", "errors.py"):
            file = library / name
            entry = {"sha256": artifact.sha256_of(file), "bytes": file.stat().st_size}
            content["files"][f"{artifact.LIBRARY}/{name}"] = entry

    rewrite(package, record)
    clock(float32=4.0, dynamic=8.0, static=1.0)
    found = retuning.retune(package.path, options=auto.Options(engines=("onnxruntime",)))
    fresh = {file.relative_to(bundle.PACKAGE_ROOT).as_posix(): file.read_bytes() for file in bundle.served_files()}
    files = [file for file in found.file(artifact.LIBRARY).rglob("*") if file.is_file()]
    assert {file.relative_to(found.file(artifact.LIBRARY)).as_posix(): file.read_bytes() for file in files} == fresh
    assert not found.file(artifact.SIGNATURE).exists()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        f"{found.path} is not signed: the signature of {package.path} is of other files. Sign it with:"
        f" deploykit sign {found.path} --key PRIVATE_KEY"
    )


def test_where_the_float_graph_is_the_fastest_it_is_carried_once(package, clock):
    clock(float32=1.0, dynamic=8.0, static=8.0)
    found = retuning.retune(package.path, options=auto.Options(engines=("onnxruntime",)))
    assert found.file(GRAPH).read_bytes() == package.file(FLOAT_GRAPH).read_bytes()
    assert FLOAT_GRAPH not in found.manifest.files
    assert found.manifest.execution.features == ()
    twice = retuning.retune(found.path, options=auto.Options(engines=("onnxruntime",)))  # and again
    assert twice.manifest.details["retune"]["candidates"]


def test_what_broke_a_gate_where_it_was_made_is_not_tried(package, clock):
    def break_static(content):
        for candidate in content["details"]["quantize"]["candidates"]:
            if candidate["quantizer"] == "static":
                candidate["verdicts"][0]["outcome"] = "failed"

    rewrite(package, break_static)
    clock(float32=4.0, dynamic=2.0, static=1.0)
    known = retuning.passed_before(open_package(package.path), auto.Options(engines=("onnxruntime",)), 1)
    assert {spec.quantizer for spec in known} == {"none", "dynamic"}


@pytest.mark.parametrize("gate", ["max_bytes", "max_p95_ms"])
def test_a_float_graph_that_broke_a_gate_itself_is_timed_against_and_not_kept_for_its_size(package, clock, gate):
    limit = package.file(FLOAT_GRAPH).stat().st_size - 1 if gate == "max_bytes" else 1.0

    def break_float(content):
        gates = {"max_drop": 0.2, "inconclusive": "accept", gate: limit}
        content["details"]["quantize"]["gates"].update(gates)
        for candidate in content["details"]["quantize"]["candidates"]:
            value = {"value": 2 * limit, "low": 2 * limit, "high": 2 * limit}
            broken = {"gate": gate, "limit": limit, "found": value, "outcome": "broken"}
            if candidate["quantizer"] == "none":
                candidate["verdicts"].append(broken)

    rewrite(package, break_float)
    clock(float32=1.0, dynamic=4.0, static=8.0)
    found = retuning.retune(package.path, options=auto.Options(engines=("onnxruntime",)))
    (kept,) = (one["name"] for one in found.manifest.details["retune"]["candidates"] if one["kept"])
    assert kept.startswith("dynamic int8" if gate == "max_bytes" else "float32")


def test_a_package_named_by_a_link_is_written_beside_the_link(package, clock):
    clock(float32=4.0, dynamic=1.0, static=2.0)
    link = package.path.with_name("newest")
    link.symlink_to(package.path)
    found = retuning.retune(link, options=auto.Options(engines=("onnxruntime",)))
    assert found.path == link.with_name("newest-retuned")


def test_golden_answers_that_change_more_than_they_did_put_a_candidate_out(package, clock, monkeypatch):
    clock(float32=4.0, dynamic=1.0, static=2.0)
    file = evaluator.Bench.file

    def other(self, spec):  # dynamic kernels of this machine are wrong
        found = file(self, spec)
        if spec.quantizer == "dynamic":
            model = onnx.load(found)
            for constant in model.graph.initializer:
                if constant.name == "classifier.bias":
                    constant.CopyFrom(onnx.numpy_helper.from_array(np.float32([99, -99]), constant.name))
            onnx.save(model, found)
        return found

    monkeypatch.setattr(evaluator.Bench, "file", other)
    found = retuning.retune(package.path, options=auto.Options(engines=("onnxruntime",)))
    reasons = {c["name"]: c["reason"] for c in found.manifest.details["retune"]["candidates"]}
    assert "golden answers change on this machine, compared with " in reasons["dynamic int8, onnxruntime"]
    assert reasons["static int8, onnxruntime"] == "the best at latency that passes every gate"


def test_a_float_graph_that_is_wrong_here_stops_it(package, monkeypatch):
    predict = Predictor.predict
    spoilt = np.float32([1, 0])
    monkeypatch.setattr(Predictor, "predict", lambda *given: [scores + spoilt for scores in predict(*given)])
    with pytest.raises(ArtifactError, match="golden answers moved"):
        retuning.retune(package.path)


def test_where_nothing_passes_nothing_is_written(package, clock):
    rewrite(package, lambda content: content["details"]["quantize"]["gates"].update(max_bytes=10))
    clock(float32=1.0, dynamic=1.0, static=1.0)
    with pytest.raises(GateError, match="no candidate of this package passes"):
        retuning.retune(package.path)
    assert [found.name for found in package.path.parent.iterdir() if "retuned" in found.name] == []


def test_an_explanation_ranks_every_matmul_and_prices_growing_groups(package, clock):
    clock(float32=4.0, dynamic=1.0)
    result = explanation.explain_quantization(package.path)
    assert result.name == "dynamic int8, onnxruntime"
    assert (result.texts, len(result.damages)) == (32, 12)
    assert [entry.error for entry in result.damages] == sorted((entry.error for entry in result.damages), reverse=True)
    assert [price.kept for price in result.prices] == [0, 1, 2, 4, 8]
    assert [price.bytes for price in result.prices] == sorted(price.bytes for price in result.prices)
    assert result.prices[0].bytes == package.file(GRAPH).stat().st_size
    predictor = Predictor.load(package, 1)
    inputs = golden.load(package).items(predictor.task)
    exact = Predictor.load(package, 1, Execution(), FLOAT_GRAPH).predict(inputs)
    assert result.prices[0].changed == golden.count_changed(predictor, predictor.predict(inputs), exact)
    assert len(explanation.damage_rows(result)) == 12
    assert explanation.price_rows(result)[1][0] == "the worst 1"


def test_another_quantizer_can_be_explained_but_not_none(package, clock):
    clock(float32=4.0, static=1.0)
    assert explanation.explain_quantization(package.path, "static").name == "static int8, onnxruntime"
    for name in ("none", "auto"):
        with pytest.raises(InputError, match=f"the quantizer `{name}` quantizes no MatMul itself"):
            explanation.explain_quantization(package.path, name)
