import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import ENCODERS, LABELS, TASKS, VARIANTS, uneven

from deploykit.errors import ModelError
from deploykit.modeling import base_model, base_tokenizer, checkpoint, surgery
from deploykit.modeling.surgery import KeptUnits, Shape

KEPT = (KeptUnits(heads=(1,), neurons=tuple(range(64))), KeptUnits(heads=(0, 2, 3), neurons=tuple(range(128))))
AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}


@pytest.fixture
def base(tmp_path, tiny_model):
    """A fine-tuned text classifier on disk, as `find` sees it."""
    return base_model.resolve(str(tiny_model(tmp_path / "base")))


# finding a base model


@pytest.mark.parametrize("reference", ["./nothing", "/no/such/place", "runs/model/nothing"])
def test_a_missing_directory_is_refused(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=f"^the model directory {reference} does not exist\\. Give a directory, package"
    ):
        base_model.resolve(reference)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"is no model directory: expected config\.json and model\.safetensors, found nothing\."
    ):
        base_model.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_without_configuration_or_safetensors_is_refused(name, base):
    (base.folder / name).unlink()
    with pytest.raises(ModelError, match=rf"expected config\.json and model\.safetensors, found (?!.*{name},)"):
        base_model.resolve(base.name)


def test_pickled_weights_are_not_read(base, monkeypatch):
    (base.folder / "model.safetensors").unlink()
    torch.save({}, base.folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    message = r"found .*pytorch_model\.bin.*\. Pickled weights \(pytorch_model\.bin\) are not read: save the model with"
    with pytest.raises(ModelError, match=message):
        base_model.resolve(base.name)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "package://no_such_package/model",
            r"the package 'no_such_package' is not installed\. .* 'no-such-package'\.$",
        ),
        ("package://../etc/passwd", r"the package '\.\.' is not installed"),
        ("package://", r"the package '' is not installed"),
        ("package://json.decoder/x", r"the package 'json\.decoder' is not installed"),
        ("package://this/model", r"the package 'this' is not installed"),
        ("package://json/nothing", r"the package 'json' has no directory 'nothing'\.$"),
    ],
)
def test_an_unknown_package_or_directory_in_it_is_refused(reference, message, capsys):
    with pytest.raises(ModelError, match=f"^{re.escape(reference)}: {message}"):
        base_model.resolve(reference)
    assert capsys.readouterr().out == ""  # nothing was imported to look


def test_an_id_that_the_hub_does_not_give_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base_model, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(
        ModelError,
        match=r"^the model 'some/model' is no directory here, and it could not be downloaded from the hub \(O",
    ):
        base_model.resolve("some/model")


def test_a_model_is_found_in_a_package_and_in_a_directory_with_the_same_fingerprint(base, tmp_path, monkeypatch):
    package = tmp_path / "tiny_package"
    shutil.copytree(base.folder, package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    found = base_model.resolve("package://tiny_package/model")
    assert (found.folder, found.name, found.revision) == (package / "model", "package://tiny_package/model", "")
    assert found.fingerprint == base.fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_the_fingerprint_follows_what_the_model_is(name, base):
    (base.folder / "notes.md").write_text("something else")
    assert base_model.resolve(base.name).fingerprint == base.fingerprint
    file = base.folder / name
    file.write_bytes(file.read_bytes() + b" ")
    assert base_model.resolve(base.name).fingerprint != base.fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_the_directory(base, monkeypatch):
    glob = Path.glob
    for order in (sorted, lambda found: sorted(found, reverse=True)):
        monkeypatch.setattr(Path, "glob", lambda path, pattern, order=order: iter(order(glob(path, pattern))))
        assert base_model.resolve(base.name).fingerprint == base.fingerprint


# opening it with a head


def test_a_model_of_a_kind_without_such_a_head_is_refused(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    message = "models of type 'vit' have no such head.*Check that `task:` and `model:` of the recipe fit together"
    with pytest.raises(ModelError, match=message):
        base_model.open_base(base_model.resolve(str(tmp_path)), AUTO["token-classification"], ("O",), fine_tuned=False)


def test_weights_of_another_model_are_refused(base, tiny_encoder):
    checkpoint.save(tiny_encoder("distilbert"), other := base.folder.parent / "other")
    shutil.copy(other / "model.safetensors", base.folder)
    with pytest.raises(
        ModelError, match=r"base (cannot be loaded as AutoModel|lacks 37 weights of a bert).* Check that"
    ):
        base_model.open_base(base, AUTO["text-classification"], ("a", "b"), fine_tuned=False)


def test_a_model_that_lacks_a_layer_is_refused(base):
    weights = checkpoint.load_file(base.folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layer.1." not in name}
    checkpoint.save_file(kept, base.folder / "model.safetensors", metadata={"format": "pt"})
    message = (
        r"lacks 16 weights of a bert model, .* first bert\.encoder\.layer\.1\..* Check that `task:` and `model:` of the"
    )
    with pytest.raises(ModelError, match=message):
        base_model.open_base(base, AUTO["text-classification"], ("a", "b"), fine_tuned=False)


def test_weights_of_another_size_are_refused(base, tiny_encoder):
    other = tiny_encoder(intermediate_size=64)
    checkpoint.save_file(other.state_dict(), base.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"(lacks|cannot be loaded)"):
        base_model.open_base(base, AUTO["text-classification"], ("negative", "positive"), fine_tuned=True)


def test_a_fine_tuned_model_needs_its_head(tmp_path, tiny_model):
    base = base_model.resolve(str(tiny_model(tmp_path / "base", task="token-classification")))
    body = transformers.BertModel.from_pretrained(base.folder, add_pooling_layer=False)
    body.config.id2label = {0: "negative", 1: "positive"}
    body.save_pretrained(base.folder)
    with pytest.raises(
        ModelError, match=r"lacks 2 weights of a bert model, or has them in another size, first classifier\."
    ):
        base_model.open_base(base, AUTO["token-classification"], ("negative", "positive"), fine_tuned=True)


def test_a_broken_file_of_weights_is_refused(base):
    (base.folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"cannot be loaded as AutoModelForSequenceClassification"):
        base_model.open_base(base, AUTO["text-classification"], ("a", "b"), fine_tuned=False)


def test_a_fine_tuned_model_comes_as_it_is(base):
    model = base_model.open_base(base, AUTO["text-classification"], ("negative", "positive"), fine_tuned=True)
    stored = checkpoint.load_file(base.folder / "model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
def test_a_base_model_gets_a_new_head_for_the_labels(task, base):
    labels = ("red", "green", "blue")
    model = base_model.open_base(base, AUTO[task], labels, fine_tuned=False)
    stored = checkpoint.load_file(base.folder / "model.safetensors")
    assert model.classifier.out_features == 3
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {"red": 0, "green": 1, "blue": 2}
    assert all(torch.equal(stored[f"bert.{name}"], tensor) for name, tensor in model.bert.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_base_model_in_half_precision_is_trained_saved_and_loaded_in_float32(tmp_path, tiny_encoder, logits_of):
    tiny_encoder().half().save_pretrained(tmp_path / "half")
    base = base_model.resolve(str(tmp_path / "half"))
    model = base_model.open_base(base, AUTO["text-classification"], LABELS["text-classification"], fine_tuned=True)
    small = surgery.shrunk(model.eval(), KEPT)
    checkpoint.save(small, tmp_path / "small")
    loaded = checkpoint.load(tmp_path / "small", attention=None)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for one, other in zip(logits_of(small), logits_of(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


# how much it reads


@pytest.mark.parametrize(
    ("kind", "pad"), [(kind, pad) for kind in ENCODERS for pad in ((1,) if kind == "mpnet" else (0, 1))]
)  # MPNet's padding token is built in
def test_positions_bound_the_tokens_and_the_bound_is_exact(kind, pad, tmp_path, tiny_encoder, tokenizer_folder):
    model = tiny_encoder(kind, max_position_embeddings=34, pad_token_id=pad)
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    checkpoint.save(model, tmp_path)
    limit = base_tokenizer.save(base_model.resolve(str(tmp_path)), tmp_path / "out").max_tokens
    assert limit == (33 - pad if kind in ("roberta", "xlm-roberta", "camembert", "mpnet") else 34)
    model(torch.full((1, limit), 7))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 7))


def test_the_tokenizer_and_the_recipe_bound_the_tokens_too(base):
    limits = {wanted: base_tokenizer.save(base, base.folder / "out", wanted).max_tokens for wanted in (None, 16, 512)}
    assert limits == {None: 64, 16: 16, 512: 64}
    config = json.loads((base.folder / "tokenizer_config.json").read_text())
    (base.folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 20}))
    assert base_tokenizer.save(base, base.folder / "out").max_tokens == 20


def test_a_base_without_a_tokenizer_is_refused(base, tmp_path):
    for file in base.folder.glob("tokenizer*.json"):
        file.unlink()
    with pytest.raises(
        ModelError, match=r"has no tokenizer: expected tokenizer\.json, or a vocabulary such as vocab\.txt"
    ):
        base_tokenizer.save(base, tmp_path / "out")


def test_the_tokenizer_is_written_in_its_fast_form(base, tmp_path, tokenizer):
    base_tokenizer.save(base, tmp_path / "out")
    again = type(tokenizer).load(tmp_path / "out", 64)
    one, other = (found.encode(["the film is great"])[0] for found in (tokenizer, again))
    np.testing.assert_array_equal(one.ids, other.ids)
    assert again.pad_id == tokenizer.pad_id


# saving and loading


def test_sizes_that_do_not_fit_the_weights_are_refused(tmp_path, tiny_encoder):
    checkpoint.save(surgery.shrunk(tiny_encoder(), KEPT), tmp_path)
    file = tmp_path / "deploykit_arch.json"
    content = json.loads(file.read_text())
    content["layers"][0]["neurons"] = 128
    file.write_text(json.dumps(content))
    with pytest.raises(
        ModelError,
        match=r"does not fit config\.json and deploykit_arch\.json: build the artifact again",
    ):
        checkpoint.load(tmp_path)


def test_weights_that_are_missing_are_refused(tmp_path, tiny_encoder):
    checkpoint.save(surgery.shrunk(tiny_encoder(), KEPT), tmp_path)
    weights = checkpoint.load_file(tmp_path / "model.safetensors")
    weights.pop("classifier.bias")
    checkpoint.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"does not fit config\.json and deploykit_arch\.json"):
        checkpoint.load(tmp_path)


def test_sizes_are_written_a_layer_each(tmp_path, tiny_encoder):
    checkpoint.save(surgery.shrunk(tiny_encoder(), KEPT), tmp_path)
    sizes = json.loads((tmp_path / "deploykit_arch.json").read_text())
    assert sizes == {"layers": [{"heads": 1, "neurons": 64}, {"heads": 3, "neurons": 128}]}


@pytest.mark.parametrize(("kind", "task"), VARIANTS)
def test_uneven_layers_some_of_which_went_come_back_to_the_last_bit(kind, task, tmp_path, tiny_encoder, logits_of):
    whole = tiny_encoder(kind, task, layers=3)
    small = surgery.without_layers(surgery.shrunk(whole, uneven(whole)), [1])
    checkpoint.save(small, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert not loaded.training
    assert surgery.shapes(loaded) == surgery.shapes(small) != surgery.shapes(whole)
    assert sum(surgery.depths(loaded)) == sum(surgery.depths(whole)) - 1
    for one, other in zip(logits_of(small), logits_of(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(logits_of(small), logits_of(checkpoint.load(tmp_path, attention=None)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_gated_t5_with_an_output_layer_of_its_own_comes_back_to_the_last_bit(tmp_path, tiny_encoder, logits_of):
    """As of version 1.1; the first version of T5, which all other tests use, has neither."""
    settings = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    whole = tiny_encoder("t5", "text2text-generation", layers=3, **settings)
    assert {len(layer.up_projections) for layer in surgery.layers(whole)} == {2}
    small = surgery.without_layers(surgery.shrunk(whole, uneven(whole)), [0, 4])
    few = surgery.with_tokens(small, range(100))
    for index, model in enumerate((small, few)):
        checkpoint.save(model, tmp_path / str(index))
        loaded = checkpoint.load(tmp_path / str(index))
        fed = {"input_ids": torch.tensor([[5, 6]]), "decoder_input_ids": torch.tensor([[0, 7]])}
        assert torch.equal(*(found(**fed).logits for found in (model, loaded)))
    ids = torch.tensor([[5, 99, 3]])
    one, other = (model(ids, decoder_input_ids=ids).logits for model in (small, few))
    assert torch.equal(one[..., :100], other)


@pytest.mark.parametrize(("kind", "task"), [found for found in VARIANTS if "generation" in found[1]])
def test_a_model_that_writes_text_writes_the_same_after_it_was_loaded(kind, task, tmp_path, tiny_encoder):
    whole = tiny_encoder(kind, task, layers=3)
    small = surgery.without_layers(surgery.shrunk(whole, uneven(whole)), [0])
    small.generation_config.update(max_new_tokens=9, bad_words_ids=[[40]], eos_token_id=None, do_sample=False)
    checkpoint.save(small, tmp_path)
    prompt = {"input_ids": torch.tensor([[2, 41, 42, 3]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    one, other = (model.generate(**prompt) for model in (small, checkpoint.load(tmp_path)))
    assert one.shape[1] >= 10
    assert torch.equal(one, other)


def plainly(folder, task):
    """Opens a model with transformers alone."""
    found = getattr(transformers, AUTO[task]).from_pretrained(folder, attn_implementation="eager").eval()
    return checkpoint.copy_out_of_mapped_file(found)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_with_fewer_layers_opens_with_plain_transformers(kind, tmp_path, tiny_encoder, logits_of):
    small = surgery.without_layers(tiny_encoder(kind, layers=3), [0])
    checkpoint.save(small, tmp_path)
    assert not (tmp_path / "deploykit_arch.json").exists()
    plain = plainly(tmp_path, "text-classification")
    for one, other in zip(logits_of(small), logits_of(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sizes_of_another_model_do_not_stay_behind(tmp_path, tiny_encoder):
    checkpoint.save(surgery.shrunk(tiny_encoder(), KEPT), tmp_path)
    checkpoint.save(tiny_encoder(), tmp_path)
    assert surgery.shapes(checkpoint.load(tmp_path)) == [Shape(4, 128)] * 2


def test_a_model_that_cannot_be_pruned_is_saved_all_the_same(tmp_path, tiny_encoder, logits_of):
    model = tiny_encoder("albert", num_hidden_groups=2)
    checkpoint.save(model, tmp_path)
    for one, other in zip(logits_of(model), logits_of(checkpoint.load(tmp_path)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_regular_model_opens_with_plain_transformers(kind, task, tmp_path, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    checkpoint.save(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    plain = plainly(tmp_path, task)
    assert plain.config.id2label == dict(enumerate(LABELS[task]))
    expected = logits_of(model)
    for found in (plain, checkpoint.load(tmp_path)):
        for one, other in zip(expected, logits_of(found), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_class_that_was_saved_is_opened_whatever_the_base_model_was(base, tmp_path, logits_of):
    config = json.loads((base.folder / "config.json").read_text())
    (base.folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    model = base_model.open_base(base, AUTO["token-classification"], ("O", "B-X", "I-X"), fine_tuned=False)
    checkpoint.save(model.eval(), tmp_path / "saved")
    loaded = checkpoint.load(tmp_path / "saved")
    assert type(loaded) is transformers.BertForTokenClassification
    for one, other in zip(logits_of(model), logits_of(loaded), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_sizes_are_written_where_all_layers_are_cut_alike(tmp_path, tiny_encoder, logits_of):
    small = surgery.shrunk(tiny_encoder(), [KEPT[0]] * 2)
    checkpoint.save(small, tmp_path)
    for one, other in zip(logits_of(small), logits_of(checkpoint.load(tmp_path)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parameters_are_those_on_disk(tmp_path, tiny_encoder):
    small = surgery.shrunk(tiny_encoder("electra"), KEPT)
    checkpoint.save(small, tmp_path)
    stored = checkpoint.load_file(tmp_path / "model.safetensors")
    assert checkpoint.count_parameters(small) == sum(tensor.numel() for tensor in stored.values())


def test_an_encoder_of_another_size_is_refused_though_a_new_head_is_made(base):
    config = json.loads((base.folder / "config.json").read_text())
    (base.folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"or has them in another size, first bert\.encoder\.layer\.0\.intermediate"):
        base_model.open_base(
            base_model.resolve(str(base.folder)), AUTO["text-classification"], ("a", "b", "c"), fine_tuned=False
        )


def test_a_pruned_model_is_no_base(base):
    (base.folder / "deploykit_arch.json").write_text("{}")
    with pytest.raises(ModelError, match=r"was pruned, .*or use it as it is with train: null"):
        base_model.open_base(
            base_model.resolve(str(base.folder)), AUTO["text-classification"], ("a", "b", "c"), fine_tuned=False
        )


@pytest.mark.parametrize("name", ["vocab.txt", "added_tokens.json", "spiece.model"])
def test_every_file_that_decides_tokens_is_in_the_fingerprint(base, name):
    before = base_model.resolve(str(base.folder)).fingerprint
    (base.folder / name).write_text("changed")
    assert base_model.resolve(str(base.folder)).fingerprint != before
