"""Learning rates by depth."""

import torch

from deploykit.modeling import optimizer


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
