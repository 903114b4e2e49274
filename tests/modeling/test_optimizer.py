"""Learning rates by depth."""

import pytest
import torch
from models import VARIANTS

from deploykit.modeling import optimizer
from deploykit.modeling.distillation import StudentWithTeacher


def test_layers_near_the_input_move_least():
    model = torch.nn.ModuleDict(
        {
            "embeddings": torch.nn.Embedding(4, 2),
            "encoder": torch.nn.ModuleDict({"layer": torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])}),
            "classifier": torch.nn.Linear(2, 2),
        }
    )
    found = dict(zip((name for name, _ in model.named_parameters()), optimizer.depths(model), strict=True))
    assert found["embeddings.weight"] == 4
    assert [found[f"encoder.layer.{index}.bias"] for index in range(3)] == [3, 2, 1]
    assert found["classifier.weight"] == 0
    made = optimizer.adamw(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    assert rates[id(model["embeddings"].weight)] == (0.0625, 0.1)
    assert rates[id(model["classifier"].bias)] == (1.0, 0.0)
    assert len(rates) == len(found)


ROWS = {  # the depths of some weights, with two layers in each stack
    "bert": {"bert.embeddings.LayerNorm.bias": 3, "bert.encoder.layer.0": 2, "bert.pooler": 0, "classifier": 0},
    "albert": {
        "albert.embeddings.word_embeddings": 2,
        "albert.encoder.embedding_hidden_mapping_in": 2,
        "albert.encoder.albert_layer_groups.0": 1,  # one layer, however often it is run
        "albert.pooler": 0,
        "classifier": 0,
    },
    "gpt2": {"transformer.wte": 3, "transformer.wpe": 3, "transformer.h.0": 2, "transformer.ln_f": 0, "score": 0},
    "llama": {"model.embed_tokens": 3, "model.layers.1": 1, "model.norm": 0, "score": 0},
    "t5": {
        "shared": 3,
        "encoder.block.0": 2,
        "encoder.block.1": 1,
        "decoder.block.0": 2,
        "decoder.final_layer_norm": 0,
    },
    "mpnet": {"mpnet.encoder.relative_attention_bias": 3, "mpnet.encoder.layer.1": 1},
    "distilbert": {"distilbert.embeddings": 3, "distilbert.transformer.layer.0": 2, "pre_classifier": 0},
}


@pytest.mark.parametrize("kind", ROWS)
def test_the_depths_of_real_models(kind, tiny_encoder):
    model = tiny_encoder(kind, "text2text-generation" if kind == "t5" else "text-classification")
    found = dict(zip((name for name, _ in model.named_parameters()), optimizer.depths(model), strict=True))
    for part, depth in ROWS[kind].items():
        values = {value for name, value in found.items() if f".{name}.".find(f".{part}.") >= 0}
        assert values == {depth}, part


@pytest.mark.parametrize(("kind", "task"), VARIANTS)
def test_no_table_of_embeddings_and_no_layer_learns_as_fast_as_the_head(kind, task, tiny_encoder):
    model = tiny_encoder(kind, task)
    depth = dict(zip((name for name, _ in model.named_parameters()), optimizer.depths(model), strict=True))
    tables = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    deepest = max(depth.values())
    for name in set(tables) & set(depth):
        assert depth[name] == deepest or ".block.0." in name, name
    assert min(depth.values()) == 0 or kind in ("gpt2", "marian")
    assert {value for name, value in depth.items() if "classifier" in name or "score" in name} <= {0}


def test_a_pupil_has_the_depths_of_the_student(tiny_encoder):
    student = tiny_encoder("gpt2")
    assert optimizer.depths(StudentWithTeacher(student, tiny_encoder("gpt2"))) == optimizer.depths(student)
