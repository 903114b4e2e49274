"""AdamW with a learning rate per depth: layers near the input, which hold general knowledge, change least.

This is discriminative fine-tuning (Howard and Ruder, 2018, section 3.2). The table of architectures says where a model
keeps its layers; models that it lacks are searched for the names that transformers gives to layers.
"""

import re

import torch

from deploykit.modeling.architectures import ARCHITECTURES

LAYERS = (r"\w+\.layer", r"\w+\.layers", r"\w+\.h", r"\w+\.block")  # of a model that is not in the table


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> torch.optim.Optimizer:
    """Returns fused AdamW with a group of parameters per depth and weight decay.

    Args:
        model: its parameters are optimized.
        learning_rate: of the head.
        weight_decay: of matrices; biases and normalizations have none.
        layer_decay: factor on the learning rate from each layer to the one below it.
    """
    groups: dict[tuple[int, float], list[torch.nn.Parameter]] = {}
    for parameter, depth in zip(model.parameters(), depths(model), strict=True):
        groups.setdefault((depth, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": learning_rate * layer_decay**depth, "weight_decay": decay}
            for (depth, decay), parameters in groups.items()
        ],
        fused=True,
    )


def depths(model: torch.nn.Module) -> list[int]:
    """Returns for each parameter how many layers it is below the head: 0 for the head, 1 for the last layer, and so on.

    Encoder and decoder are counted separately, each from its end; a layer that runs several times counts once.
    Embeddings are the deepest: the parameters of the base model before its first layer, and all embedding tables
    outside layers. The head is not one of them, though some classes list its parameters first.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = [_layer_pattern(model).match(name) for name in names]
    tops: dict[str, int] = {}
    for layer in layers:
        if layer:
            tops[layer["stack"]] = max(tops.get(layer["stack"], 0), int(layer["index"]) + 1)
    firsts: dict[str, int] = {}
    for index, layer in enumerate(layers):
        if layer:
            firsts.setdefault(layer["base"], index)
    before = {name for base, first in firsts.items() for name in names[:first] if name.startswith(base)}
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    embedding = max(tops.values(), default=0) + 1
    return [
        tops[layer["stack"]] - int(layer["index"]) if layer else embedding if name in tables or name in before else 0
        for name, layer in zip(names, layers, strict=True)
    ]


def _layer_pattern(model: torch.nn.Module) -> re.Pattern[str]:
    """Returns a pattern for names of parameters in layers, with the groups `base`, `stack` and `index`."""
    configs = (module.config for module in model.modules() if hasattr(module, "config"))
    architecture = ARCHITECTURES.get(getattr(next(configs, None), "model_type", ""))
    paths = [re.escape(stack.path) for stack in architecture.stacks] if architecture else LAYERS
    return re.compile(rf"(?P<stack>(?P<base>(?:.*?\.)?)(?:{'|'.join(paths)}))\.(?P<index>\d+)\.")
