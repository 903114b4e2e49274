"""Learning rates by depth: layers near the input, which hold what is general, move least.

Discriminative fine-tuning after Howard and Ruder (2018, section 3.2). Knows of a model only how transformers
names its layers.
"""

import re

import torch

LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")  # as transformers' models number their layers


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> torch.optim.Optimizer:
    """Makes AdamW in its fused form, with one group of weights for each depth and kind.

    Args:
        model: whose weights it moves.
        learning_rate: of the head.
        weight_decay: of matrices; biases and norms are not pulled to zero.
        layer_decay: what each layer below the head multiplies the learning rate by once more.
    """
    groups: dict[tuple[int, float], list[torch.nn.Parameter]] = {}
    for (_, parameter), depth in zip(model.named_parameters(), depths(model), strict=True):
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((depth, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": learning_rate * layer_decay**depth,
                "weight_decay": decay,
            }
            for (depth, decay), parameters in groups.items()
        ],
        fused=True,
    )


def depths(model: torch.nn.Module) -> list[int]:
    """Returns how many layers below the head each parameter lies: 0 the head, 1 the last layer, embeddings last."""
    names = [name for name, _ in model.named_parameters()]
    layers = [int(found[1]) if (found := LAYER.search(name)) else None for name in names]
    top = max((layer for layer in layers if layer is not None), default=-1) + 1
    return [
        top - layer if layer is not None else top + 1 if "embeddings" in name else 0
        for name, layer in zip(names, layers, strict=True)
    ]
