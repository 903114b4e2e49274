"""Configurations that ask for more than a configuration may, and those that another version of transformers wrote."""

import json

import numpy as np
import pytest
import torch
import transformers

from deploykit.errors import ModelError
from deploykit.modeling import base_model, base_tokenizer, checkpoint, configuration
from deploykit.modeling.surgery import TRANSFORMERS_4
from deploykit.stages import preflight

AUTO = "AutoModelForSequenceClassification"


@pytest.fixture
def base(tmp_path, tiny_model):
    """A text classifier on disk, as `find` sees it."""
    return base_model.resolve(str(tiny_model(tmp_path / "base")))


def edit(base, file="config.json", **values):
    content = json.loads((base.folder / file).read_text())
    (base.folder / file).write_text(json.dumps({**content, **values}))


def ways(base, target):
    """Every way in which a run opens a base model."""
    return {
        "find prunable": lambda: base_model.require_prunable(base),
        "open": lambda: base_model.open_base(base, AUTO, ("negative", "positive"), fine_tuned=False),
        "open fine-tuned": lambda: base_model.open_base(base, AUTO, ("negative", "positive"), fine_tuned=True),
        "tokenizer": lambda: base_tokenizer.save(base, target),
        "plan": lambda: preflight.check(base, AUTO, None, is_exported_whole=True),
        "load": lambda: checkpoint.load(base.folder),
    }


def refused(base, tmp_path, match):
    """Asserts that every way is refused, and returns what the messages are."""
    for way in ways(base, tmp_path / "target").values():
        with pytest.raises(ModelError, match=match) as caught:
            way()
        assert caught.value.exit_code == 2


def marking(folder, class_name, parent):
    """Writes a module that leaves a mark where it is imported."""
    mark = folder / "mark"
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        f"from transformers import {parent}\nclass {class_name}({parent}):\n    model_type = 'evil'\n"
    )
    return mark


# files that are no configuration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{not json",
            r"has a config\.json that is not JSON: Expecting property name.*\. Download or save the model again",
        ),
        ("", r"has a config\.json that is not JSON"),
        ("[" * 10_000, r"has a config\.json that is not JSON"),
        ("[1]", r"has a config\.json that holds no JSON object"),
        ("{}", r"has the model type None in config\.json, which is not a text or image model of transformers \d"),
        ('{"model_type": "brand-new"}', r"has the model type 'brand-new' in config\.json"),
        ('{"model_type": ["bert"]}', r"has the model type \['bert'\] in config\.json"),
        ('{"model_type": "detr"}', r"has the model type 'detr' in config\.json, which is not a text or image model"),
        ('{"model_type": "bert", "hidden_size": 33, "num_attention_heads": 4}', r"(cannot be|33)"),
        ('{"model_type": "bert", "vocab_size": "many"}', r"cannot be (used|loaded)"),
        ('{"model_type": "bert", "hidden_act": "no_such"}', r"cannot be (used|loaded)"),
    ],
)
def test_what_is_no_configuration_is_refused_before_anything_is_opened(content, message, base, tmp_path):
    (base.folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        preflight.check(base, AUTO, None, is_exported_whole=True)
    assert caught.value.exit_code == 2


def test_a_configuration_in_another_encoding_is_refused(base):
    (base.folder / "config.json").write_bytes('{"model_type": "bért"}'.encode("latin-1"))
    with pytest.raises(ModelError, match=r"has a config\.json that is not JSON"):
        configuration.read(base.folder, base.name)


# code and files that are no part of the model


def test_code_beside_the_model_does_not_run(base, tmp_path):
    mark = marking(base.folder, "EvilConfig", "PretrainedConfig")
    edit(base, auto_map={"AutoConfig": "evil.EvilConfig"}, model_type="evil")
    refused(
        base, tmp_path, r"needs code of its own \(auto_map in config\.json\), and deploykit runs no code that comes"
    )
    assert not mark.exists()


def test_a_nested_configuration_cannot_allow_its_own_code(base, tmp_path):
    """As LightGlue's did, whose configuration passed `trust_remote_code` on to another."""
    nested = base.folder / "nested"
    nested.mkdir()
    mark = marking(nested, "EvilConfig", "PretrainedConfig")
    inner = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}, "_name_or_path": str(nested)}
    (nested / "config.json").write_text(json.dumps(inner))
    outer = {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": inner}
    (base.folder / "config.json").write_text(json.dumps(outer))
    refused(base, tmp_path, r"needs code of its own \((auto_map|trust_remote_code) in config\.json\)")
    edit(base, trust_remote_code=False, keypoint_detector_config={"model_type": "superpoint"})
    refused(base, tmp_path, r"has the model type 'lightglue' in config\.json, which is not a text or image model")
    assert not mark.exists()


@pytest.mark.parametrize(
    "deep", [{"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, {"parts": [{"auto_map": "x.Y"}]}]
)
def test_code_is_refused_however_deep_it_is_named(deep, base, tmp_path):
    edit(base, **deep)
    refused(base, tmp_path, r"needs code of its own \(auto_map in config\.json\)")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation_internal", "someone/kernels"),
        ("_attn_implementation", "someone/kernels"),
        ("attn_implementation", "someone/kernels:flash"),
        ("_experts_implementation_internal", "someone/kernels"),
        ("transformers_weights", "../../elsewhere.safetensors"),
        ("transformers_weights", "other.safetensors"),
    ],
)
def test_parts_from_elsewhere_are_refused(key, value, base, tmp_path):
    edit(base, **{key: value})
    refused(base, tmp_path, rf"has {key} in config\.json, which lets transformers load parts from elsewhere\. If you")
    edit(base, **{key: None, "text_config": {key: value}})
    refused(base, tmp_path, rf"has {key} in config\.json")


def test_an_index_cannot_name_weights_outside_of_the_model(base, tmp_path):
    for file in ("../elsewhere.safetensors", "/etc/passwd", 7):
        index = {"metadata": {}, "weight_map": {"bert.embeddings": file}}
        (base.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(base, tmp_path, r"in model\.safetensors\.index\.json, which is not the name of a file in its directory")


def test_adapters_and_quantized_weights_are_refused_with_advice(base, tmp_path):
    (base.folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    refused(base, tmp_path, r"is an adapter .*\. Merge it into that model \(merge_and_unload in peft\)")
    (base.folder / "adapter_config.json").unlink()
    edit(base, quantization_config={"quant_method": "gptq"})
    refused(base, tmp_path, r"holds quantized weights .*\. Choose the model that was quantized, and quantize it with")


def test_labels_may_be_called_anything(base):
    labels = ("auto_map", "trust_remote_code")
    edit(base, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)})
    model = base_model.open_base(base, AUTO, labels, fine_tuned=True)
    assert model.config.id2label == dict(enumerate(labels))


def test_attention_is_what_deploykit_says_and_not_the_file(base):
    edit(base, attn_implementation="flex_attention", _attn_implementation="flash_attention_2")
    model = base_model.open_base(base, AUTO, ("negative", "positive"), fine_tuned=True)
    assert model.config._attn_implementation == "sdpa"
    edit(base, architectures=["BertForSequenceClassification"])
    assert checkpoint.load(base.folder).config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["AutoConfig", "Trainer", "no_such", "__doc__"])
def test_a_checkpoint_opens_no_class_that_is_no_model(name, base):
    edit(base, architectures=[name])
    with pytest.raises(ModelError, match=rf"names no model class in `architectures`, found '{name}'"):
        checkpoint.load(base.folder)


# what another version of transformers wrote


def saved(kind, folder, tokenizer, extra, **config):
    """Writes a model and, into its configuration, what the other version would say in other words."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {"num_key_value_heads": 4}
    common = {"vocab_size": tokenizer.backend.get_vocab_size(), "pad_token_id": 0, "initializer_range": 0.5}
    settings = transformers.AutoConfig.for_model(kind, **{**sizes, **common, **config})
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(settings, attn_implementation="eager").eval()
    checkpoint.save(model, folder)
    content = json.loads((folder / "config.json").read_text())
    for key in extra.pop("gone", ()):
        content.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**content, **extra}))
    return model


def ours(**values):
    """Picks the way of this version to say something: `four` or `five`."""
    return values["four"] if TRANSFORMERS_4 else values["five"]


BASE = {"rope_theta": 500000.0, "rope_type": "default"}
LINEAR = {"rope_theta": 20000.0, "rope_type": "linear", "factor": 2.0}
NESTED = {
    "full_attention": {"rope_theta": 40000.0, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
}
OLD_ROPE = ("rope_theta", "rope_scaling")
OLD_LOCAL = ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers")
EVERY_SECOND = ["full_attention", "sliding_attention"] * 2


@pytest.mark.parametrize(
    ("kind", "config", "written"),
    [
        (
            "llama",
            ours(four={"rope_theta": 500000.0}, five={"rope_parameters": BASE}),
            {"gone": OLD_ROPE, "rope_parameters": BASE},
        ),
        (
            "qwen2",
            ours(
                four={"rope_theta": 20000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
                five={"rope_parameters": LINEAR},
            ),
            {"gone": OLD_ROPE, "rope_parameters": LINEAR},
        ),
        (
            "modernbert",
            {
                "local_attention": 4,
                **ours(
                    four={"global_rope_theta": 40000.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2},
                    five={"rope_parameters": NESTED, "layer_types": EVERY_SECOND},
                ),
            },
            {"gone": OLD_LOCAL, "rope_parameters": NESTED, "layer_types": EVERY_SECOND},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rotary_positions_that_transformers_5_wrote_are_not_forgotten(
    kind, config, written, tmp_path, tokenizer, logits_of
):
    model = saved(kind, tmp_path, tokenizer, dict(written), **config)
    default = saved(kind, tmp_path / "default", tokenizer, {})
    assert max(np.abs(a - b).max() for a, b in zip(logits_of(model), logits_of(default), strict=True)) > 1e-3
    for found in (checkpoint.load(tmp_path), opened(tmp_path)):
        for one, other in zip(logits_of(model), logits_of(found), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def opened(folder):
    labels = ("LABEL_0", "LABEL_1")
    return base_model.open_base(base_model.resolve(str(folder)), AUTO, labels, fine_tuned=True).eval()


@pytest.mark.skipif(not TRANSFORMERS_4, reason="transformers 5 reads what it wrote")
@pytest.mark.parametrize(
    ("kind", "written", "key"),
    [
        ("modernbert", {"layer_types": ["sliding_attention", "full_attention"] * 2}, "layer_types"),
        ("bert", {"layer_types": EVERY_SECOND}, "layer_types"),
        ("bert", {"rope_parameters": BASE}, "rope_parameters"),
        ("modernbert", {"rope_parameters": {"full_attention": LINEAR}}, "rope_parameters"),
        ("llama", {"rope_parameters": {"chunked_attention": BASE}}, "rope_parameters"),
        ("llama", {"rope_parameters": {**BASE, "partial_rotary_factor": 0.5}}, "rope_parameters"),
    ],
)
def test_what_has_no_words_in_the_older_version_is_refused(kind, written, key, base, tmp_path):
    (base.folder / "config.json").write_text(json.dumps({"model_type": kind, **written}))
    message = rf"was saved by transformers 5, and transformers 4\.57\.\d cannot read its {key}\. Install"
    with pytest.raises(ModelError, match=message):
        configuration.read(base.folder, base.name)


def test_a_decoder_deeper_than_its_encoder_of_an_older_checkpoint_still_writes(tmp_path, tiny_encoder):
    from deploykit.modeling import surgery

    small = surgery.without_layers(tiny_encoder("t5", "text2text-generation", layers=3), [0])
    small.generation_config.update(max_new_tokens=5, eos_token_id=None, do_sample=False)
    checkpoint.save(small, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content.pop("decoder_layers") == 3
    (tmp_path / "config.json").write_text(json.dumps({**content, "layer_types": ["full_attention"] * 3}))
    prompt = {"input_ids": torch.tensor([[2, 41, 42, 3]])}
    assert torch.equal(checkpoint.load(tmp_path).generate(**prompt), small.generate(**prompt))
