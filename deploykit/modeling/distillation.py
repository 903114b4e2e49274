"""Distillation: the unpruned model (teacher) trains the pruned one (student).

`loss = a T^2 KL(teacher || student, temperature T) + (1 - a) CE(labels) + b mean_l MSE(hidden_l)`
(Hinton et al., 2015; hidden states as in Jiao et al., 2020, section 3.1, without a projection because pruning keeps the
hidden size). The error of the hidden states is relative to their mean square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from deploykit.engines import input_names
from deploykit.modeling import surgery
from deploykit.modeling.finetuning import fit
from deploykit.modeling.losses import by_name, divergence, is_learned, of_task
from deploykit.modeling.options import DistillOptions
from deploykit.modeling.problem import SHIFT, Problem, Teacher


class StudentWithTeacher(torch.nn.Module):
    """A student that runs its teacher on the same batch; the teacher's weights are not part of its state."""

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)  # a tuple, so that torch does not register it
        self.register_state_dict_post_hook(_copy_aliases)  # type: ignore[no-untyped-call]
        self.input_names = input_names(student)
        if hasattr(student, SHIFT):
            setattr(self, SHIFT, getattr(student, SHIFT))

    def forward(self, **batch: torch.Tensor) -> dict[str, Any]:
        """Returns the student's logits and, in training mode, everything that the loss compares."""
        batch = {name: tensor for name, tensor in batch.items() if name in self.input_names}
        if not self.training:
            return _logits(self.student(**batch))
        with torch.no_grad():
            device = next(self.student.parameters()).device
            teacher = self._teacher[0].to(device)  # the Trainer moves registered modules only
            expected = teacher(**batch, output_hidden_states=True)
        outputs = self.student(**batch, output_hidden_states=True)
        hidden = _hidden_states(outputs)
        mask = batch.get("attention_mask")
        return {
            **_logits(outputs),
            "hidden": hidden,
            "teacher": _logits(expected),
            "teacher_hidden": _hidden_states(expected),
            "real": torch.ones(hidden[0].shape[:2], dtype=torch.bool) if mask is None else mask.bool(),
        }


def distill(
    small: torch.nn.Module, whole: torch.nn.Module, problem: Problem, options: DistillOptions, work: Path
) -> list[dict[str, Any]]:
    """Trains `small` in place, with `whole` or the problem's own teacher; returns the learning curve."""
    task, layers = problem.task, None
    hard = of_task(task)
    if problem.teacher:
        whole, layers = problem.teacher.model, matching_layers(problem.teacher)

    def loss(outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        if "teacher" not in outputs:
            return hard(outputs, labels, num_items_in_batch)
        named, soft, shares = by_name(task, labels), [], []
        for name, target in task.TARGETS.items():
            student, teacher = outputs[target.output], outputs["teacher"][target.output]
            learned = is_learned(target, named[name], student)
            rows = student[learned], teacher[learned]
            # A batch may hold no target of a head; the mean over no rows would be NaN.
            soft.append(divergence(target.loss, *rows, options.temperature) if learned.any() else student.sum() * 0)
            # of a step of several batches, each contributes its share of the targets
            several = num_items_in_batch is not None and len(named) == 1
            total = torch.as_tensor(num_items_in_batch if several else learned.sum()).clamp(min=1)
            shares.append(learned.sum() / total)
        hidden = hidden_error(outputs["hidden"], outputs["teacher_hidden"], outputs["real"], layers)
        soft_sum = sum(value * share for value, share in zip(soft, shares, strict=True))
        value = options.soft * soft_sum + options.hidden * hidden * (shares[0] if len(shares) == 1 else 1)
        return value + (1 - options.soft) * hard(outputs, labels, num_items_in_batch) if options.soft < 1 else value

    curve = fit(StudentWithTeacher(small, whole), problem, options, loss, work)
    whole.to("cpu")
    return curve


def hidden_error(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    real: torch.Tensor,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Returns the squared error of the layers' outputs, relative to the teacher's mean square.

    Args:
        student: outputs of the embeddings and of each layer, `(batch, tokens, hidden)`.
        teacher: the same.
        real: which tokens are not padding, `(batch, tokens)`.
        layers: for each layer of the student, the teacher's layer to compare it with; default: all in order.
    """
    expected = teacher[1:] if layers is None else [teacher[1 + layer] for layer in layers]
    errors = [
        functional.mse_loss(a[real].float(), b[real].float()) / b[real].float().square().mean()
        for a, b in zip(student[1:], expected, strict=True)
    ]
    return torch.stack(errors).mean()


def matching_layers(teacher: Teacher) -> list[int]:
    """Returns, for each layer of the student's first stack, the layer of the teacher with the output to imitate.

    It is the one before the next layer that was kept, so that the next layer gets the input that it had in the teacher.
    The last layer imitates the teacher's last.
    """
    depth = surgery.depths(teacher.model)[0]
    kept = [layer for layer in teacher.layers if layer < depth]
    return [following - 1 for following in (*kept[1:], depth)]


def _logits(outputs: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in outputs.items() if name.endswith("logits")}


def _copy_aliases(_: torch.nn.Module, state: dict[str, torch.Tensor], *__: Any) -> None:
    """Copies tensors that have two names, which safetensors refuses; transformers' own models save one name only."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _hidden_states(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states; of an encoder-decoder model, those of the encoder."""
    states: tuple[torch.Tensor, ...] = outputs.get("hidden_states") or outputs["encoder_hidden_states"]
    return states
