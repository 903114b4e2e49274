"""How well a model in memory does on the validation rows, while it is being pruned."""

import torch

from deploykit.modeling.finetuning import Problem, quality


def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the task's first metric, the one that decides, on the validation rows.

    Raises:
        ModelError: logits are NaN or infinite.
    """
    return quality(model, problem, "the model, as it is being pruned")[problem.task.METRICS[0]]
