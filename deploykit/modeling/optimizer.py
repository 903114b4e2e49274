"""Learning rates by depth: layers near the input, which hold what is general, move least.

Discriminative fine-tuning after Howard and Ruder (2018, section 3.2). Where a model keeps its layers stands in the
table of architectures; of other models it is known how transformers names layers.
"""

import re

import torch

from deploykit.modeling.architectures import ARCHITECTURES

LAYERS = (r"\w+\.layer", r"\w+\.layers", r"\w+\.h", r"\w+\.block")  # of a model that the table does not know


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
    """Returns how many layers below the head each parameter lies: 0 the head, 1 the last layer, embeddings last.

    An encoder's layers and a decoder's are counted each from their own end. A layer that is run several times counts
    once. Embeddings are the parameters of the base model before its first layer, and every embedding table outside of
    layers. The head is not among them, though some classes list its parameters first.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = [_layer_pattern(model).match(name) for name in names]
    tops: dict[str, int] = {}
    for layer in layers:
        if layer:
            tops[layer["stack"]] = max(tops.get(layer["stack"], 0), int(layer["index"]) + 1)
    first, base = next(((place, layer["base"]) for place, layer in enumerate(layers) if layer), (0, ""))
    before = {name for name in names[:first] if name.startswith(base)}
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    embedding = max(tops.values(), default=0) + 1
    return [
        tops[layer["stack"]] - int(layer["index"]) if layer else embedding if name in tables or name in before else 0
        for name, layer in zip(names, layers, strict=True)
    ]


def _layer_pattern(model: torch.nn.Module) -> re.Pattern[str]:
    """Returns what matches the name of a parameter in a layer: the stack, and the layer's number in it."""
    configs = (module.config for module in model.modules() if hasattr(module, "config"))
    architecture = ARCHITECTURES.get(getattr(next(configs, None), "model_type", ""))
    paths = [re.escape(stack.path) for stack in architecture.stacks] if architecture else LAYERS
    return re.compile(rf"(?P<stack>(?P<base>(?:.*?\.)?)(?:{'|'.join(paths)}))\.(?P<index>\d+)\.")
