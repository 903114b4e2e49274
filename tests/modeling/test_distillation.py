from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS
from rows import classification_loss

from deploykit import tasks
from deploykit.modeling import distillation, surgery
from deploykit.modeling.losses import divergence
from deploykit.modeling.options import DistillOptions
from deploykit.modeling.problem import Teacher, collate
from deploykit.tasks import IGNORE_INDEX

pytestmark = pytest.mark.usefixtures("one_thread")


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_divergence_is_the_formula(temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 3)) * 3
    soft, taught = log_softmax(student / temperature), log_softmax(teacher / temperature)
    expected = temperature**2 * (np.exp(taught) * (taught - soft)).sum(axis=-1).mean()
    found = divergence("cross_entropy", torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_hidden_error_is_relative_and_leaves_padding_and_embeddings_out():
    rng = np.random.default_rng(0)
    student, teacher = ([rng.normal(size=(2, 5, 4)) for _ in range(3)] for _ in range(2))
    real = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
    pairs = list(zip(student, teacher, strict=True))[1:]
    expected = np.mean([((a - b)[real] ** 2).mean() / (b[real] ** 2).mean() for a, b in pairs])
    given = [tuple(torch.from_numpy(layer) for layer in found) for found in (student, teacher)]
    assert float(distillation.hidden_error(*given, torch.from_numpy(real))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "equal"),
    [((0, 1, 2, 3), [0, 1, 2, 3]), ((0, 3), [2, 3]), ((1, 2), [1, 3]), ((0,), [3]), ((3,), [3])],
    ids=str,
)
def test_each_layer_is_to_hand_on_what_the_next_was_fed(kept, equal, tiny_encoder):
    teacher = tiny_encoder(layers=4)
    assert distillation.matching_layers(Teacher(teacher, kept)) == equal
    both = tiny_encoder("t5", "text2text-generation", layers=4)
    assert distillation.matching_layers(Teacher(both, (*kept, 5, 7))) == equal  # the encoder's are compared


def test_the_hidden_error_compares_the_layers_that_it_is_told():
    rng = np.random.default_rng(0)
    student, teacher = ([torch.from_numpy(rng.normal(size=(2, 5, 4))) for _ in range(size)] for size in (3, 5))
    real = torch.ones(2, 5, dtype=bool)
    found = distillation.hidden_error(tuple(student), tuple(teacher), real, [1, 3])
    pairs = [(student[1], teacher[2]), (student[2], teacher[4])]
    expected = np.mean([float((a - b).square().mean() / b.square().mean()) for a, b in pairs])
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "task"), [("gpt2", TASKS[0]), ("albert", TASKS[0]), ("t5", TASKS[0]), ("t5", "text2text-generation")]
)
@pytest.mark.usefixtures("reading_again")
def test_models_of_every_make_can_be_taught(kind, task, tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(kind, task, layers=3), problem_of(task, 40)
    small = surgery.without_layers(whole, [1])
    depth = sum(surgery.depths(whole))
    problem = replace(problem, teacher=Teacher(whole, tuple(index for index in range(depth) if index != 1)))
    options = DistillOptions(epochs=8, learning_rate=2e-3, batch_size=8, bf16="off", soft=1.0)
    curve = distillation.distill(small, small, problem, options, tmp_path)
    losses = [point["loss"] for point in curve if point["split"] == "train"]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_weighted_sum(task, tiny_encoder, problem_of, tmp_path, monkeypatch):
    captured = []
    monkeypatch.setattr(distillation, "fit", lambda *arguments: captured.append(arguments) or [])
    student, teacher, problem = tiny_encoder(task=task, seed=1), tiny_encoder(task=task, seed=2), problem_of(task)
    options = DistillOptions(soft=0.7, hidden=0.3, temperature=3.0)
    assert distillation.distill(student, teacher, problem, options, tmp_path) == []
    ((pupil, _, _, loss, _),) = captured
    batch = collate(problem, problem.train[:6])
    labels, given = batch.pop("labels"), batch
    pupil.train()
    torch.manual_seed(0)
    found = pupil(**given)
    assert not teacher.training
    torch.testing.assert_close(found["teacher"]["logits"], teacher(**given).logits)
    assert not found["teacher"]["logits"].requires_grad
    shown = labels != IGNORE_INDEX
    soft = divergence("cross_entropy", found["logits"][shown], found["teacher"]["logits"][shown], 3.0)
    near = distillation.hidden_error(found["hidden"], found["teacher_hidden"], given["attention_mask"].bool())
    expected = 0.7 * soft + 0.3 * classification_loss()(found, labels) + 0.3 * near
    torch.testing.assert_close(loss(found, labels), expected)
    units = shown.sum()  # half a step's units: half its loss, so that the halves add up
    torch.testing.assert_close(loss(found, labels, units * 2), expected / 2)


def test_labels_are_not_used_where_the_teacher_says_all(tiny_encoder, problem_of, tmp_path, monkeypatch):
    losses = {}
    monkeypatch.setattr(distillation, "fit", lambda *arguments: losses.setdefault(arguments[2].soft, arguments[3]))
    for soft in (0.9, 1.0):
        distillation.distill(tiny_encoder(), tiny_encoder(), problem_of(), DistillOptions(soft=soft), tmp_path)
    batch = collate(problem_of(), problem_of().train[:6])
    labels = batch.pop("labels")
    found = distillation.StudentWithTeacher(tiny_encoder(seed=1), tiny_encoder(seed=2)).train()(**batch)
    for soft, same in ((0.9, False), (1.0, True)):
        assert torch.equal(losses[soft](found, labels), losses[soft](found, 1 - labels)) is same


def test_the_teacher_is_no_part_of_what_is_saved_or_learned(tiny_encoder):
    pupil = distillation.StudentWithTeacher(tiny_encoder(), tiny_encoder(seed=2).train())
    count = sum(parameter.numel() for parameter in tiny_encoder().parameters())
    assert sum(parameter.numel() for parameter in pupil.parameters()) == count
    assert all(name.startswith("student.") for name in pupil.state_dict())
    assert not pupil.train()._teacher[0].training


def test_a_pupil_takes_only_what_its_student_takes(tiny_encoder, problem_of):
    pupil = distillation.StudentWithTeacher(tiny_encoder("distilbert"), tiny_encoder("distilbert", seed=1)).eval()
    batch = collate(problem_of(), problem_of().train[:2])
    del batch["labels"]
    assert set(pupil(**batch)) == {"logits"}
    assert "teacher" in pupil.train()(**batch)


def test_a_head_without_rows_in_a_batch_adds_nothing(tiny_encoder, problem_of, tmp_path, monkeypatch):
    captured = []
    monkeypatch.setattr(distillation, "fit", lambda *arguments: captured.append(arguments) or [])
    task = tasks.load("multi-task")
    heads = {name: {"method": "text-classification", "columns": {"label": name}} for name in ("mood", "topic")}
    problem = replace(problem_of(), task=task.bind(task.Options(heads=heads)))
    distillation.distill(tiny_encoder(), tiny_encoder(seed=1), problem, DistillOptions(soft=0.7), tmp_path)
    loss, hidden = captured[0][3], (torch.zeros(4, 2, 8), torch.ones(4, 2, 8))

    def outputs(seed):
        torch.manual_seed(seed)
        return {f"{name}/logits": torch.randn(4, 3, requires_grad=True) for name in heads}

    student = {**outputs(0), "hidden": hidden, "teacher": outputs(1), "teacher_hidden": hidden}
    student["is_token"] = torch.ones(4, 2, dtype=torch.bool)
    none, some = torch.full((4,), IGNORE_INDEX), torch.tensor([0, 1, 2, 0])
    both, first, second = (
        loss(student, {"mood/labels": mood, "topic/labels": topic})
        for mood, topic in ((some, some), (some, none), (none, some))
    )
    torch.testing.assert_close(first + second, both)
    assert min(first, second) > 0
