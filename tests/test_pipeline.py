"""The loop over the stages: what is done is skipped, what was killed goes on, what breaks a gate fails."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from models import set_times

import deploykit
from deploykit import pipeline, recipe
from deploykit.artifact import PREDICTIONS, Artifact, sha256_of
from deploykit.errors import ArtifactError, BusyError, GateError, InputError
from deploykit.evaluation import timing
from deploykit.evaluation.workload import HISTOGRAM
from deploykit.recipe import STAGES
from deploykit.stages import run_lock

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporter's tracer and its imports
]


MODEL_FILE = {"checkpoint": "model.safetensors", "onnx": "model.onnx", "package": "model.onnx"}


def predictions(outcomes):
    """Returns the bytes of every stage's predictions: equal means equal to the last bit."""
    return {outcome.artifact.manifest.stage: outcome.artifact.file(PREDICTIONS).read_bytes() for outcome in outcomes}


@pytest.fixture(scope="module", autouse=True)
def steady_clock(tmp_path_factory):
    """The clock decides between graphs that are equally fast, as tiny ones are; here it always says the same."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        set_times(patch, lambda name, _: 2.0 if name.startswith(("base", "float32")) else 1.0)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_recipe, steady_clock):
    """A whole run of the tiny recipe: its folder, its recipe and the outcomes."""
    folder = tmp_path_factory.mktemp("finished")
    loaded = deploykit.load_recipe(tiny_recipe(folder))
    return folder, loaded, deploykit.run(loaded)


def test_refuses_a_stage_that_the_recipe_skips(tmp_path, tiny_recipe):
    loaded = recipe.load(tiny_recipe(tmp_path), ["prune=null"])
    with pytest.raises(InputError, match=r"no stage 'prune'. There are: train, export, quantize, package"):
        pipeline.run(loaded, first="prune")


def test_a_project_that_moves_keeps_its_artifacts_and_a_changed_file_makes_new_ones(tmp_path, tiny_recipe):
    """Files that options name are known by what they hold, as the data is."""
    prune = [{"method": "vocabulary", "corpus": "corpus.txt"}, {"method": "width", "keep": 0.5}]
    page = f'# TYPE {HISTOGRAM} histogram\n{HISTOGRAM}_bucket{{le="8"}} 3\n{HISTOGRAM}_bucket{{le="+Inf"}} 3\n'
    sections = {"prune": prune, "quantize": {"method": "auto", "lengths": "metrics.txt"}, "output": "out"}

    def keys(name, corpus="the film"):
        path = tiny_recipe(tmp_path / name, **sections)
        (tmp_path / name / "corpus.txt").write_text(corpus)
        (tmp_path / name / "metrics.txt").write_text(page)
        return {planned.stage: planned.key for planned in pipeline.plan(recipe.load(path))}

    here = keys("here")
    assert keys("there") == here
    changed = keys("there", corpus="another film")
    assert changed["train"] == here["train"]
    assert changed["prune"] != here["prune"]


def test_refuses_a_stage_whose_parents_are_missing(tmp_path, tiny_recipe):
    with pytest.raises(InputError, match=r"export starts from train, which is not finished. Run deploykit run first"):
        deploykit.export(recipe.load(tiny_recipe(tmp_path)))


def test_refuses_a_directory_in_which_another_run_works(tmp_path, tiny_recipe):
    loaded = recipe.load(tiny_recipe(tmp_path))
    folder = pipeline.output_folder(loaded)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=rf"another run \(process {holder.pid}\) is working in .*Wait for it, or"):
            pipeline.run(loaded)
    finally:
        holder.communicate("")
    with run_lock.locked(folder):  # and it is free again once that process has ended
        pass


def test_a_run_that_ends_in_a_moment_is_waited_for(tmp_path):
    file = tmp_path / run_lock.LOCK_FILE
    file.touch()
    descriptor = os.open(file, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(run_lock.LOCK_TIMEOUT_S / 4, os.close, [descriptor]).start()
    with run_lock.locked(tmp_path):
        assert json.loads(file.read_text()) == {"pid": os.getpid()}


HOLD = """
import sys
from pathlib import Path
from deploykit.stages.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_all_times_of_a_manifest_are_measured_together(tmp_path, tiny_recipe, finished, monkeypatch):
    """At each stage anew, so that those that a report sets side by side are of the same minutes."""
    together = []

    def typical(predictors, examples):
        together.append([(name, predictor.engine.execution.engine) for name, predictor in predictors.items()])
        return {name: 10.0 * len(together) + place for place, name in enumerate(predictors)}, 0.25

    monkeypatch.setattr(timing, "typical_latencies", typical)
    loaded = recipe.load(tiny_recipe(tmp_path))
    folder = pipeline.output_folder(loaded)
    for outcome in finished[2][:3]:
        shutil.copytree(outcome.artifact.path, folder / outcome.artifact.path.name)
    outcomes = pipeline.run(loaded)
    engines = [("train", "torch"), ("prune", "torch"), ("export", "onnxruntime"), ("quantize", "onnxruntime")]
    assert together == [engines, [*engines, ("package", "onnxruntime")]]
    last = outcomes[-1].artifact.manifest
    assert [step.p50_ms for step in last.history] == [20.0, 21.0, 22.0, 23.0, 24.0]
    assert {step.waited_share for step in last.history} == {0.25}
    page = (folder / "report.html").read_text()
    assert "<strong>24.0 ms</strong>p50 of one text; 20.0 ms in torch, on a busy machine" in page
    assert "measured in turn, at the stage package, while other processes used the cores for 25% of the time" in page


def test_keeps_what_a_gate_stopped_and_names_it(tmp_path, tiny_recipe, finished):
    """The pruned model of another run, whose manifest is made to say that it lost a third."""
    loaded = recipe.load(tiny_recipe(tmp_path))
    folder = pipeline.output_folder(loaded)
    for outcome in finished[2][:2]:
        shutil.copytree(outcome.artifact.path, folder / outcome.artifact.path.name)
    pruned = folder / finished[2][1].artifact.path.name
    content = json.loads((pruned / "manifest.json").read_text())
    content["details"]["prune"]["comparison"]["drop"] = {"value": 0.3333, "low": 0.25, "high": 0.4}
    (pruned / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(GateError, match=r"a gate stops prune.*:\n  max_drop is 0\.3333 .*: failed\n") as caught:
        pipeline.run(loaded)
    assert caught.value.exit_code == 1
    assert f"kept in {pruned}" in str(caught.value)
    Artifact.load(pruned).verify()
    assert [found.name for found in folder.iterdir() if found.is_symlink()] == ["train"]
    assert (folder / "report.html").is_file()


def test_too_few_rows_to_tell_stop_the_run_unless_the_recipe_accepts_them(tmp_path, tiny_recipe, finished):
    path = tiny_recipe(tmp_path)
    folder = pipeline.output_folder(recipe.load(path))
    for outcome in finished[2][:2]:
        shutil.copytree(outcome.artifact.path, folder / outcome.artifact.path.name)
    manifest = folder / finished[2][1].artifact.path.name / "manifest.json"
    content = json.loads(manifest.read_text())
    content["details"]["prune"]["comparison"]["drop"] = {"value": 0.05, "low": -0.05, "high": 0.15}
    manifest.write_text(json.dumps(content))
    with pytest.raises(
        GateError, match=r"inconclusive with 60 rows, about 240 would be enough\n.*set gates\.inconclusive: accept"
    ):
        pipeline.run(recipe.load(path, ["gates.inconclusive=stop"]), until="prune")
    html = (folder / "report.html").read_text()
    assert "inconclusive with 60 rows, about 240 would be enough<" in html
    outcomes = pipeline.run(recipe.load(path), until="prune")
    assert [outcome.status for outcome in outcomes] == ["skipped", "skipped"]
    assert "inconclusive with 60 rows, about 240 would be enough; accepted<" in (folder / "report.html").read_text()


def test_does_not_package_what_is_worse_than_the_trained_model(tmp_path, tiny_recipe, finished):
    """Each stage keeps its gate, but together they lose more than the recipe allows."""
    folder = pipeline.output_folder(recipe.load(tiny_recipe(tmp_path)))
    shutil.copytree(finished[0] / "runs/tiny", folder, symlinks=True)
    (quantized,) = folder.glob("quantize-*")
    with np.load(quantized / PREDICTIONS) as arrays:
        changed = {name: -array if name == "validation/scores" else array for name, array in arrays.items()}
    np.savez_compressed(quantized / PREDICTIONS, **changed)
    content = json.loads((quantized / "manifest.json").read_text())
    content["files"][PREDICTIONS] = {
        "sha256": sha256_of(quantized / PREDICTIONS),
        "bytes": (quantized / PREDICTIONS).stat().st_size,
    }
    (quantized / "manifest.json").write_text(json.dumps(content))
    shutil.rmtree(next(folder.glob("package-*")))
    with pytest.raises(GateError, match=r"a gate stops the package.*:\n  max_drop is .*: failed\n"):
        pipeline.run(recipe.load(tiny_recipe(tmp_path)))
    assert not list(folder.glob("package-*"))


def test_learns_and_loses_little(finished):
    _, _, outcomes = finished
    assert [outcome.artifact.manifest.stage for outcome in outcomes] == list(STAGES)
    values = [outcome.artifact.manifest.step.metrics["test"]["accuracy"].value for outcome in outcomes]
    assert values[0] > 0.9
    assert min(values) > values[0] - 0.1
    sizes = [outcome.artifact.manifest.step.parameters for outcome in outcomes]
    assert sizes[1] < sizes[0]


def test_history_and_reference_travel_to_the_package(finished):
    _, _, outcomes = finished
    package = outcomes[-1].artifact
    assert [step.stage for step in package.manifest.history] == list(STAGES)
    with np.load(outcomes[0].artifact.file(PREDICTIONS)) as trained, np.load(package.file(PREDICTIONS)) as packaged:
        assert np.array_equal(trained["test/scores"], packaged["reference.test/scores"])


def test_second_run_skips_everything(finished):
    _, loaded, outcomes = finished
    again = deploykit.run(loaded)
    assert [outcome.status for outcome in again] == ["skipped"] * len(STAGES)
    assert [a.artifact.path for a in again] == [b.artifact.path for b in outcomes]


def test_a_changed_section_reruns_from_its_stage_and_keeps_the_old(finished):
    _, loaded, outcomes = finished
    changed = recipe.parse({**loaded.model_dump(), "export": {"opset": 17}})
    states = {found.stage: found.would for found in pipeline.plan(changed)}
    assert states == dict(zip(STAGES, ["be skipped", "be skipped", "run", "run", "run"], strict=True))
    deploykit.run(changed, until="export")
    assert outcomes[2].artifact.path.is_dir()
    assert (pipeline.output_folder(loaded) / "export").resolve() != outcomes[2].artifact.path.resolve()


def test_from_makes_again_with_the_same_result(finished):
    _, loaded, outcomes = finished
    again = pipeline.run(loaded, first="quantize", until="quantize")
    assert [outcome.status for outcome in again] == ["skipped"] * 3 + ["ran"]
    assert predictions(again)["quantize"] == predictions(outcomes)["quantize"]


def test_refuses_a_damaged_artifact_and_names_the_file(tmp_path, tiny_recipe):
    loaded = recipe.load(tiny_recipe(tmp_path), ["train.epochs=1"])
    (outcome,) = pipeline.run(loaded, until="train")
    weights = outcome.artifact.file("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed after it was made"):
        pipeline.run(loaded, until="train")


def test_token_classification_runs_the_same_path(tmp_path, tiny_recipe):
    path = tiny_recipe(tmp_path, task="token-classification", prune=None)
    outcomes = deploykit.run(recipe.load(path, ["train.epochs=60"]))
    values = [outcome.artifact.manifest.step.metrics["test"]["entity_f1"].value for outcome in outcomes]
    assert values[0] > 0.8
    assert min(values) > values[0] - 0.1


def test_a_new_head_is_that_of_the_seed(tmp_path, tiny_recipe, tiny_model):
    """Whatever was drawn before in the same process; another seed draws another head."""
    import torch
    import transformers

    tiny_model(tmp_path / "whole")
    headless = transformers.BertModel.from_pretrained(tmp_path / "whole", add_pooling_layer=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "base")
    headless.save_pretrained(tmp_path / "base")
    found = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tiny_recipe(tmp_path / folder, model=str(tmp_path / "base"), seed=seed)
        found.append(predictions(pipeline.run(recipe.load(path, ["train.epochs=1"]), until="train")))
        torch.rand(3)
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_what_was_made_from_another_parent_is_made_again(finished):
    """The same key, but the graph before it is not the one that it was made from."""
    _, loaded, outcomes = finished
    manifest = outcomes[4].artifact.path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "parent_digest": "another"}))
    assert [outcome.status for outcome in deploykit.run(loaded)] == ["skipped"] * 4 + ["ran"]


def test_the_package_is_in_the_store_even_when_the_stage_is_skipped(finished):
    import bentoml

    _, loaded, _ = finished
    tag = f"tiny:{deploykit.run(loaded)[-1].artifact.digest[:12]}"
    stored = bentoml.models.get(tag)
    (Path(stored.path) / "model.onnx").write_bytes(b"half")
    package = deploykit.run(loaded)[-1].artifact
    again = Artifact.load(bentoml.models.get(tag).path)
    again.verify()
    assert again.file("model.onnx").read_bytes() == package.file("model.onnx").read_bytes()


def test_trained_elsewhere_is_taken_as_it_is(tmp_path, tiny_recipe, finished):
    trained = finished[2][0].artifact
    loaded = recipe.load(tiny_recipe(tmp_path, train=None, prune=None, model=str(trained.path)))
    outcomes = pipeline.run(loaded, until="export")
    assert outcomes[0].artifact.manifest.method == "none"
    with np.load(trained.file(PREDICTIONS)) as before, np.load(outcomes[0].artifact.file(PREDICTIONS)) as after:
        assert np.array_equal(before["test/scores"], after["test/scores"])


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage_it_ends_with_the_same_predictions(stage, tmp_path, tiny_recipe, finished):
    path = tiny_recipe(tmp_path)
    planned = {found.stage: found for found in pipeline.plan(recipe.load(path))}
    before = finished[2][: STAGES.index(stage)]
    folder = pipeline.output_folder(recipe.load(path))
    folder.mkdir(parents=True)
    for outcome in before:  # what the other run finished before this stage is as good here
        subprocess.run(["cp", "-r", outcome.artifact.path, folder], check=True)

    command = [sys.executable, "-m", "deploykit", "run", str(path), "--until", stage]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        name = planned[stage].target.name
        fits = stage in ("train", "prune")  # killed after the first epoch; the others when they begin to write
        sign = f".work/{name}/**/checkpoint-*/trainer_state.json" if fits else f".{name}.draft"
        while process.poll() is None and not list(folder.glob(sign)):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (planned[stage].target / "manifest.json").exists(), "the kill came too late to test anything"

    last = "package" if stage == "train" else stage  # a later stage starts from the same files, so once is enough
    outcomes = deploykit.run(recipe.load(path), until=last)
    assert [outcome.status for outcome in outcomes][: len(before)] == ["skipped"] * len(before)
    for again, whole in zip(outcomes, finished[2], strict=stage in ("train", "package")):
        assert predictions([again]) == predictions([whole])
        weights = MODEL_FILE[again.artifact.manifest.kind]
        assert again.artifact.file(weights).read_bytes() == whole.artifact.file(weights).read_bytes()
    assert not [found for found in folder.iterdir() if found.name.endswith(".draft")]


def test_lock_survives_a_kill(tmp_path):
    """The system lets go of the lock, so a file that is left behind locks nothing."""
    (tmp_path / run_lock.LOCK_FILE).write_text(json.dumps({"pid": 1}))
    with run_lock.locked(tmp_path), (tmp_path / run_lock.LOCK_FILE).open() as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
