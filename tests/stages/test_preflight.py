"""What cannot end well is refused before anything is trained."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from rows import spec_of

from deploykit import pipeline, recipe
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import ModelError
from deploykit.graphs import export
from deploykit.modeling import base_model, base_tokenizer, checkpoint
from deploykit.modeling.architectures import POSITIONS_AFTER_PADDING
from deploykit.modeling.finetuning import Trainer
from deploykit.stages import preflight

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO = "AutoModelForSequenceClassification"
LABELS = ("negative", "positive")
SIZES = {
    **{"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 1},
    **{"max_position_embeddings": 34, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
}
OWN = {"esm": {"mask_token_id": 4, "position_embedding_type": "absolute"}, "longformer": {"attention_window": 4}}


@pytest.fixture
def base_of(tmp_path, tokenizer_folder, tokenizer):
    """`base_of(kind="bert", **config) -> Base` with a new model of one layer, and a tokenizer that sets no limit."""

    def build(kind="bert", **config):
        folder = tmp_path / "base"
        shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["model_max_length"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        values = {**SIZES, **OWN.get(kind, {}), "vocab_size": tokenizer.backend.get_vocab_size(), **config}
        torch.manual_seed(0)
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(kind, **values, **names)
        )
        checkpoint.save(model, folder)
        return base_model.resolve(str(folder))

    return build


def edit(base, **values):
    content = json.loads((base.folder / "config.json").read_text())
    (base.folder / "config.json").write_text(json.dumps({**content, **values}))


def tried(base, folder, *, pair=False, max_tokens=None):
    """Opens a base model as the stage train does and tries it out."""
    preflight.check(base, AUTO, max_tokens, is_exported_whole=True)
    tokenizer = base_tokenizer.save(base, folder / "out", max_tokens)
    model = base_model.open_base(base, AUTO, LABELS, fine_tuned=True, pad_id=tokenizer.pad_id)
    preflight.try_out(model, tokenizer, base.name, is_pair=pair)
    return model, tokenizer


# refusals


def test_a_token_without_an_embedding_is_refused(base_of, tmp_path, tokenizer):
    count = tokenizer.backend.get_vocab_size()
    base = base_of()
    backend = json.loads((base.folder / "tokenizer.json").read_text())
    token = {"id": count, "content": "blorf", "special": False}
    backend["added_tokens"].append(token | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False))
    (base.folder / "tokenizer.json").write_text(json.dumps(backend))
    message = (
        rf"the token 'blorf' at {count}, and embeddings for {count} tokens only \(1 tokens have none\)\."
        rf" Call resize_token_embeddings\({count + 1}\) on the model and save it"
    )
    with pytest.raises(ModelError, match=message) as caught:
        preflight.check(base, AUTO, None, is_exported_whole=True)
    assert caught.value.exit_code == 2
    model, tokenizer = (
        base_model.open_base(base, AUTO, LABELS, fine_tuned=True),
        base_tokenizer.save(base, tmp_path / "out"),
    )
    with pytest.raises(ModelError, match=message):
        preflight.try_out(model, tokenizer, base.name, is_pair=False)


def test_a_text_that_is_longer_than_the_positions_is_refused(base_of, tokenizer):
    base = base_of()
    model = base_model.open_base(base, AUTO, LABELS, fine_tuned=True)
    with pytest.raises(
        ModelError, match=r"fails on an input of 64 tokens, the longest .* Set data\.max_tokens to what"
    ):
        preflight.try_out(model, tokenizer, base.name, is_pair=False)
    assert not model.training


def test_a_second_type_of_token_that_the_model_does_not_have_is_refused(base_of, tmp_path):
    base = base_of(type_vocab_size=1)
    model, tokenizer = tried(base, tmp_path, pair=True)  # which tells none apart
    told = type(tokenizer)(tokenizer.backend, tokenizer.pad_id, "right", tokenizer.unknown_id, tokenizer.max_tokens)
    preflight.try_out(model, told, base.name, is_pair=False)
    with pytest.raises(ModelError, match=r"fails on an input of 34 tokens"):
        preflight.try_out(model, told, base.name, is_pair=True)


@pytest.mark.parametrize("values", [{"vocab_size": 4_200_000, "hidden_size": 128}, {"intermediate_size": 9_000_000}])
def test_a_model_that_does_not_fit_one_file_is_refused_without_being_made(values, base_of):
    base = base_of()
    edit(base, **values)
    with pytest.raises(ModelError, match=r"has 2\.\d\d GB of weights in float32, and graphs of 2 GB and more are not"):
        preflight.check(base, AUTO, None, is_exported_whole=True)
    preflight.check(base, AUTO, None, is_exported_whole=False)


def test_a_model_of_another_kind_than_the_task_is_refused(base_of):
    base = base_of()
    edit(base, model_type="marian", d_model=32)
    with pytest.raises(ModelError, match=rf"cannot be loaded as {AUTO}: .*'marian' have no such head.* Check that"):
        preflight.check(base, AUTO, None, is_exported_whole=True)


def test_a_pruned_model_is_counted_by_its_files(base_of):
    base = base_of()
    (base.folder / "deploykit_arch.json").write_text("{}")
    stored = checkpoint.load_file(base.folder / "model.safetensors")
    assert preflight.count_stored_parameters(base.folder) == sum(tensor.numel() for tensor in stored.values())
    preflight.check(base, AUTO, None, is_exported_whole=True)


@pytest.mark.parametrize("train", [None, {"method": "full", "epochs": 1}])
def test_a_type_that_cannot_be_exported_is_refused_before_the_first_step(train, tiny_recipe, tmp_path, monkeypatch):
    """No type is known that the exporter fails on: it is made to."""
    monkeypatch.setattr(export, "TESTED_MODEL_TYPES", set())
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("it was trained"))

    def fail(*_):
        raise RuntimeError("unsupported operator\nand more")

    monkeypatch.setattr(export, "write_graph", fail)
    found = recipe.load(tiny_recipe(tmp_path, train=train, prune=None, output=str(tmp_path / "runs")))
    message = r"cannot be exported to ONNX: models of type 'bert' fail with RuntimeError: unsupported operator\. Choose"
    with pytest.raises(ModelError, match=message):
        pipeline.run(found, until="train")


def test_a_graph_of_an_unknown_type_that_computes_something_else_is_refused(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TESTED_MODEL_TYPES", set())
    options = {"prune": None, "export": {"tolerance": 1e-12}, "output": str(tmp_path / "runs")}
    found = recipe.load(tiny_recipe(tmp_path, **options))
    with pytest.raises(ModelError, match=r"the graph of this 'bert' model differs from torch by \S+, allowed 1e-12"):
        pipeline.run(found, until="train")


def test_the_plan_refuses_what_the_run_would(tiny_recipe, tmp_path, base_of):
    base = base_of()
    file = tiny_recipe(tmp_path / "recipe", model=str(base.folder), prune=None)
    pipeline.plan(recipe.load(file))
    edit(base, vocab_size=50)
    with pytest.raises(ModelError, match=r"embeddings for 50 tokens only"):
        pipeline.plan(recipe.load(file))


# what works


@pytest.mark.parametrize("kind", sorted(POSITIONS_AFTER_PADDING - {"ibert", "luke", "mluke", "markuplm", "lilt"}))
def test_positions_after_padding_are_not_read(kind, base_of, tmp_path):
    """The longest text that is read ends at the last position: one more would fail."""
    config = {"default_language": "en_XX", "languages": ["en_XX"]} if kind == "xmod" else {}
    model, tokenizer = tried(base_of(kind, **config), tmp_path)
    assert tokenizer.max_tokens == 32
    if kind != "longformer":  # which pads to its window by itself
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 33), 7))


@pytest.mark.parametrize("kind", ["roberta", "camembert", "xlm-roberta"])
def test_a_model_without_a_padding_id_counts_positions_from_the_tokenizers(kind, base_of, tmp_path):
    base = base_of(kind, pad_token_id=0)
    expected = base_model.open_base(base, AUTO, LABELS, fine_tuned=True)
    edit(base, pad_token_id=None)
    model, tokenizer = tried(base, tmp_path)
    assert (model.config.pad_token_id, tokenizer.max_tokens) == (0, 33)
    batch = tokenizer.collate(tokenizer.encode(["the film is great", "awful"]))
    one, other = (TorchModel(found, Execution(engine="torch")).run(batch)["logits"] for found in (expected, model))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["ernie", "roformer", "nystromformer", "mobilebert", "rembert"])
def test_types_that_no_exporter_was_written_for_are_tried(kind, base_of, tmp_path, dataset_of):
    from deploykit import tasks
    from deploykit.inference.predictor import Predictor
    from deploykit.recipe import ExportSection

    base = base_of(kind, **{"input_embedding_size": 32} if kind == "rembert" else {})
    model, tokenizer = tried(base, tmp_path)
    task = tasks.load("text-classification")
    predictor = Predictor(task, spec_of(LABELS), tokenizer, TorchModel(model, Execution(engine="torch")))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    preflight.try_export(predictor, model, dataset_of().validation, ExportSection(), base.name)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
