"""An encoder with several heads: opened, saved, pruned, exported and run as a model of one head is."""

import json

import numpy as np
import pytest
import torch
import transformers
from models import ENCODERS
from safetensors.torch import load_file

from deploykit import engines
from deploykit.artifact.execution import Execution
from deploykit.errors import ModelError
from deploykit.graphs.export import write_graph
from deploykit.modeling import base_model, checkpoint, surgery
from deploykit.modeling.base_model import Base
from deploykit.modeling.heads import EncoderWithHeads, heads_config
from deploykit.modeling.surgery import KeptUnits

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUTS = {
    "mood/logits": ("labels",),
    "names/logits": ("tokens", "labels"),
    "relation_logits": ("tokens", "tokens", "labels"),
}
LABELS = {"mood/logits": ("bad", "good"), "names/logits": ("O", "B-A", "I-A"), "relation_logits": ("none", "of", "in")}
HEADS = heads_config(OUTPUTS, LABELS)
KINDS = [*ENCODERS, "gpt2", "llama"]


@pytest.fixture
def base_of(tiny_encoder, tmp_path):
    """`base_of(kind) -> Base` of a tiny model with a head for texts, which the files of a base model often have."""

    def build(kind):
        model = tiny_encoder(kind)
        checkpoint.save(model, tmp_path / kind)
        (tmp_path / kind / "config.json").write_text(json.dumps(model.config.to_dict()))
        return Base(tmp_path / kind, kind, "", "")

    return build


def opened(base, **options):
    torch.manual_seed(0)
    return base_model.open_base(base, "AutoModel", (), **{"fine_tuned": False, "heads": HEADS, **options}).eval()


def batch_of(model, rows=3, tokens=11):
    ids = torch.randint(5, model.get_input_embeddings().num_embeddings, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: batch[name] for name in model.input_names}


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_that_of_the_files_and_the_graph_computes_what_torch_does(kind, base_of, tmp_path):
    base = base_of(kind)
    model = opened(base)
    stored = load_file(base.folder / "model.safetensors")
    own = dict(model.base_model.state_dict())
    assert own
    for name, tensor in own.items():
        (found,) = [value for key, value in stored.items() if key == name or key.endswith(f".{name}")] or [None]
        assert found is not None, name
        assert torch.equal(found, tensor), name

    batch = batch_of(model)
    with torch.inference_mode():
        outputs = model(**batch)
    shapes = {name: tuple(array.shape) for name, array in outputs.items()}
    assert shapes == {"mood/logits": (3, 2), "names/logits": (3, 11, 3), "relation_logits": (3, 11, 11, 3)}
    checkpoint.save(model, tmp_path / "saved")
    again = checkpoint.load(tmp_path / "saved")
    assert isinstance(again, EncoderWithHeads)
    write_graph(again, tmp_path, "feature-extraction", 18, OUTPUTS)
    graph = engines.load("onnxruntime").load(tmp_path / "model.onnx", Execution())
    others, mask = graph.run({name: array.numpy() for name, array in batch.items()}), batch["attention_mask"].bool()
    with torch.inference_mode():
        repeated = again(**batch)
    real = {"mood/logits": ..., "names/logits": mask, "relation_logits": mask[:, :, None] & mask[:, None, :]}
    for name, output in outputs.items():
        for other in (repeated[name], torch.from_numpy(others[name])):
            assert (output - other)[real[name]].abs().max() < 1e-4, name


def test_scores_of_a_text_do_not_depend_on_padding(base_of):
    model = opened(base_of("bert"))
    ids = torch.randint(5, 50, (1, 7))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 4])
    with torch.inference_mode():
        alone, beside = model(input_ids=ids), model(input_ids=padded, attention_mask=mask)
    np.testing.assert_allclose(alone["mood/logits"], beside["mood/logits"], atol=1e-5)
    np.testing.assert_allclose(alone["relation_logits"], beside["relation_logits"][:, :7, :7], atol=1e-5)


def test_pairs_are_scored_in_their_order_by_a_biaffine_product(base_of):
    model = opened(base_of("bert"))
    head = model.heads["relation_logits"]
    states = torch.randn(2, 5, 32)
    with torch.inference_mode():
        scores = head(states, torch.ones(2, 5))
        first, second = (torch.nn.functional.gelu(side(states)) for side in (head.first, head.second))
        weights = head.product.weight.reshape(3, 128, 128)  # labels, columns of the second, columns of the first
        expected = torch.einsum("bik,rmk,bjm->bijr", first, weights, second)
        expected += head.of_first(first)[:, :, None] + head.of_second(second)[:, None]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert (scores - scores.transpose(1, 2)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "gpt2", "albert"])
def test_pruned_models_are_saved_with_their_sizes(kind, base_of, tmp_path):
    model = opened(base_of(kind))
    small = surgery.shrunk(
        model, [KeptUnits(tuple(range(min(2, size.heads))), tuple(range(100))) for size in surgery.shapes(model)]
    )
    batch = batch_of(small)
    checkpoint.save(small, tmp_path / "small")
    again = checkpoint.load(tmp_path / "small")
    with torch.inference_mode():
        for name, output in small.eval()(**batch).items():
            np.testing.assert_allclose(output, again(**batch)[name], atol=1e-5)
    fewer = surgery.without_layers(model, [0])
    assert len(surgery.depths(fewer)) == 1
    assert checkpoint.count_parameters(fewer) < checkpoint.count_parameters(model) or kind == "albert"
    ids = sorted({*range(10), *surgery.configured_token_ids(model)})
    cut = surgery.with_tokens(model, ids)
    assert cut.get_input_embeddings().num_embeddings == len(ids)


def test_a_trained_model_keeps_its_heads_and_is_a_base_for_others(base_of, tmp_path):
    base = base_of("bert")
    first = opened(base)
    checkpoint.save(first, tmp_path / "trained")
    trained = Base(tmp_path / "trained", "trained", "", "")
    again = opened(trained, fine_tuned=True)
    assert again.config.heads == HEADS
    others = heads_config(
        {**OUTPUTS, "new": ("labels",)}, {**LABELS, "mood/logits": ("good", "bad"), "new": ("a", "b")}
    )
    torch.manual_seed(1)
    second = base_model.open_base(trained, "AutoModel", (), fine_tuned=False, heads=others)
    same = {name: torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items()}
    assert all(same[name] for name in same if not name.startswith("heads.mood"))
    assert not any(same[name] for name in same if name.startswith("heads.mood") and name.endswith("weight"))
    with pytest.raises(ModelError, match="trained does not have the heads of this task"):
        opened(trained, fine_tuned=True, heads=heads_config(OUTPUTS, {**LABELS, "mood/logits": ("good", "bad")}))
    with pytest.raises(ModelError, match="bert does not have the heads of this task"):
        opened(base, fine_tuned=True)


def test_transformers_finds_the_encoder_in_a_checkpoint(base_of, tmp_path):
    model = opened(base_of("bert"))
    checkpoint.save(model, tmp_path / "trained")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "trained", add_pooling_layer=False)
    batch = batch_of(model)
    with torch.inference_mode():
        expected = model.base_model(**batch).last_hidden_state
        np.testing.assert_allclose(expected, theirs.eval()(**batch).last_hidden_state, atol=1e-6)


def test_a_model_that_writes_is_refused(base_of):
    with pytest.raises(ModelError, match="this task puts several heads on an encoder"):
        opened(base_of("t5"))
