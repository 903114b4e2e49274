"""Distillation: the unpruned model (teacher) trains the pruned one (student).

For classification `loss = a T^2 KL(teacher || student, temperature T) + (1 - a) CE(labels) + b mean_l MSE(hidden_l)`,
with the options `soft` as a, `temperature` as T and `hidden` as b (Hinton et al., 2015). Hidden states are compared as
in Jiao et al. (2020, section 3.1), but without a projection, because pruning keeps the hidden size. Their error is
relative to the teacher's mean square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from deploykit.engines import input_names
from deploykit.modeling import surgery
from deploykit.modeling.finetuning import fit
from deploykit.modeling.losses import divergence, has_target, targets_by_name, task_loss
from deploykit.modeling.options import DistillOptions
from deploykit.modeling.problem import SHIFT_METHOD, Problem, Teacher


class StudentWithTeacher(torch.nn.Module):
    """A student that runs its teacher on the same batch; the teacher's weights are not part of its state."""

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)  # a tuple, so that torch does not register it
        self.register_state_dict_post_hook(_copy_aliases)  # type: ignore[no-untyped-call]
        self.input_names = input_names(student)
        if hasattr(student, SHIFT_METHOD):
            setattr(self, SHIFT_METHOD, getattr(student, SHIFT_METHOD))

    def forward(self, **batch: torch.Tensor) -> dict[str, Any]:
        """Returns the student's logits by output and, in training mode, everything that the loss compares.

        That is `hidden` and `teacher_hidden` (outputs of the embeddings and of each layer, `(batch, tokens, hidden)`),
        `teacher` (the teacher's logits by output), and `is_token` (False for padding, `(batch, tokens)`).
        """
        batch = {name: tensor for name, tensor in batch.items() if name in self.input_names}
        if not self.training:
            return _select_logits(self.student(**batch))
        with torch.no_grad():
            device = next(self.student.parameters()).device
            teacher = self._teacher[0].to(device)  # the Trainer moves registered modules only
            expected = teacher(**batch, output_hidden_states=True)
        outputs = self.student(**batch, output_hidden_states=True)
        hidden = _hidden_states(outputs)
        mask = batch.get("attention_mask")
        return {
            **_select_logits(outputs),
            "hidden": hidden,
            "teacher": _select_logits(expected),
            "teacher_hidden": _hidden_states(expected),
            "is_token": torch.ones(hidden[0].shape[:2], dtype=torch.bool) if mask is None else mask.bool(),
        }


def distill(
    pruned: torch.nn.Module, unpruned: torch.nn.Module, problem: Problem, options: DistillOptions, work: Path
) -> list[dict[str, Any]]:
    """Trains a pruned model in place and returns the learning curve.

    Args:
        pruned: the pruned model.
        unpruned: the unpruned model; the problem's `teacher` takes its place if there is one.
        problem: the training and validation rows.
        options: see `DistillOptions`.
        work: folder for checkpoints.
    """
    task, layers = problem.task, None
    label_loss = task_loss(task)
    if problem.teacher:
        unpruned, layers = problem.teacher.model, matching_layers(problem.teacher)

    def loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        if "teacher" not in outputs:  # in evaluation mode
            return label_loss(outputs, labels, num_items_in_batch)
        targets, divergences, batch_shares = targets_by_name(task, labels), [], []
        for name, target in task.TARGETS.items():
            student, teacher = outputs[target.output], outputs["teacher"][target.output]
            mask = has_target(target, targets[name], student)
            rows = student[mask], teacher[mask]
            # A batch may hold no target of a head, and the mean over no rows would be NaN.
            divergences.append(divergence(target.loss, *rows, options.temperature) if mask.any() else student.sum() * 0)
            # The Trainer counts the targets of all batches of a step if the task has one target; this batch then
            # contributes its share of them.
            is_counted = num_items_in_batch is not None and len(targets) == 1
            count_in_step = torch.as_tensor(num_items_in_batch if is_counted else mask.sum()).clamp(min=1)
            batch_shares.append(mask.sum() / count_in_step)
        hidden = hidden_error(outputs["hidden"], outputs["teacher_hidden"], outputs["is_token"], layers)
        hidden_share = batch_shares[0] if len(batch_shares) == 1 else 1
        soft = sum(value * share for value, share in zip(divergences, batch_shares, strict=True))
        value = options.soft * soft + options.hidden * hidden * hidden_share
        if options.soft == 1:  # the labels are not used
            return value
        return value + (1 - options.soft) * label_loss(outputs, labels, num_items_in_batch)

    curve = fit(StudentWithTeacher(pruned, unpruned), problem, options, loss, work)
    unpruned.to("cpu")
    return curve


def hidden_error(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    is_token: torch.Tensor,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Returns the mean over layers of the squared error of their outputs, relative to the teacher's mean square.

    Args:
        student: outputs of the embeddings and of each layer, `(batch, tokens, hidden)`.
        teacher: the same of the teacher.
        is_token: False for padding, `(batch, tokens)`.
        layers: for each layer of the student, the teacher's layer to compare it with; default: all in order.
    """
    expected = teacher[1:] if layers is None else [teacher[1 + layer] for layer in layers]
    errors = []
    for student_states, teacher_states in zip(student[1:], expected, strict=True):
        actual, wanted = student_states[is_token].float(), teacher_states[is_token].float()
        errors.append(functional.mse_loss(actual, wanted) / wanted.square().mean())
    return torch.stack(errors).mean()


def matching_layers(teacher: Teacher) -> list[int]:
    """Returns for each layer of the student's first stack the layer of the teacher whose output it imitates.

    That is the teacher's layer before the student's next layer: the next layer then gets the input that it had in the
    teacher. The student's last layer imitates the teacher's last.
    """
    depth = surgery.depths(teacher.model)[0]
    kept = [layer for layer in teacher.layers if layer < depth]
    return [next_layer - 1 for next_layer in (*kept[1:], depth)]


def _select_logits(outputs: Any) -> dict[str, torch.Tensor]:
    """Returns the outputs whose name ends in `logits`."""
    return {name: value for name, value in outputs.items() if name.endswith("logits")}


def _copy_aliases(_: torch.nn.Module, state: dict[str, torch.Tensor], *__: Any) -> None:
    """Copies tensors that a state holds under a second name, in place, because safetensors refuses them."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _hidden_states(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states; of an encoder-decoder model, those of the encoder."""
    states: tuple[torch.Tensor, ...] = outputs.get("hidden_states") or outputs["encoder_hidden_states"]
    return states
