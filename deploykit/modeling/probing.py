"""Fits the heads of whole texts to what an encoder gives before it is trained.

Training of all weights then begins with a head that fits: with a random one, the first steps spoil the states of the
encoder, above all if these hardly differ between texts (Kumar et al., 2022, linear probing before fine-tuning).
"""

import logging
from typing import Any

import torch

from deploykit import hardware
from deploykit.modeling.finetuning import uses_bf16
from deploykit.modeling.heads import EncoderWithHeads, TextHead
from deploykit.modeling.losses import LOSSES, by_name
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Problem, Row, inputs, padded, sample
from deploykit.process_state import threads
from deploykit.tasks import Target

PROBED_ROWS = 20_000  # training rows at most; a linear model hardly gains by more
STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the squared weights; validation rows decide
ITERATIONS = 100
log = logging.getLogger(__name__)
Tensors = dict[str, torch.Tensor]
Rows = tuple[torch.Tensor, torch.Tensor]  # standardized states `(rows, width)`, and targets


def fit_text_heads(
    model: torch.nn.Module, problem: Problem, options: FitOptions, weights: torch.Tensor | None = None
) -> None:
    """Fits the heads of whole texts of a model in place by regularized linear or logistic regression.

    From then on, each head subtracts the mean of the pooled states over the training rows, and divides by their
    standard deviation, or by the root mean square of all of them where the deviation is smaller.
    Other heads, and models without such heads, are left as they are.

    Args:
        model: an encoder with heads.
        problem: the rows, whose targets choose the loss of each head.
        options: whether bfloat16 is used.
        weights: of the labels; see `losses.cross_entropy`.
    """
    if not isinstance(model, EncoderWithHeads):
        return
    heads = {name: head for name, head in model.heads.items() if isinstance(head, TextHead)}
    targets = {name: target for name, target in problem.task.TARGETS.items() if target.output in heads}
    if not targets:
        return
    with threads(hardware.cpu_limit()):
        rows = sample(problem.train, PROBED_ROWS, problem.seed), list(problem.rows(problem.validation))
        train, validation = (_pooled(model, problem, split, list(targets), options) for split in rows)
        for name, target in targets.items():
            head = heads[target.output]
            states = train["states"]
            root_mean_square = states.square().mean().sqrt().item()
            head.center.copy_(states.mean(dim=0))
            # Deviations far below the size of the states would make the head overreact to small changes in training.
            head.scale.copy_(states.std(dim=0, correction=0).clamp(min=root_mean_square))
            first, second = (
                ((split["states"] - head.center) / head.scale, split[name]) for split in (train, validation)
            )
            weight, bias, loss = _regression(head, target, first, second, weights)
            head.output.weight.data.copy_(weight)
            head.output.bias.data.copy_(bias)
            log.info("the head %s, on the encoder as it is, has the validation loss %.3f", target.output, loss)


def _pooled(
    model: EncoderWithHeads, problem: Problem, rows: list[Row], targets: list[str], options: FitOptions
) -> Tensors:
    """Returns the mean of the states of each row, `(rows, width)`, as `states`, and these targets by their names."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    parts: dict[str, list[torch.Tensor]] = {"states": []}
    for batch in padded(problem, rows):
        tensors = {name: tensor.to(device) for name, tensor in inputs(model, batch).items()}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(options)):
            states = model.base_model(**tensors, return_dict=True).last_hidden_state
        parts["states"].append(TextHead.pooled(states.float(), tensors["attention_mask"]).cpu().clone())
        for name in targets:
            parts.setdefault(name, []).append(by_name(problem.task, batch["labels"])[name])
    model.to("cpu")
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _regression(
    head: TextHead, target: Target, train: Rows, validation: Rows, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns the weight `(labels, width)` and bias `(labels,)` with the lowest loss on validation rows, and that."""
    weight, bias = (torch.zeros_like(tensor, requires_grad=True) for tensor in (head.output.weight, head.output.bias))

    def mean_loss(rows: Rows) -> torch.Tensor:
        summed, count = LOSSES[target.loss](rows[0] @ weight.T + bias, rows[1], weights)
        return summed / torch.as_tensor(count).clamp(min=1)

    results = []
    for strength in STRENGTHS:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure(optimizer: Any = optimizer, strength: float = strength) -> torch.Tensor:
            optimizer.zero_grad()
            loss = mean_loss(train) + strength / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            results.append((weight.clone(), bias.clone(), mean_loss(validation).item()))
    return min(results, key=lambda result: result[2])
