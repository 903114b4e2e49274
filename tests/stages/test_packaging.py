import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import yaml
from models import TASKS

import deploykit
from deploykit import engines, tasks
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact, Metric, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.errors import GateError, MissingExtraError
from deploykit.evaluation.comparison import Comparison
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits
from deploykit.quantizers import dynamic
from deploykit.stages import bundle, exporting, packaging

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(deploykit.__file__).parent
SERVE = {"timeout_s": 3, "extras": ["jwt"]}
HEAVY = ("torch", "transformers", "optimum", "datasets", "accelerate", "scikit-learn", "onnx", "triton")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory, tiny_encoder, sealed_checkpoint, job_of):
    """`packaged(task) -> (exported artifact, packaged artifact)` of a pruned, uneven model."""
    made = {}

    def build(task="text-classification"):
        if task not in made:
            kept = [KeptUnits((0, 2), tuple(range(64))), KeptUnits((1,), tuple(range(128)))]
            small = surgery.shrunk(tiny_encoder(task=task), kept)
            parent = sealed_checkpoint(tmp_path_factory.mktemp("train") / "train", small, task)
            graph = exporting.export(job_of("export", parent, task))
            package = {"store": False, "golden": 16}
            made[task] = (
                graph,
                packaging.package(job_of("package", graph, task, package=package, serve=SERVE)),
            )
        return made[task]

    return build


def imported(file):
    """Modules of deploykit that a file imports at its top, as files."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "deploykit":
            inside = Path(*node.module.split(".")[1:])
            for name in node.names:
                module = ROOT / inside / f"{name.name}.py"
                folder = ROOT / inside / name.name / "__init__.py"
                parent = ROOT / inside / "__init__.py"
                whole = (ROOT / inside).with_suffix(".py")
                yield next(found for found in (module, folder, whole, parent) if found.is_file())


# what a package is pinned to


def test_nothing_heavy_is_pinned():
    names = {line.partition("==")[0] for line in bundle.pinned_requirements(bundle.SERVING_PACKAGES)}
    assert names & set(HEAVY) == set()
    assert not [name for name in names if name.startswith(("nvidia-cu", "cuda"))]


def test_everything_is_pinned_once_to_what_is_installed_here():
    lines = bundle.pinned_requirements(bundle.SERVING_PACKAGES)
    names = [line.partition("==")[0] for line in lines]
    assert lines == sorted(lines)
    assert len(names) == len(set(names))
    assert set(bundle.SERVING_PACKAGES) - set(names) == {"onnxruntime-gpu"}  # stands in where it is installed
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+", line) for line in lines)
    assert all(line == f"{name}=={version(name)}" for line, name in zip(lines, names, strict=True))
    assert {"starlette", "protobuf"} <= set(names)  # what is only pulled in is pinned too


def test_nothing_is_pinned_without_a_runtime():
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[cpu\]'"):
        bundle.pinned_requirements(("numpy",))


def test_a_package_that_is_not_installed_is_left_out():
    found = bundle.pinned_requirements(("no-such-package-at-all", "onnxruntime"))
    assert found == bundle.pinned_requirements(("onnxruntime",))


def test_extras_are_pinned_with_what_they_pull_in_and_nothing_else():
    assert bundle.packages_of_extras(["jwt", "redis"]) == ["pyjwt[crypto]", "limits", "redis"]
    assert bundle.packages_of_extras([]) == []
    names = {
        line.partition("==")[0]
        for line in bundle.pinned_requirements(["onnxruntime", *bundle.packages_of_extras(["redis"])])
    }
    assert {"limits", "redis", "deprecated"} <= names
    assert "pyjwt" not in names


def test_an_extra_that_is_not_installed_has_no_version_to_pin(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bundle, "version", absent)
    with pytest.raises(
        MissingExtraError, match=r"`extras: \[otel\]` needs .*'opentelemetry-.*pip install '\.\[otel\]'"
    ):
        bundle.packages_of_extras(["otel"])


# the library inside a package


def test_every_pattern_finds_files_and_nothing_heavy_is_among_them():
    assert all(list(ROOT.glob(pattern)) for pattern in bundle.SERVED_PATTERNS)
    names = {file.relative_to(ROOT).as_posix() for file in bundle.served_files()}
    assert {
        "__init__.py",
        "py.typed",
        "inference/predictor.py",
        "serving/service.py",
        "engines/onnxruntime.py",
    } <= names
    assert not {"engines/torch.py", "cli/__init__.py", "modeling/checkpoint.py"} & names


@pytest.mark.parametrize(
    "file",
    [file for file in bundle.served_files() if file.suffix == ".py"],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_a_served_file_imports_only_served_files(file):
    assert set(imported(file)) <= set(bundle.served_files())


def test_the_copied_library_serves_by_itself(packaged, tmp_path):
    code = (
        "import sys; from pathlib import Path; import deploykit; from deploykit.inference.golden import verify;"
        "import deploykit.serving.service;"
        "found = verify(Path(sys.argv[1])); print(deploykit.__file__); print(found.manifest.kind);"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), 'sklearn' in sys.modules)"
    )
    _, package = packaged()
    run = subprocess.run(
        [sys.executable, "-B", "-c", code, str(package.path)],
        capture_output=True,
        text=True,
        cwd=package.path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [str(package.file("deploykit") / "__init__.py"), "package", "[] False"]


def test_the_hash_follows_the_content_and_the_names(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PACKAGE_ROOT", tmp_path)
    (tmp_path / "serving").mkdir()
    (tmp_path / "errors.py").write_text("one")
    first = bundle.library_hash()
    assert bundle.library_hash() == first
    (tmp_path / "cli.py").write_text("not served")
    assert bundle.library_hash() == first
    (tmp_path / "errors.py").write_text("two")
    second = bundle.library_hash()
    (tmp_path / "serving" / "new.py").write_text("")
    third = bundle.library_hash()
    (tmp_path / "serving" / "new.py").rename(tmp_path / "serving" / "other.py")
    assert len({first, second, third, bundle.library_hash()}) == 4


# the stage


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"max_bytes": 1000}, r"  max_bytes is [\d,]+, allowed 1,000: failed\n"),
        ({"max_p95_ms": 40}, r"  max_p95_ms is 50\.00 \(95 % interval 45\.00 to 55\.00\), allowed 40\.00: failed\n"),
        ({"max_p95_ms": 52}, r"  .* allowed 52\.00: inconclusive, the measurements vary too much\n"),
    ],
    ids=["bytes", "latency", "latency-unsteady"],
)
def test_a_graph_that_is_larger_or_slower_than_promised_is_not_packaged(gates, message, packaged, job_of, monkeypatch):
    graph, _ = packaged()
    monkeypatch.setattr(packaging.timing, "p95_latency", lambda *_: Metric(value=50, low=45, high=55))
    job = job_of("package", graph, gates=gates, package={"store": False})
    with pytest.raises(
        GateError, match=rf"a gate stops the package, .*:\n{message}(Failed gates: make|Inconclusive gates: measure)"
    ) as caught:
        packaging.package(job)
    assert f"The graph is kept in {graph.path}." in str(caught.value)
    assert not job.target.exists()


@pytest.mark.parametrize("task", TASKS)
def test_a_package_holds_all_that_serving_needs_and_is_intact(task, packaged):
    _, package = packaged(task)
    found = Artifact.load(package.path)
    found.verify()
    names = set(found.manifest.files)
    assert {"model.onnx", "config.json", "tokenizer.json", "golden.json", "README.md", "service.py"} <= names
    assert {"bentofile.yaml", "requirements.txt", "deploykit/serving/service.py"} <= names
    assert {f"deploykit/serving/api/ui/{name}" for name in ("index.html", "style.css", "app.js")} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".bin", ".pkl", ".pt"))]
    assert (found.manifest.kind, found.manifest.serve.timeout_s) == ("package", 3.0)
    pinned = found.file("requirements.txt").read_text().splitlines()
    assert pinned == bundle.pinned_requirements([*bundle.SERVING_PACKAGES, "pyjwt[crypto]"])
    assert {"pyjwt", "cryptography"} <= {line.partition("==")[0] for line in pinned}


def opened_by_optimum():
    """Returns the module with Optimum's classes, where the extra `optimum` is installed."""
    from deploykit.quantizers import dynamic

    if not dynamic.HAS_OPTIMUM:
        pytest.skip("the extra `optimum` is not installed: it needs transformers 4.57")
    import optimum.onnxruntime

    return optimum.onnxruntime


@pytest.mark.parametrize("task", TASKS)
def test_transformers_opens_a_package_and_reads_texts_as_the_service_does(task, packaged, tokenizer, dataset_of):
    import transformers

    _, package = packaged(task)
    plain = transformers.AutoTokenizer.from_pretrained(package.path)
    config = transformers.AutoConfig.from_pretrained(package.path)
    texts = [row.input.text for row in dataset_of(task).validation[:8]]
    expected = [encoding.ids.tolist() for encoding in tokenizer.encode(texts)]
    assert plain(texts, truncation=True)["input_ids"] == expected
    assert (config.model_type, tuple(config.id2label.values())) == ("bert", package.manifest.labels)


@pytest.mark.parametrize("task", TASKS)
def test_optimum_opens_a_package_and_gives_the_same_logits(task, packaged, tokenizer, dataset_of):
    optimum = opened_by_optimum()
    import torch

    _, package = packaged(task)
    opened = getattr(optimum, tasks.load(task).ORT_CLASS).from_pretrained(package.path)
    texts = [row.input.text for row in dataset_of(task).validation[:8]]
    batch = tokenizer.collate(tokenizer.encode(texts))
    logits = opened(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
    ours = engines.load("onnxruntime").load(package.file("model.onnx"), Execution()).run(batch)["logits"]
    np.testing.assert_allclose(logits, ours, atol=1e-6)
    assert [opened.config.id2label[index] for index in range(len(ours[0][0] if ours.ndim == 3 else ours[0]))] == list(
        package.manifest.labels
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_golden_set_is_of_all_lengths_with_both_models_answers(task, packaged, dataset_of):
    graph, package = packaged(task)
    found = golden.load(package)
    rows = dataset_of(task).validation
    count = min(16, len(rows))
    texts, of_rows = [item["text"] for item in found.inputs], [row.input.text for row in rows]
    assert len(texts) == len(set(texts)) == count
    assert all(item["text_pair"] is None for item in found.inputs)
    assert (len(texts[0]), len(texts[-1])) == (min(map(len, of_rows)), max(map(len, of_rows)))
    for expected in ("predictions", "float_predictions"):  # this package's graph is the float graph
        golden.replay(found, Predictor.load(package, 1), expected)
    assert found.tolerance == golden.MIN_TOLERANCE
    module = tasks.load(task)
    reference = module.load(load_predictions(graph)["reference.validation"])
    for text, prediction in zip(texts, golden.from_stored(found.reference, module), strict=True):
        np.testing.assert_allclose(prediction, reference[of_rows.index(text)], rtol=1e-6)


def test_a_float_graph_that_is_carried_gives_its_answers_and_the_tolerance(packaged, job_of, tmp_path):
    graph, _ = packaged()
    both = shutil.copytree(graph.path, tmp_path / "quantize")
    shutil.copy(graph.file(GRAPH), both / FLOAT_GRAPH)
    dynamic.quantize(graph.file(GRAPH), dynamic.Options(), both / GRAPH)
    chosen = {"quantize": {"candidates": [{"kept": True, "name": "dynamic int8"}]}}
    manifest = graph.manifest.model_copy(update={"details": {**graph.manifest.details, **chosen}})
    options = {"package": {"store": False, "golden": 16}, "gates": {"max_drop": 1.0}}
    package = packaging.package(job_of("package", Artifact(both, manifest), **options))
    assert {GRAPH, FLOAT_GRAPH} <= set(package.manifest.files)
    found = golden.load(package)
    floating, served = (Predictor.load(package, 1, graph=name) for name in (FLOAT_GRAPH, GRAPH))
    golden.replay(found, served)
    golden.replay(found, floating, "float_predictions")
    task, inputs = served.task, found.items(served.task)
    answers = [floating.predict(inputs), served.predict(inputs)]
    assert found.tolerance == golden.tolerance_of(task, *answers)
    assert max(golden.distances(task, *answers)) > 0

    options["package"]["float_graph"] = False
    package = packaging.package(job_of("package", Artifact(both, manifest), **options))
    assert FLOAT_GRAPH not in package.manifest.files
    assert golden.load(package) == found


def test_the_card_and_the_bentofile_say_what_it_is(packaged):
    _, package = packaged()
    card, manifest = package.file("README.md").read_text(), package.manifest
    value = manifest.step.metrics["test"]["accuracy"]
    for text in (
        "# tiny",
        "negative, positive",
        "float32, onnxruntime",
        f"{manifest.step.parameters:,}",
        "tiny-bert",
        "| increase of the calibration error (validation) | ",
        "- max_drop is 0.0000, allowed 0.0100: passed",
    ):
        assert text in card
    assert f"{value.value:.4f} (95 % interval {value.low:.4f} to {value.high:.4f})" in card
    bento = yaml.safe_load(package.file("bentofile.yaml").read_text())
    assert (bento["service"], bento["name"]) == ("service:service", "tiny")
    assert bento["labels"] == {"task": "text-classification", "key": "k" * 12}


def test_packaging_is_compared_with_the_trained_model(packaged):
    _, package = packaged()
    assert package.manifest.own_details["comparison"]["drop"]["value"] == 0
    assert [verdict["outcome"] for verdict in package.manifest.own_details["verdicts"]] == ["passed"]
    assert package.manifest.own_details["flips"] == []
    assert sum(name.endswith(" tokens") for name in package.manifest.own_details["comparison"]["by_length"]) > 1
    assert set(package.manifest.own_details["test"]) == {"confusion", "labels", "abstention"}


def test_a_label_with_a_bar_does_not_break_the_table_of_the_card(packaged):
    _, package = packaged()
    manifest = package.manifest.model_copy(update={"labels": ("yes|no", "two\nlines")})
    compared = Comparison.model_validate(package.manifest.own_details["comparison"])
    assert "\n| labels | yes\\|no, two lines |\n" in bundle.model_card(manifest, "a|b", compared, ())
    assert "\n| runs as | a\\|b |\n" in bundle.model_card(manifest, "a|b", compared, ())
