"""How well a model in memory does on the validation rows, while it is being pruned."""

import torch

from deploykit.evaluation import metrics
from deploykit.modeling.finetuning import Problem, inputs
from deploykit.modeling.finite import require_logits
from deploykit.modeling.importance import padded
from deploykit.tasks import IGNORED


@torch.inference_mode()
def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the task's first metric, the one that decides, on the validation rows.

    Raises:
        ModelError: logits are no numbers.
    """
    gold, predicted = [], []
    for batch in padded(problem.validation, problem.tokenizer):
        logits = model(**inputs(model, batch)).logits
        require_logits(logits.float().numpy(), batch["labels"].numpy(), "the model, as it is being pruned")
        for targets, answers in zip(batch["labels"], logits.argmax(dim=-1), strict=True):
            shown = targets != IGNORED
            gold.append(targets[shown].numpy())
            predicted.append(answers[shown].numpy())
    return metrics.compute(problem.task.METRICS, gold, predicted, problem.labels)[problem.task.METRICS[0]]
