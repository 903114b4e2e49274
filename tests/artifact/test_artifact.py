import json
import re

import numpy as np
import pytest
from pydantic import ValidationError

from deploykit import artifact, tasks
from deploykit.artifact import Artifact, directory
from deploykit.errors import ArtifactError, StorageError


@pytest.fixture
def sealed(tmp_path, tiny_artifact):
    return tiny_artifact(tmp_path / "export")


def rewrite(found, **changes):
    content = json.loads(found.file("manifest.json").read_text())
    found.file("manifest.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("name", ["", "nothing", "file"])
def test_a_directory_without_a_manifest_is_no_artifact(tmp_path, name):
    (tmp_path / "file").write_text("x")
    path = tmp_path / name
    with pytest.raises(
        ArtifactError, match=rf"^{re.escape(str(path))} is not an artifact: it has no manifest\.json\. Give"
    ):
        Artifact.load(path)


@pytest.mark.parametrize("content", [b'{"kind": ', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_parsed_is_damaged(sealed, content):
    sealed.file("manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"/manifest\.json cannot be read \(.*\)\. Build the artifact again\.$"):
        Artifact.load(sealed.path)


def test_an_artifact_of_a_newer_format_is_refused_before_its_fields_are_read(sealed):
    rewrite(sealed, format_version=5, something="new")
    with pytest.raises(ArtifactError, match=r"export has format version 5, and this deploykit reads 4\. Upgrade"):
        Artifact.load(sealed.path)


def test_an_artifact_of_a_format_that_is_no_longer_read_is_refused(sealed):
    rewrite(sealed, format_version=1)
    with pytest.raises(ArtifactError, match=r"format version 1, .*this one reads 2 to 4\. Run the recipe again\.$"):
        Artifact.load(sealed.path)


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, "float32"),
        ({"quantize": {"candidates": [{"kept": False, "precision": "int8"}]}}, "float32"),  # none passed
        ({"quantize": {"candidates": [{"kept": True, "precision": "int8"}]}}, "int8"),
        (
            {
                "quantize": {"candidates": [{"kept": True, "precision": "int8"}]},
                "retune": {"candidates": [{"kept": True, "precision": "float16"}]},
            },
            "float16",
        ),
    ],
)
def test_format_2_left_the_precision_of_the_weights_to_the_candidates(sealed, details, expected):
    content = json.loads(sealed.file("manifest.json").read_text())
    del content["weights_precision"]
    sealed.file("manifest.json").write_text(json.dumps({**content, "format_version": 2, "details": details}))
    assert Artifact.load(sealed.path).manifest.weights_precision == expected


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("serve", "windows"), [({}, 16), ({"max_windows": 3, "timeout_s": 5}, 3)])
def test_formats_2_and_3_had_the_windows_of_a_text_among_the_options_of_the_service(sealed, version, serve, windows):
    content = json.loads(sealed.file("manifest.json").read_text())
    del content["task_options"]
    sealed.file("manifest.json").write_text(json.dumps({**content, "format_version": version, "serve": serve}))
    manifest = Artifact.load(sealed.path).manifest
    assert manifest.task_options == {"max_windows": windows}
    assert manifest.serve.timeout_s == serve.get("timeout_s", artifact.ServeOptions().timeout_s)


@pytest.mark.parametrize("serve", [3, "max_windows", None, []])
def test_a_service_section_of_format_3_that_makes_no_sense_is_damage(sealed, serve):
    rewrite(sealed, format_version=3, serve=serve)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        Artifact.load(sealed.path)


@pytest.mark.parametrize("details", [{"quantize": 1}, {"quantize": {"candidates": 3}}, {"retune": {"candidates": [1]}}])
def test_details_of_format_2_that_make_no_sense_are_damage(sealed, details):
    rewrite(sealed, format_version=2, details=details)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: details"):
        Artifact.load(sealed.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 3}, r"manifest\.json is damaged: labels: Input should be a valid tuple"),
        ({"history": []}, r"manifest\.json is damaged: history: Tuple should have at least 1 item"),
        ({"extra": 1}, r"manifest\.json is damaged: extra: Extra inputs are not permitted"),
        ({"serve": {"timeout_s": 0}}, r"manifest\.json is damaged: serve\.timeout_s: Input should be greater than 0"),
        ({"kind": "zip"}, r"manifest\.json is damaged: kind: Input should be 'checkpoint', 'onnx' or 'package'"),
    ],
)
def test_a_manifest_with_a_wrong_field_names_it(sealed, changes, message):
    rewrite(sealed, **changes)
    with pytest.raises(ArtifactError, match=message):
        Artifact.load(sealed.path)


def test_a_manifest_that_is_a_list_is_damaged(sealed):
    sealed.file("manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"is damaged: the file: Input should be"):
        Artifact.load(sealed.path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "tokenizer_config.json"])
def test_a_flipped_bit_names_the_file(sealed, name):
    content = bytearray(sealed.file(name).read_bytes())
    content[len(content) // 2] ^= 1
    sealed.file(name).write_bytes(content)
    with pytest.raises(
        ArtifactError, match=rf"export/{re.escape(name)} was changed after it was made: sha256 \w{{12}}…, expected"
    ):
        sealed.verify()


def test_a_missing_and_an_added_file_are_named(sealed):
    (sealed.path / "code").mkdir()
    (sealed.path / "code" / "extra.py").write_text("")
    with pytest.raises(
        ArtifactError, match=r"holds a file that the manifest does not name: code/extra\.py\. Remove it"
    ):
        sealed.verify()
    sealed.file("model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"export lacks the file model\.onnx\. Restore it, or build"):
        sealed.verify()


def test_a_link_to_a_directory_is_an_added_file(sealed, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (sealed.path / "bentoml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"a file that the manifest does not name: bentoml\. Remove it"):
        sealed.verify()


def test_what_running_a_package_leaves_beside_it_is_no_added_file(sealed):
    (sealed.path / "deploykit" / "__pycache__").mkdir(parents=True)
    (sealed.path / "deploykit" / "__pycache__" / "errors.pyc").write_bytes(b"")
    sealed.verify()
    (sealed.path / "deploykit" / "errors.py").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"a file that the manifest does not name: deploykit/errors\.py"):
        sealed.verify()


def test_a_sealed_artifact_loads_as_it_was_made(sealed):
    loaded = Artifact.load(str(sealed.path))
    assert loaded == sealed
    loaded.verify()
    entry = loaded.manifest.files["model.onnx"]
    assert entry.bytes == sealed.file("model.onnx").stat().st_size
    assert entry.sha256 == artifact.sha256_of(sealed.file("model.onnx"))
    assert set(loaded.manifest.files) == {"model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert loaded.manifest.step.stage == "export"
    assert [file.name for file in sealed.path.parent.iterdir()] == ["export"]


def test_a_manifest_is_frozen(sealed):
    with pytest.raises(ValidationError, match="Instance is frozen"):
        sealed.manifest.seed = 1


def test_a_draft_that_fails_leaves_nothing_and_keeps_the_older_artifact(sealed, tiny_artifact):
    def fail(_):
        raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError, match="the stage failed"):
        tiny_artifact(sealed.path, fill=fail)
    assert [file.name for file in sealed.path.parent.iterdir()] == ["export"]
    assert Artifact.load(sealed.path) == sealed


def test_a_draft_does_not_see_what_a_killed_run_left(tmp_path):
    (tmp_path / ".train.draft").mkdir()
    (tmp_path / ".train.draft" / "half").write_text("x")
    with artifact.draft(tmp_path / "train") as folder:
        assert list(folder.iterdir()) == []


def test_a_draft_on_a_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(StorageError, match=r"no space left on the disk while writing"), artifact.draft(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_new_artifact_replaces_the_older_one(sealed, tiny_artifact):
    newer = tiny_artifact(sealed.path, fill=lambda folder: (folder / "note").write_text("x"), name="other")
    assert Artifact.load(sealed.path) == newer
    assert newer.manifest.name == "other"
    assert "note" in newer.manifest.files


def test_the_manifest_is_written_last(tmp_path, tiny_artifact):
    target, seen = tmp_path / "a", []
    found = tiny_artifact(target, fill=lambda folder: seen.append(artifact.is_finished(folder) or target.exists()))
    assert seen == [False]
    assert artifact.is_finished(target)
    newest = max(found.path.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert newest.name == "manifest.json"


BASE = {"parent": "p", "stage": "train", "method": "full", "options": {"a": 1, "b": 2}, "data": "d", "seed": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"parent": "q"},
        {"stage": "prune"},
        {"method": "lora"},
        {"options": {"a": 1, "b": 3}},
        {"options": {"a": 1}},
        {"data": "e"},
        {"seed": 1},
    ],
    ids=str,
)
def test_the_key_changes_with_everything_that_decides_a_result(change):
    assert artifact.content_key(**{**BASE, **change}) != artifact.content_key(**BASE)


def test_the_key_does_not_depend_on_the_order_of_options_and_does_on_the_format(monkeypatch):
    before = artifact.content_key(**BASE)
    assert artifact.content_key(**{**BASE, "options": {"b": 2, "a": 1}}) == before
    monkeypatch.setattr(directory, "FORMAT_VERSION", artifact.FORMAT_VERSION + 1)
    assert artifact.content_key(**BASE) != before


def test_predictions_come_back_as_they_were_without_pickle(tmp_path, tiny_artifact):
    generator = np.random.default_rng(0)
    splits = {
        "validation": {"scores": generator.normal(size=(7, 3)).astype(np.float32), "lengths": np.array([1, 4, 2])},
        "reference.test": {"scores": np.ones((2, 3), dtype=np.float32), "lengths": np.array([0, 2])},
        "test": {"boxes": generator.normal(size=(2, 5, 4)), "is_cut": np.array([True, False])},
    }
    found = tiny_artifact(tmp_path / "a", fill=lambda folder: artifact.save_predictions(folder, splits))
    loaded = artifact.load_predictions(found)
    assert list(loaded) == list(splits)
    for split, arrays in splits.items():
        assert list(loaded[split]) == list(arrays)
        for name, array in arrays.items():
            assert loaded[split][name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[split][name], array)


def test_predictions_of_older_formats_are_read_as_the_task_stores_them_now(tmp_path, tiny_artifact):
    rows = [np.full((units, 3), units, dtype=np.float32) for units in (1, 4, 2)]
    arrays = {"validation": np.concatenate(rows), "validation.lengths": np.array([1, 4, 2])}
    arrays |= {f"reference.{name}": array for name, array in arrays.items()}

    def fill(folder):
        np.savez_compressed(folder / "predictions.npz", **arrays)

    loaded = artifact.load_predictions(tiny_artifact(tmp_path / "a", fill=fill))
    assert list(loaded) == ["validation", "reference.validation"]
    for split in loaded.values():
        found = tasks.load("token-classification").load(split)
        assert all(np.array_equal(one, other) for one, other in zip(found, rows, strict=True))
