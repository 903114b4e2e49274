"""Faults that were planted, one in a sound artifact each, and what must catch it; and that sound ones pass."""

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.artifact import CONFIG, GOLDEN, GRAPH, MANIFEST, TOKENIZER, Artifact, sha256_of
from deploykit.errors import ArtifactError, GateError
from deploykit.inference import golden
from deploykit.stages import exporting, packaging

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_encoder, sealed_checkpoint, job_of):
    """`make(seed) -> package` of a model of its own, by the stages that make every package."""

    def build(seed):
        folder = tmp_path_factory.mktemp("train")
        parent = sealed_checkpoint(folder / "train", tiny_encoder(seed=seed))
        graph = exporting.export(job_of("export", parent))
        return packaging.package(job_of("package", graph, package={"store": False, "golden": 32}))

    return build


@pytest.fixture(scope="module")
def sound(make):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting.hardware, "cpu_limit", lambda: 1)
        return make(0)


@pytest.fixture
def package(sound, tmp_path):
    """A package of one's own."""
    return Artifact.load(shutil.copytree(sound.path, tmp_path / "package"))


@pytest.fixture
def planted(monkeypatch, tiny_encoder, sealed_checkpoint, job_of, tmp_path):
    """`planted(change) -> None`: exports a model, but something changes the graph on its way."""
    write = exporting.write_graph

    def export(change):
        def spoilt(model, folder, *rest):
            write(model, folder, *rest)
            change(folder / GRAPH)

        monkeypatch.setattr(exporting, "write_graph", spoilt)
        exporting.export(job_of("export", sealed_checkpoint(tmp_path / "train", tiny_encoder())))

    return export


def reseal(package, **changes):
    """Writes the hashes of the files as they are now: what somebody does who knows of them and of nothing else."""
    content = json.loads(package.file(MANIFEST).read_text()) | changes
    for name in content["files"]:
        content["files"][name] = {
            "sha256": sha256_of(package.path / name),
            "bytes": (package.path / name).stat().st_size,
        }
    package.file(MANIFEST).write_text(json.dumps(content))


def change_weight(graph, name, change):
    """Changes the one constant of a graph whose name ends so."""
    model = onnx.load(graph)
    (found,) = (constant for constant in model.graph.initializer if constant.name.endswith(name))
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), found.name))
    onnx.save(model, graph)


def scale(graph):
    change_weight(graph, "pooler.dense.weight", lambda weights: weights * np.float32(1.1))


def swap(graph):
    change_weight(graph, "classifier.weight", lambda weights: weights[::-1].copy())


def cut(graph):
    change_weight(graph, "position_embeddings.weight", lambda weights: weights[:32].copy())


def fuse_for_right_padding(graph):
    """Fuses attention as the optimizer does by itself: the mask becomes a number of tokens, counted from the left."""
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(str(graph), model_type="bert", num_heads=4, hidden_size=32, opt_level=0)
    assert fused.get_fused_operator_statistics()["Attention"] == 2
    fused.save_model_to_file(str(graph))


# before packaging: the graph is compared with torch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scale, r"logits differ by .* allowed 1e-03"),
        (swap, r"logits differ by .* allowed 1e-03"),
        (fuse_for_right_padding, r"logits differ by .* \(batch \d, left padding\)"),
        (cut, r"the exported graph fails on 64 tokens: .*indices element out of data bounds"),
    ],
    ids=["scaled-weight", "swapped-labels", "wrong-padding-side", "truncated-positions"],
)
def test_a_graph_that_computes_something_else_is_not_exported(change, message, planted):
    with pytest.raises(GateError, match=message):
        planted(change)


# afterwards, though the hashes were made to fit: the golden set is asked again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scale, "golden answers moved"),
        (swap, "golden answers moved"),
        (cut, "the graph fails on an input of 64 tokens, the most that the manifest names"),
    ],
    ids=["scaled-weight", "swapped-labels", "truncated-positions"],
)
def test_a_graph_that_was_changed_does_not_pass(change, message, package):
    change(package.file(GRAPH))
    reseal(package)
    with pytest.raises(ArtifactError, match=message):
        golden.verify(package.path)


def test_more_tokens_than_the_graph_has_positions_do_not_pass(package):
    reseal(package, max_tokens=66)
    with pytest.raises(ArtifactError, match=r"fails on an input of 66 tokens, .*smaller data\.max_tokens"):
        golden.verify(package.path)


def test_swapped_labels_do_not_pass(package):
    reseal(package, labels=["positive", "negative"])
    with pytest.raises(ArtifactError, match=r"the labels \['negative', 'positive'\], the manifest \['positive', 'neg"):
        golden.verify(package.path)


def test_swapped_labels_of_the_configuration_do_not_pass(package):
    content = json.loads(package.file(CONFIG).read_text())
    package.file(CONFIG).write_text(json.dumps({**content, "id2label": {"0": "positive", "1": "negative"}}))
    reseal(package)
    with pytest.raises(ArtifactError, match=r"the labels \['positive', 'negative'\], the manifest \['negative', 'pos"):
        golden.verify(package.path)


def test_another_tokenizer_does_not_pass(package):
    content = json.loads(package.file(TOKENIZER).read_text())
    words = [word for word in content["model"]["vocab"] if word.isalpha()]
    ids = [content["model"]["vocab"][word] for word in words]
    content["model"]["vocab"] |= dict(zip(words, ids[1:] + ids[:1], strict=True))
    package.file(TOKENIZER).write_text(json.dumps(content))
    reseal(package)
    with pytest.raises(ArtifactError, match="golden answers moved"):
        golden.verify(package.path)


def test_the_golden_set_of_another_model_does_not_pass(package, make):
    shutil.copy(make(1).file(GOLDEN), package.file(GOLDEN))
    reseal(package)
    with pytest.raises(ArtifactError, match="golden answers moved"):
        golden.verify(package.path)


@pytest.mark.parametrize("name", [GRAPH, TOKENIZER, CONFIG, GOLDEN, "deploykit/inference/golden.py"])
def test_a_corrupted_file_is_named(name, package):
    content = bytearray((package.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (package.path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} was changed after it was made"):
        golden.verify(package.path)


# no false alarm


@pytest.mark.parametrize("seed", range(20))
def test_a_sound_model_passes_every_check(seed, make):
    """The stages compare the graph with torch and hold it against the gates, and then the package is verified."""
    package = make(seed)
    golden.verify(package.path)
    (verdict,) = package.manifest.own_details["verdicts"]
    assert (verdict["gate"], verdict["outcome"]) == ("max_drop", "passed")
    assert golden.load(package).tolerance == golden.MIN_TOLERANCE
    assert max(package.manifest.details["export"]["parity"].values()) < 1e-5


def test_hashes_that_were_made_to_fit_are_no_fault(package):
    reseal(package)
    golden.verify(package.path)
