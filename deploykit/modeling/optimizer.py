"""AdamW with a learning rate for each layer: those near the input, which hold general knowledge, change least.

This is discriminative fine-tuning (Howard and Ruder, 2018, section 3.2). The table of architectures says where a model
keeps its layers. Models that are not in the table are searched for the usual names of layers in transformers.
"""

import re

import torch

from deploykit.modeling.architectures import ARCHITECTURES

# Patterns of dotted names of stacks of layers, for models that are not in the table.
STACK_PATTERNS = (r"\w+\.layer", r"\w+\.layers", r"\w+\.h", r"\w+\.block")


def adamw(
    model: torch.nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> torch.optim.Optimizer:
    """Returns fused AdamW with a group of parameters for each depth and weight decay.

    Args:
        model: its parameters are optimized.
        learning_rate: of the head.
        weight_decay: of matrices; biases and normalizations have none.
        layer_decay: factor on the learning rate from each layer to the one below it, towards the input.
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
    Embeddings have the largest depth: the parameters of the base model before its first layer, and all embedding tables
    outside layers. Parameters of the head have depth 0, though some classes list them first.
    """
    names = [name for name, _ in model.named_parameters()]
    matches = [_layer_pattern(model).match(name) for name in names]
    layer_counts: dict[str, int] = {}  # by stack
    first_layer_starts: dict[str, int] = {}  # by base model: the position in `names` at which its first layer begins
    for position, match in enumerate(matches):
        if match:
            layer_counts[match["stack"]] = max(layer_counts.get(match["stack"], 0), int(match["index"]) + 1)
            first_layer_starts.setdefault(match["base"], position)
    before_layers = {
        name for base, start in first_layer_starts.items() for name in names[:start] if name.startswith(base)
    }
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    embedding_depth = max(layer_counts.values(), default=0) + 1

    def depth(name: str, match: re.Match[str] | None) -> int:
        if match:
            return layer_counts[match["stack"]] - int(match["index"])
        return embedding_depth if name in tables or name in before_layers else 0

    return [depth(name, match) for name, match in zip(names, matches, strict=True)]


def _layer_pattern(model: torch.nn.Module) -> re.Pattern[str]:
    """Returns a pattern for the names of parameters in layers.

    Its groups are `base` (dotted name of the base model, with a final dot), `stack` (dotted name of the stack of
    layers) and `index` (number of the layer in its stack).
    """
    configs = (module.config for module in model.modules() if hasattr(module, "config"))
    architecture = ARCHITECTURES.get(getattr(next(configs, None), "model_type", ""))
    paths = [re.escape(stack.path) for stack in architecture.stacks] if architecture else STACK_PATTERNS
    return re.compile(rf"(?P<stack>(?P<base>(?:.*?\.)?)(?:{'|'.join(paths)}))\.(?P<index>\d+)\.")
