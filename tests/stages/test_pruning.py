"""Steps of pruning, one after the other, and what they made on its way to the service."""

import asyncio
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from rows import inputs_of

import deploykit
from deploykit import pipeline, pruners, recipe
from deploykit.artifact import Artifact
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import DataError
from deploykit.inference.predictor import Predictor
from deploykit.modeling import checkpoint, surgery
from deploykit.serving import settings
from deploykit.serving.call import Call, Client
from deploykit.serving.runtime import Runtime
from deploykit.stages import pruning
from deploykit.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread", "few_rounds"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporter's tracer and its imports
]

QUICK = {"epochs": 1, "batch_size": 8, "bf16": "off"}
STEPS = {
    "vocabulary": {"method": "vocabulary"},
    "layers": {"method": "layers", "keep": 2, "distill": QUICK},
    "width": {"method": "width", "keep": 0.5, "distill": QUICK},
}


@pytest.fixture
def parent(tmp_path, tiny_encoder, sealed_checkpoint):
    return sealed_checkpoint(tmp_path / "train", tiny_encoder(layers=3))


@pytest.fixture
def seen(monkeypatch):
    """Every step's model, problem and result."""
    found, load = [], pruners.load

    def wrapped(name):
        method = load(name)

        class Watched:
            @staticmethod
            def prune(model, problem, options, work):
                made = method.prune(model, problem, options, work)
                found.append((model, problem, made))
                return made

        return Watched

    monkeypatch.setattr(pruners, "load", wrapped)
    return found


@pytest.mark.parametrize(
    "order",
    [("vocabulary", "layers", "width"), ("width", "layers", "vocabulary"), ("layers", "vocabulary", "width")],
    ids="-".join,
)
def test_steps_in_any_order_prune_what_the_one_before_made(order, parent, job_of, seen):
    made = pruning.prune(job_of("prune", parent, prune=[STEPS[name] for name in order]))
    assert made.manifest.method == "+".join(order)
    assert [step["method"] for step in made.manifest.own_details["steps"]] == list(order)
    assert [step["method"] for step in made.manifest.options["steps"]] == list(order)
    for (_, _, before), (model, problem, _) in pairwise(seen):
        assert model is before.model
        assert problem.tokenizer.backend.get_vocab_size() == model.config.vocab_size
    loaded, last = checkpoint.load(made.path), seen[-1][2].model
    assert surgery.depths(loaded) == [2]
    assert surgery.shapes(loaded) == surgery.shapes(last)
    assert sum(size.neurons for size in surgery.shapes(loaded)) < 2 * 128
    tokenizer = Tokenizer.load(made.path, 64)
    assert tokenizer.backend.get_vocab_size() == loaded.config.vocab_size < 110
    texts = ["the film is great", "unheard of"]
    batch = tokenizer.collate(tokenizer.encode(texts))
    one, other = (TorchModel(model, Execution(engine="torch")).run(batch)["logits"] for model in (loaded, last))
    np.testing.assert_allclose(one, other, atol=1e-5)
    predictor = Predictor.load(made, 1)
    np.testing.assert_allclose(np.concatenate(predictor.predict(texts)), other, atol=1e-5)


def test_the_teacher_is_the_model_that_came_into_the_stage(parent, job_of, seen, logits_of):
    """It reads the new tokens, computes what it did, and each layer that is left has its place in it."""
    pruning.prune(job_of("prune", parent, prune=[STEPS[name] for name in ("layers", "vocabulary", "width")]))
    whole = checkpoint.load(parent.path)
    (_, first, made), (_, second, _), (_, third, _) = seen
    assert first.teacher.layers == (0, 1, 2)
    assert second.teacher.layers == third.teacher.layers == made.layers
    assert len(made.layers) == 2
    for problem in (first, second, third):
        assert surgery.shapes(problem.teacher.model) == surgery.shapes(whole)
        texts = list(problem.texts[:6])
        for text in texts:
            batch = problem.tokenizer.collate(problem.tokenizer.encode([text]))
            found = TorchModel(problem.teacher.model, Execution(engine="torch")).run(batch)["logits"]
            before = first.tokenizer.collate(first.tokenizer.encode([text]))
            expected = TorchModel(whole, Execution(engine="torch")).run(before)["logits"]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_learning_curves_of_all_steps_are_kept(parent, job_of):
    made = pruning.prune(job_of("prune", parent, prune=[STEPS["layers"], STEPS["width"]]))
    judged = [point for point in made.manifest.own_details["curve"] if point["split"] == "validation"]
    assert len(judged) == 2
    assert all("curve" not in step for step in made.manifest.own_details["steps"])


def test_one_step_is_told_like_several(parent, job_of):
    alone, listed = (
        pruning.prune(job_of("prune", parent, prune=found)) for found in (STEPS["width"], [STEPS["width"]])
    )
    assert alone.manifest.method == listed.manifest.method == "width"
    assert alone.manifest.own_details == listed.manifest.own_details
    for name in ("model.safetensors", "tokenizer.json"):
        assert alone.file(name).read_bytes() == listed.file(name).read_bytes()


def test_a_pruned_model_can_be_pruned_again_without_what_it_had_staying_behind(parent, job_of):
    uneven = pruning.prune(job_of("prune", parent, prune={"method": "width", "keep": 0.5}))
    assert uneven.file("deploykit_arch.json").is_file()
    again = pruning.prune(job_of("prune", uneven, prune=[{"method": "layers", "keep": 1}, STEPS["vocabulary"]]))
    loaded = checkpoint.load(again.path)
    assert surgery.depths(loaded) == [1]
    assert [step.method for step in again.manifest.history][-1] == "layers+vocabulary"


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_recipe, few_rounds):
    """The outcomes of a whole run, of three steps of pruning."""
    steps = [{"method": "vocabulary"}, {"method": "layers", "keep": 1}, {"method": "width", "keep": 0.75}]
    path = tiny_recipe(tmp_path_factory.mktemp("served"), prune=steps, gates={"max_drop": 1})
    return recipe.load(path, ["train.epochs=2"]), deploykit.run(recipe.load(path, ["train.epochs=2"]))


def test_the_new_tokenizer_reaches_the_package(served):
    train, prune, *later = [outcome.artifact for outcome in served[1]]
    content = prune.file("tokenizer.json").read_bytes()
    assert content != train.file("tokenizer.json").read_bytes()
    assert [artifact.manifest.stage for artifact in later] == ["export", "quantize", "package"]
    tokens = json.loads(content)["model"]["vocab"]
    for artifact in later:
        assert artifact.file("tokenizer.json").read_bytes() == content
        assert json.loads(artifact.file("config.json").read_text())["vocab_size"] == len(tokens)
        if artifact.file("vocab.txt").exists():  # the exporter may write it anew
            assert artifact.file("vocab.txt").read_text().split("\n")[:-1] == sorted(tokens, key=tokens.get)


def test_a_model_of_several_steps_is_served(served):
    package = Artifact.load(served[1][-1].artifact.path)
    runtime = Runtime(settings.load_settings(package.path, {"DEPLOYKIT_AUTH": "off"})[0], package, ["/v1/predict"])
    texts = ["the film is great", "words never heard of"]

    async def ask():
        runtime.start()
        try:
            assert runtime.fault == ""
            return await runtime.predict(inputs_of(texts), Call("id", Client("none")))
        finally:
            runtime.close()

    answers = asyncio.run(ask())
    expected = [scores[0].argmax() for scores in Predictor.load(package, 1).predict(texts)]
    assert [answer.label for answer in answers] == [package.manifest.labels[best] for best in expected]


def test_a_decoder_that_classifies_takes_the_whole_path(tmp_path, tiny_recipe, tiny_encoder, tokenizer_folder):
    """Its configuration names no padding token, as that of GPT-2 does not."""
    shutil.copytree(tokenizer_folder, tmp_path / "base")
    checkpoint.save(tiny_encoder("gpt2", layers=3, pad_token_id=None), tmp_path / "base")
    steps = [{"method": "vocabulary"}, {"method": "layers", "keep": 2}, {"method": "width", "keep": 0.75}]
    path = tiny_recipe(tmp_path, model=str(tmp_path / "base"), prune=steps, gates={"max_drop": 1})
    package = deploykit.run(recipe.load(path, ["train.epochs=1"]))[-1].artifact
    assert json.loads(package.file("config.json").read_text())["n_layer"] == 2
    assert package.manifest.history[0].parameters > 1.2 * package.manifest.step.parameters


def test_a_run_of_several_steps_is_skipped_when_it_is_done_and_made_again_when_a_step_changes(served):
    loaded, outcomes = served
    assert [outcome.status for outcome in deploykit.run(loaded)] == ["skipped"] * 5
    changed = recipe.parse({**loaded.model_dump(), "prune": [*loaded.prune[:2], {"method": "width", "keep": 0.5}]})
    assert [found.would for found in pipeline.plan(changed)][:2] == ["be skipped", "run"]
    assert outcomes[1].artifact.manifest.options["steps"][2]["keep"] == 0.75


def test_a_corpus_that_changes_makes_the_stage_anew(tmp_path, tiny_recipe):
    path = tiny_recipe(tmp_path, prune={"method": "vocabulary", "corpus": "corpus.txt"})
    with pytest.raises(DataError, match=r"there is no file .*corpus\.txt"):
        pipeline.plan(recipe.load(path))
    keys = []
    for text in ("one", "one", "two"):
        (tmp_path / "corpus.txt").write_text(text)
        keys.append([found.key for found in pipeline.plan(recipe.load(path))][1])
    assert keys[0] == keys[1] != keys[2]
