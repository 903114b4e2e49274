"""Labels of a model's outputs: matching them with the labels of the data, and their order and names in the model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deploykit.errors import ModelError
from deploykit.methods import did_you_mean


def match_labels(
    model_labels: Sequence[str], data_labels: Sequence[str], renamed: Mapping[str, str], model_name: str
) -> tuple[str, ...]:
    """Returns the data's names for a model's labels, in the model's order.

    Args:
        model_labels: in the order of the model's outputs.
        data_labels: in any order.
        renamed: the recipe's `labels`, which maps labels of the model to labels of the data.
        model_name: for messages.

    Raises:
        ModelError: model and data do not have the same labels; the message names the difference and similar labels.
    """
    model_side = (renamed.keys(), model_name, model_labels)
    data_side = (renamed.values(), "the data", data_labels)
    for names, owner, labels in (model_side, data_side):
        for name in names:
            if name not in labels:
                suggestion = did_you_mean(name, list(labels))
                raise ModelError(f"labels: {owner} has no label {name!r}{suggestion}. It has {', '.join(labels)}.")
    matched = tuple(renamed.get(label, label) for label in model_labels)
    repeated = [name for name, count in Counter(matched).items() if count > 1]
    if repeated:
        raise ModelError(f"labels: several labels of the model become {repeated[0]!r}. Name each label once.")
    if set(matched) != set(data_labels):
        raise ModelError(_mismatch_message(model_labels, matched, data_labels, model_name))
    return matched


def _mismatch_message(
    model_labels: Sequence[str], matched: Sequence[str], data_labels: Sequence[str], model_name: str
) -> str:
    """Says which labels only the model or only the data has; `matched` are the model's labels after renaming."""
    only_model = [name for name in matched if name not in data_labels]
    only_data = [name for name in data_labels if name not in matched]
    sides = (("model", only_model), ("data", only_data))
    differences = " ".join(f"Only the {side} has {', '.join(names)}." for side, names in sides if names)
    advice = "Remove the rows with labels that the model does not have, or choose another model."
    if only_model and only_data:
        example = f"{model_labels[matched.index(only_model[0])]}: {only_data[0]}"
        advice = f"Map labels in the recipe, for example `labels: {{{example}}}`, or choose another model."
    has_labels = f"{model_name} has the labels {', '.join(model_labels)}, the data has {', '.join(data_labels)}."
    return f"{has_labels} {differences} {advice}"


def reorder_outputs(model: torch.nn.Module, order: Sequence[int]) -> None:
    """Reorders the outputs of a classifier in place; `order` holds the old index of each new output."""
    linears = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    *_, head = (module for module in linears if module.out_features == len(order))  # the last one that fits
    for tensor in (head.weight, head.bias):
        if tensor is not None:
            tensor.data = tensor.data[list(order)].clone()


def name_outputs(config: Any, labels: Sequence[str]) -> None:
    """Writes the names of a model's outputs into its configuration, in place; without labels nothing changes."""
    if not labels:
        return
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
