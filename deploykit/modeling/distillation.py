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

from deploykit.modeling import surgery
from deploykit.modeling.finetuning import fit
from deploykit.modeling.losses import cross_entropy
from deploykit.modeling.options import DistillOptions
from deploykit.modeling.problem import SHIFT, Problem, Teacher, inputs
from deploykit.tasks import IGNORED


class StudentWithTeacher(torch.nn.Module):
    """A student that runs its teacher on the same batch; the teacher's weights are not part of its state."""

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)  # a tuple, so that torch does not register it
        self.register_state_dict_post_hook(_copy_aliases)  # type: ignore[no-untyped-call]
        if hasattr(student, SHIFT):
            setattr(self, SHIFT, getattr(student, SHIFT))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Returns the student's logits and, in training mode, everything that the loss compares."""
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = inputs(self.student, tensors)
        if decoder_input_ids is not None:
            batch["decoder_input_ids"] = decoder_input_ids
        if not self.training:
            return {"logits": self.student(**batch).logits}
        with torch.no_grad():
            teacher = self._teacher[0].to(input_ids.device)  # the Trainer moves registered modules only
            expected = teacher(**batch, output_hidden_states=True)
        outputs = self.student(**batch, output_hidden_states=True)
        return {
            "logits": outputs.logits,
            "hidden": _hidden_states(outputs),
            "teacher_logits": expected.logits,
            "teacher_hidden": _hidden_states(expected),
            "real": attention_mask.bool(),
        }


def distill(
    small: torch.nn.Module, whole: torch.nn.Module, problem: Problem, options: DistillOptions, work: Path
) -> list[dict[str, Any]]:
    """Trains `small` in place, with `whole` or the problem's own teacher; returns the learning curve."""
    hard, layers = cross_entropy(), None
    if problem.teacher:
        whole, layers = problem.teacher.model, matching_layers(problem.teacher)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        if "teacher_logits" not in outputs:
            return hard(outputs, labels, num_items_in_batch)
        targets = labels != IGNORED
        soft = divergence(outputs["logits"][targets], outputs["teacher_logits"][targets], options.temperature)
        hidden = hidden_error(outputs["hidden"], outputs["teacher_hidden"], outputs["real"], layers)
        # of a step of several batches, each contributes its share of the targets
        total = torch.as_tensor(targets.sum() if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        value = (options.soft * soft + options.hidden * hidden) * targets.sum() / total
        return value + (1 - options.soft) * hard(outputs, labels, num_items_in_batch) if options.soft < 1 else value

    curve = fit(StudentWithTeacher(small, whole), problem, options, loss, work)
    whole.to("cpu")
    return curve


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns `T^2 KL(teacher || student)` of logits `(rows, labels)`, averaged over rows."""
    predicted = functional.log_softmax(student.float() / temperature, dim=-1)
    expected = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(predicted, expected, reduction="batchmean", log_target=True) * temperature**2


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
