"""The quality of a model while it learns or is pruned: the metrics that the stages compute, on the validation rows."""

import torch

from deploykit.evaluation import metrics
from deploykit.inference.predictor import batches
from deploykit.modeling.finite import require_logits
from deploykit.modeling.problem import Problem, collate, inputs
from deploykit.tasks import Float32

JUDGED_TOKENS = 2048  # of a padded batch of validation rows


@torch.inference_mode()
def quality(model: torch.nn.Module, problem: Problem, what: str) -> dict[str, float]:
    """Returns the task's metrics on the validation rows as the stages compute them: what was cut off counts as well.

    Args:
        model: in evaluation mode.
        problem: its validation rows are judged.
        what: names the model in a message.

    Raises:
        ModelError: logits are NaN or infinite.
    """
    rows, scores = problem.validation, dict[int, Float32]()
    device = next(model.parameters()).device
    for indices in batches([len(row.encoding) for row in rows], JUDGED_TOKENS):
        part = [rows[index] for index in indices]
        batch = {name: tensor.to(device) for name, tensor in collate(problem.tokenizer, part).items()}
        logits = model(**inputs(model, batch))["logits"].float().cpu().numpy()
        require_logits(logits, batch["labels"].cpu().numpy(), what)
        for index, row, array in zip(indices, part, logits, strict=True):
            real = array[problem.tokenizer.place(len(row.encoding), len(array))] if array.ndim == 2 else array
            scores[index] = problem.task.scores(real, row.example.text, row.encoding)
    gold = [problem.task.targets(row.example, problem.labels) for row in rows]
    predicted = metrics.predictions([scores[index] for index in range(len(rows))])
    return metrics.compute(problem.task.METRICS, gold, predicted, problem.labels)


def first_metric(model: torch.nn.Module, problem: Problem) -> float:
    """Returns the task's first metric, which decides, of a model that is being pruned, on the validation rows.

    Raises:
        ModelError: logits are NaN or infinite.
    """
    return quality(model, problem, "the model, as it is being pruned")[problem.task.METRICS[0]]
