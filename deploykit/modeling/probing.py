"""Fits the heads of whole texts while the encoder's weights stay as they are, before all weights are trained.

This is linear probing before fine-tuning (Kumar et al., 2022). Training of all weights then begins with a head that
fits the encoder. With a random head, the first steps would spoil the encoder's states, above all where these states
hardly differ between texts.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from deploykit import hardware
from deploykit.modeling.finetuning import uses_bf16
from deploykit.modeling.heads import EncoderWithHeads, TextHead
from deploykit.modeling.losses import LOSSES, targets_by_name
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Problem, Row, model_inputs, padded_batches, sample
from deploykit.process_state import torch_threads
from deploykit.tasks import Target

MAX_ROWS = 20_000  # training rows that the heads are fitted to; a linear model hardly gains by more
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # L2 penalties to try; the loss on validation rows decides
MAX_ITERATIONS = 100  # of L-BFGS, for each penalty
log = logging.getLogger(__name__)
StatesAndTargets = tuple[torch.Tensor, torch.Tensor]  # standardized states `(rows, width)`, and targets


def fit_text_heads(
    model: torch.nn.Module, problem: Problem, options: FitOptions, weights: torch.Tensor | None = None
) -> None:
    """Fits the heads of whole texts in place by linear or logistic regression with an L2 penalty.

    Such a head reads the mean of the states of a text's tokens. Its `center` becomes the mean of that input over
    the training rows, and its `scale` the standard deviation, or the root mean square of all states where that is
    larger. Other heads do not change, nor do models that are no `EncoderWithHeads`.

    Args:
        model: the model whose heads are fitted.
        problem: the training and validation rows; its task names the loss of each head.
        options: say whether the encoder runs in bfloat16.
        weights: of the labels, `(labels,)`; see `losses.cross_entropy`.
    """
    if not isinstance(model, EncoderWithHeads):
        return
    heads = {name: head for name, head in model.heads.items() if isinstance(head, TextHead)}
    targets = {name: target for name, target in problem.task.TARGETS.items() if target.output in heads}
    if not targets:
        return
    with torch_threads(hardware.cpu_limit()):
        train_rows = sample(problem.train, MAX_ROWS, problem.seed)
        train_states, train_targets = _encode(model, problem, train_rows, list(targets), options)
        validation_rows = problem.rows(problem.validation)
        validation_states, validation_targets = _encode(model, problem, validation_rows, list(targets), options)
        # Division by much less than the size of the states would make the head overreact to small changes of them.
        root_mean_square = train_states.square().mean().sqrt().item()
        center = train_states.mean(dim=0)
        scale = train_states.std(dim=0, correction=0).clamp(min=root_mean_square)
        for name, target in targets.items():
            head = heads[target.output]
            head.center.copy_(center)
            head.scale.copy_(scale)
            train = (train_states - center) / scale, train_targets[name]
            validation = (validation_states - center) / scale, validation_targets[name]
            weight, bias, loss = _fit_linear_head(head, target, train, validation, weights)
            head.output.weight.data.copy_(weight)
            head.output.bias.data.copy_(bias)
            log.info("the head %s, on the encoder as it is, has the validation loss %.3f", target.output, loss)


def _encode(
    model: EncoderWithHeads, problem: Problem, rows: Sequence[Row], target_names: Sequence[str], options: FitOptions
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the mean of the token states of each row, `(rows, width)`, and the named targets of the rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    states: list[torch.Tensor] = []
    targets: dict[str, list[torch.Tensor]] = {name: [] for name in target_names}
    for batch in padded_batches(problem, rows):
        tensors = {name: tensor.to(device) for name, tensor in model_inputs(model, batch).items()}
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(options)):
            token_states = model.base_model(**tensors, return_dict=True).last_hidden_state
        # A copy, because gradients cannot flow through tensors that were made in inference mode.
        states.append(TextHead.pooled(token_states.float(), tensors["attention_mask"]).cpu().clone())
        for name in target_names:
            targets[name].append(targets_by_name(problem.task, batch["labels"])[name])
    model.to("cpu")
    return torch.cat(states), {name: torch.cat(values) for name, values in targets.items()}


def _fit_linear_head(
    head: TextHead,
    target: Target,
    train: StatesAndTargets,
    validation: StatesAndTargets,
    weights: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Fits a linear layer with each of the penalties, and returns the one with the lowest loss on validation rows.

    Each fit starts from the result of the stronger penalty before it.

    Returns:
        The weight `(labels, width)`, the bias `(labels,)`, and the loss on validation rows without the penalty.
    """
    weight, bias = (torch.zeros_like(tensor, requires_grad=True) for tensor in (head.output.weight, head.output.bias))

    def mean_loss(rows: StatesAndTargets) -> torch.Tensor:
        """Returns the loss of the current weight and bias, without a penalty."""
        states, targets = rows
        summed, count = LOSSES[target.loss](states @ weight.T + bias, targets, weights)
        return summed / torch.as_tensor(count).clamp(min=1)

    results = []
    for penalty in PENALTIES:
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

        def closure(optimizer: Any = optimizer, penalty: float = penalty) -> torch.Tensor:
            """Computes what L-BFGS minimizes, and its gradients; L-BFGS calls it several times in a step."""
            optimizer.zero_grad()
            loss = mean_loss(train) + penalty / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            results.append((weight.clone(), bias.clone(), mean_loss(validation).item()))
    return min(results, key=lambda result: result[2])
