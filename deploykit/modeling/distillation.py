"""The unpruned model teaches the pruned one.

`loss = a T^2 KL(teacher || student, temperature T) + (1 - a) CE(labels) + b mean_l MSE(hidden_l)`
(Hinton et al., 2015; hidden states as in Jiao et al., 2020, section 3.1, without a projection because
width pruning keeps the hidden size). The hidden states' error is relative to their mean square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.nn import functional

from deploykit.modeling import surgery
from deploykit.modeling.finetuning import FitOptions, fit
from deploykit.modeling.losses import cross_entropy
from deploykit.modeling.problem import Problem, Teacher, inputs
from deploykit.tasks import IGNORED

SHIFT = "prepare_decoder_input_ids_from_labels"  # what models that write text call it


class DistillOptions(FitOptions):
    """How the unpruned model teaches the pruned one.

    The best epoch is always the one that is best by the labels of the validation split.
    """

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training rows; may be a part of one."""
    temperature: float = Field(default=2.0, gt=0)
    """Temperature of both models' logits."""
    soft: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher's logits against the labels; at 1 no label is used in learning."""
    hidden: float = Field(default=1.0, ge=0)
    """Weight of the difference between the hidden states."""


class Pupil(torch.nn.Module):
    """A student that runs its teacher on the same batch; the teacher is no part of its state."""

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)
        self.register_state_dict_post_hook(_separate)  # type: ignore[no-untyped-call]
        if hasattr(student, SHIFT):
            setattr(self, SHIFT, getattr(student, SHIFT))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Returns the student's logits and, while it learns, all that the loss compares."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = inputs(self.student, given)
        if decoder_input_ids is not None:
            batch["decoder_input_ids"] = decoder_input_ids
        if not self.training:
            return {"logits": self.student(**batch).logits}
        with torch.no_grad():
            teacher = self._teacher[0].to(input_ids.device)  # the Trainer moves only what is registered
            taught = teacher(**batch, output_hidden_states=True)
        found = self.student(**batch, output_hidden_states=True)
        return {
            "logits": found.logits,
            "hidden": _hidden(found),
            "taught": taught.logits,
            "taught_hidden": _hidden(taught),
            "real": attention_mask.bool(),
        }


def distill(
    small: torch.nn.Module, whole: torch.nn.Module, problem: Problem, options: DistillOptions, work: Path
) -> list[dict[str, Any]]:
    """Trains `small` in place, taught by `whole` or the problem's own teacher; returns the learning curve."""
    hard, layers = cross_entropy(), None
    if problem.teacher:
        whole, layers = problem.teacher.model, handed_on(problem.teacher)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        if "taught" not in outputs:
            return hard(outputs, labels, num_items_in_batch)
        shown = labels != IGNORED
        soft = divergence(outputs["logits"][shown], outputs["taught"][shown], options.temperature)
        hidden = hidden_error(outputs["hidden"], outputs["taught_hidden"], outputs["real"], layers)
        count = torch.as_tensor(shown.sum() if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        taught = (options.soft * soft + options.hidden * hidden) * shown.sum() / count  # of a step of several batches
        return taught + (1 - options.soft) * hard(outputs, labels, num_items_in_batch) if options.soft < 1 else taught

    curve = fit(Pupil(small, whole), problem, options, loss, work)
    whole.to("cpu")  # as it came
    return curve


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns `T^2 KL(teacher || student)` of logits `(rows, labels)`, averaged over rows."""
    soft = functional.log_softmax(student.float() / temperature, dim=-1)
    taught = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(soft, taught, reduction="batchmean", log_target=True) * temperature**2


def hidden_error(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    real: torch.Tensor,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Returns the squared error of the layers' outputs, relative to the teacher's mean square.

    Args:
        student: embeddings and layers' outputs, each `(batch, tokens, hidden)`.
        teacher: the same.
        real: which tokens are no padding, `(batch, tokens)`.
        layers: the teacher's layer that each of the student's is compared with (default: all of them).
    """
    wanted = teacher[1:] if layers is None else [teacher[1 + layer] for layer in layers]
    errors = [
        functional.mse_loss(a[real].float(), b[real].float()) / b[real].float().square().mean()
        for a, b in zip(student[1:], wanted, strict=True)
    ]
    return torch.stack(errors).mean()


def handed_on(teacher: Teacher) -> list[int]:
    """Returns the teacher's layer that each layer of a shallower student is to equal, in the first stack.

    It is the one before the student's next layer, so that each hands on what its successor was fed in the
    teacher; the last is to equal the last.
    """
    depth = surgery.depths(teacher.model)[0]
    kept = [layer for layer in teacher.layers if layer < depth]
    return [following - 1 for following in (*kept[1:], depth)]


def _separate(_: torch.nn.Module, state: dict[str, torch.Tensor], *__: Any) -> None:
    """Copies tensors that have a second name: safetensors refuse them, and the Trainer knows ties of its own models."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def _hidden(outputs: Any) -> tuple[torch.Tensor, ...]:
    """Returns the states between the layers; of an encoder and a decoder, the encoder's."""
    found: tuple[torch.Tensor, ...] = outputs.get("hidden_states") or outputs["encoder_hidden_states"]
    return found
