"""The labels of a model that is taken as it is: its own order of them, under the names of the data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deploykit.errors import ModelError
from deploykit.methods import did_you_mean


def match(own: Sequence[str], data: Sequence[str], renamed: Mapping[str, str], model: str) -> tuple[str, ...]:
    """Returns the data's names of a model's labels, in the order of the model.

    Args:
        own: the model's labels, in the order of its outputs.
        data: the labels of the data.
        renamed: the recipe's `labels`: a label of the model to its name in the data.
        model: its name, for messages.

    Raises:
        ModelError: the two do not have the same labels; says which only one of them has, and the nearest names.
    """
    for label, name in renamed.items():
        if label not in own:
            raise ModelError(
                f"labels: {model} has no label {label!r}{did_you_mean(label, list(own))}. It has {', '.join(own)}."
            )
        if name not in data:
            raise ModelError(
                f"labels: the data has no label {name!r}{did_you_mean(name, list(data))}. It has {', '.join(data)}."
            )
    names = tuple(renamed.get(label, label) for label in own)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ModelError(f"labels: several labels of the model become {repeated[0]!r}. Name each label once.")
    if set(names) != set(data):
        raise ModelError(_mismatch(own, names, data, model))
    return names


def _mismatch(own: Sequence[str], names: Sequence[str], data: Sequence[str], model: str) -> str:
    only_model, only_data = [name for name in names if name not in data], [name for name in data if name not in names]
    sides = [
        f"Only the {side} has {', '.join(only)}." for side, only in (("model", only_model), ("data", only_data)) if only
    ]
    advice = "Remove the rows with labels that the model does not know, or choose another model."
    if only_model and only_data:
        advice = (
            f"Say in the recipe which are the same, for example `labels: {{{own[names.index(only_model[0])]}:"
            f" {only_data[0]}}}`, or choose another model."
        )
    return f"{model} has the labels {', '.join(own)}, the data has {', '.join(data)}. {' '.join(sides)} {advice}"


def reorder(model: torch.nn.Module, order: Sequence[int]) -> None:
    """Puts the outputs of a classifier into another order, in place.

    Args:
        model: with a head of transformers, whose last linear layer has an output for each label.
        order: which of its outputs each new one is.
    """
    head = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == len(order)
    ][-1]
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            tensor.data = tensor.data[list(order)].clone()


def rename(model: Any, labels: Sequence[str]) -> None:
    """Writes the names of a model's outputs into its configuration, in place."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
