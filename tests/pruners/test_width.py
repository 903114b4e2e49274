from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError

from deploykit import architectures
from deploykit.architectures import Kept, Shape
from deploykit.errors import ModelError
from deploykit.fitting import cross_entropy, inputs
from deploykit.pruners import _distillation, _fisher, _refit, width
from deploykit.pruners._distillation import DistillOptions
from deploykit.tasks import IGNORED

pytestmark = pytest.mark.usefixtures("one_thread")

RECOVERY = {"epochs": 3, "learning_rate": 2e-3, "batch_size": 8, "bf16": "off"}


def far(model, whole, rows, tokenizer):
    """The root mean square difference of two models' logits."""
    (batch,) = _fisher.padded(rows, tokenizer)
    with torch.inference_mode():
        one, other = (found.eval()(**inputs(found, batch)).logits for found in (model, whole))
    shown = batch["attention_mask"].bool() if one.ndim == 3 else slice(None)
    return float((one - other)[shown].square().mean().sqrt())


# what is asked for


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"keep": 1.01}, {"calibration_rows": 0}, {"refit_tokens": -1}, {"kep": 1}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        width.Options(**options)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"soft": 1.1}, {"hidden": -1}, {"epochs": 0}])
def test_ways_to_distill_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        width.Options(distill=options)


def test_a_model_of_an_unknown_type_is_refused(tiny_encoder, problem_of, tmp_path):
    model = tiny_encoder()
    model.config.model_type = "unheard-of"
    with pytest.raises(ModelError, match="models of type 'unheard-of' cannot be pruned"):
        width.prune(model, problem_of(count=8), width.Options(), tmp_path)


# importance


def brute_force(model, row):
    """The squared gradient of one row's loss by a mask on each head and neuron: sum of input times its gradient."""
    found, parts = {}, [part for layer in architectures.layers(model) for part in (layer.projection, layer.down)]
    hooks = []
    for part in parts:

        def keep(_, fed, part=part):
            fed[0].retain_grad()
            found[part] = fed[0]

        hooks.append(part.register_forward_pre_hook(keep))
    ids = torch.from_numpy(row.encoding.ids)[None]
    logits = model(input_ids=ids).logits.reshape(-1, model.config.num_labels)
    targets = torch.from_numpy(row.target).reshape(-1)
    torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    columns = [(found[part] * found[part].grad).sum(dim=(0, 1)).detach() for part in parts]
    heads, neurons = columns[0::2], columns[1::2]
    return [row.reshape(4, -1).sum(1).square().numpy() for row in heads], [row.square().numpy() for row in neurons]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_importance_is_the_squared_gradient_of_each_row_alone(kind, task, tiny_encoder, problem_of, tokenizer):
    model, rows = tiny_encoder(kind, task), problem_of(task).train[:3]
    assert len({len(row.encoding) for row in rows}) > 1  # so that some are padded
    heads, neurons = _fisher.importance(model, rows, tokenizer)
    each = [brute_force(model, row) for row in rows]
    for layer in range(2):
        for found, kind_of in ((heads, 0), (neurons, 1)):
            expected = sum(part[kind_of][layer] for part in each)
            assert expected.max() > 0
            np.testing.assert_allclose(found[layer], expected, rtol=2e-3, atol=1e-5 * expected.max())
    assert (heads[0].shape, neurons[0].shape) == ((4,), (128,))


def test_a_head_that_does_nothing_is_worth_nothing(tiny_encoder, problem_of, tokenizer):
    model = tiny_encoder()
    model.bert.encoder.layer[0].attention.output.dense.weight.data[:, 8:16] = 0
    model.bert.encoder.layer[1].output.dense.weight.data[:, 5] = 0
    heads, neurons = _fisher.importance(model, problem_of().train[:8], tokenizer)
    assert (heads[0][1], neurons[1][5]) == (0, 0)
    assert (np.delete(heads[0], 1) > 0).all()
    kept = width.chosen(heads, neurons, 0.99)
    assert kept[0].heads == (0, 1, 2, 3)
    assert width.chosen(heads, neurons, 7 / 8)[0].heads == (0, 2, 3)


def test_importance_leaves_the_model_as_it_was(tiny_encoder, problem_of, tokenizer, logits_of):
    model = tiny_encoder()
    before = logits_of(model)
    _fisher.importance(model, problem_of().train[:8], tokenizer)
    for one, other in zip(before, logits_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


# what is kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_the_best_of_all_layers_stay_and_one_of_each(keep, seed):
    rng = np.random.default_rng(seed)
    worth = [rng.random(size) * scale for size, scale in ((12, 1), (12, 1e-6), (6, 100))]
    kept = width.best_of_all(worth, keep)
    assert sum(map(len, kept)) == max(3, round(keep * 30))
    for row, indices in zip(worth, kept, strict=True):
        assert len(indices) >= 1
        assert all(before < after for before, after in pairwise(indices))
        gone = np.delete(row, indices)
        assert gone.max(initial=-1) <= row[indices].min()
    everywhere = [
        (row[i], i in set(indices)) for row, indices in zip(worth, kept, strict=True) for i in range(len(row))
    ]
    free = max((value for value, stays in everywhere if not stays), default=-1)
    beaten = sum(value < free for value, stays in everywhere if stays)
    assert beaten <= 2  # only those that stay for their layer's sake


def test_equal_worth_is_decided_the_same_way_every_time():
    worth = [np.ones(4), np.ones(4)]
    assert [indices.tolist() for indices in width.best_of_all(worth, 0.5)] == [[0, 1, 2], [0]]


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_neurons_are_kept_in_multiples_of_64(keep):
    rng = np.random.default_rng(0)
    neurons = [rng.random(1536) * scale for scale in (1, 0.01, 3)]
    kept = width.chosen([rng.random(12) for _ in neurons], neurons, keep)
    assert {len(found.neurons) % 64 for found in kept} == {0}
    assert min(len(found.neurons) for found in kept) >= 64
    assert sum(len(found.neurons) for found in kept) == 64 * max(3, round(keep * 72))
    for found, row in zip(kept, neurons, strict=True):
        assert list(found.neurons) == sorted(set(found.neurons))
        best = np.argsort(-row)[: len(found.neurons)]
        assert set(found.neurons) == set(best.tolist())


def test_calibration_rows_are_drawn_once_and_the_same_for_a_seed(problem_of):
    rows = problem_of().train
    drawn = width.sample(rows, 50, 3)
    assert len({id(row) for row in drawn}) == 50
    assert [id(row) for row in drawn] == [id(row) for row in width.sample(rows, 50, 3)]
    assert [id(row) for row in drawn] != [id(row) for row in width.sample(rows, 50, 4)]
    assert len(width.sample(rows, 10**6, 0)) == len(rows)
    lengths = np.cumsum([len(row.encoding) for row in drawn])
    assert width.within(drawn, int(lengths[9])) == drawn[:10]
    assert width.within(drawn, int(lengths[9]) - 1) == drawn[:9]
    assert width.within(drawn, 1) == drawn[:1]


# the refit


def test_ridge_is_the_closed_form():
    rng = np.random.default_rng(0)
    fed, out, weight = (rng.normal(size=shape) for shape in ((50, 7), (50, 3), (3, 7)))
    strength = 0.1 * np.trace(fed.T @ fed) / 7
    expected = np.linalg.inv(fed.T @ fed + strength * np.eye(7)) @ (fed.T @ out + strength * weight.T)
    found = _refit.ridge(*(torch.from_numpy(array).float() for array in (fed, out, weight)), penalty=0.1)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 1e6])
def test_ridge_lies_between_least_squares_and_the_old_weights(penalty):
    rng = np.random.default_rng(1)
    fed, out, weight = (torch.from_numpy(rng.normal(size=shape)).float() for shape in ((80, 6), (80, 4), (4, 6)))
    found = _refit.ridge(fed, out, weight, penalty)

    def error(weights):
        return float((fed @ weights.T - out).square().sum())

    best = torch.linalg.lstsq(fed, out).solution.T
    assert error(best) <= error(found) * (1 + 1e-6)
    assert error(found) <= error(weight)
    if penalty == 1e6:
        torch.testing.assert_close(found, weight, atol=1e-4, rtol=0)
    if penalty == 1e-6:
        torch.testing.assert_close(found, best, atol=1e-4, rtol=0)


def test_inputs_that_are_all_zero_leave_the_weights():
    weight = torch.randn(3, 5)
    torch.testing.assert_close(_refit.ridge(torch.zeros(9, 5), torch.randn(9, 3), weight), weight)


def outputs(model, rows, tokenizer):
    """What every output projection puts out for the real tokens of rows."""
    parts = [part for layer in architectures.layers(model) for part in (layer.projection, layer.down)]
    return [found.float() for found in _refit._outputs(model, parts, list(_fisher.padded(rows, tokenizer)))]


@pytest.mark.parametrize("task", TASKS)
def test_a_refit_reduces_the_error_of_every_output_that_was_cut(task, fitted, problem_of, tokenizer):
    whole, _ = fitted(task)
    rows = problem_of(task).train[:60]
    kept = [Kept((0, 1, 2, 3), tuple(range(128))), Kept((1,), tuple(range(64)))]
    small = architectures.shrunk(whole, kept)
    refitted = deepcopy(small)
    _refit.refit(refitted, whole, rows, tokenizer)
    wanted, cut, better = (outputs(model, rows, tokenizer) for model in (whole, small, refitted))
    errors = [[float((a - b).square().mean()) for a, b in zip(found, wanted, strict=True)] for found in (cut, better)]
    assert errors[0][:2] == errors[1][:2] == [0, 0]
    assert errors[1][2] < errors[0][2]
    assert errors[1][3] < errors[0][3]
    for name, tensor in small.state_dict().items():
        moved = not torch.equal(tensor, refitted.state_dict()[name])
        assert moved == name.endswith(("layer.1.attention.output.dense.weight", "layer.1.output.dense.weight")), name


def test_a_refit_of_a_model_that_was_not_cut_changes_nothing(tiny_encoder, problem_of, tokenizer):
    whole = tiny_encoder()
    same = deepcopy(whole)
    _refit.refit(same, whole, problem_of().train[:8], tokenizer)
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_refit_leaves_no_hooks(tiny_encoder, problem_of, tokenizer):
    whole = tiny_encoder()
    small = architectures.shrunk(whole, [Kept((0,), tuple(range(64)))] * 2)
    _refit.refit(small, whole, problem_of().train[:8], tokenizer)
    assert not any(part._forward_hooks or part._forward_pre_hooks for one in (whole, small) for part in one.modules())


# distillation


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_divergence_is_the_formula(temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 3)) * 3
    soft, taught = log_softmax(student / temperature), log_softmax(teacher / temperature)
    expected = temperature**2 * (np.exp(taught) * (taught - soft)).sum(axis=-1).mean()
    found = _distillation.divergence(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_hidden_error_is_relative_and_leaves_padding_and_embeddings_out():
    rng = np.random.default_rng(0)
    student, teacher = ([rng.normal(size=(2, 5, 4)) for _ in range(3)] for _ in range(2))
    real = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
    pairs = list(zip(student, teacher, strict=True))[1:]
    expected = np.mean([((a - b)[real] ** 2).mean() / (b[real] ** 2).mean() for a, b in pairs])
    given = [tuple(torch.from_numpy(layer) for layer in found) for found in (student, teacher)]
    assert float(_distillation.hidden_error(*given, torch.from_numpy(real))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_weighted_sum(task, tiny_encoder, problem_of, tmp_path, monkeypatch):
    captured = []
    monkeypatch.setattr(_distillation, "fit", lambda *arguments: captured.append(arguments) or [])
    student, teacher, problem = tiny_encoder(task=task, seed=1), tiny_encoder(task=task, seed=2), problem_of(task)
    options = DistillOptions(soft=0.7, hidden=0.3, temperature=3.0)
    assert _distillation.distill(student, teacher, problem, options, tmp_path) == []
    ((pupil, _, _, loss, _),) = captured
    (batch,) = _fisher.padded(problem.train[:6], problem.tokenizer)
    labels, given = batch.pop("labels"), batch
    pupil.train()
    torch.manual_seed(0)
    found = pupil(**given)
    assert not teacher.training
    torch.testing.assert_close(found["taught"], teacher(**given).logits)
    assert not found["taught"].requires_grad
    shown = labels != IGNORED
    soft = _distillation.divergence(found["logits"][shown], found["taught"][shown], 3.0)
    near = _distillation.hidden_error(found["hidden"], found["taught_hidden"], given["attention_mask"].bool())
    expected = 0.7 * soft + 0.3 * cross_entropy()(found, labels) + 0.3 * near
    torch.testing.assert_close(loss(found, labels), expected)
    units = shown.sum()  # half a step's units: half its loss, so that the halves add up
    torch.testing.assert_close(loss(found, labels, units * 2), expected / 2)


def test_the_teacher_is_no_part_of_what_is_saved_or_learned(tiny_encoder):
    pupil = _distillation.Pupil(tiny_encoder(), tiny_encoder(seed=2).train())
    count = sum(parameter.numel() for parameter in tiny_encoder().parameters())
    assert sum(parameter.numel() for parameter in pupil.parameters()) == count
    assert all(name.startswith("student.") for name in pupil.state_dict())
    assert not pupil.train()._teacher[0].training


def test_a_pupil_takes_only_what_its_student_takes(tiny_encoder, problem_of):
    pupil = _distillation.Pupil(tiny_encoder("distilbert"), tiny_encoder("distilbert", seed=1)).eval()
    (batch,) = _fisher.padded(problem_of().train[:2], problem_of().tokenizer)
    del batch["labels"]
    assert set(pupil(**batch)) == {"logits"}
    assert "taught" in pupil.train()(**batch)


# the whole method


@pytest.mark.parametrize("task", TASKS)
def test_a_refit_and_a_teacher_bring_a_pruned_model_nearer_to_the_whole_one(task, fitted, problem_of, tmp_path):
    whole, _ = fitted(task)
    problem = problem_of(task)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    harsh, distances = {"keep": 0.3, "refit_tokens": 0}, []
    for index, options in enumerate(({}, {"refit_tokens": 16384}, {"distill": RECOVERY})):
        small, facts = width.prune(whole, problem, width.Options(**{**harsh, **options}), tmp_path / f"{index}")
        assert architectures.shapes(small) == [Shape(**layer) for layer in facts["layers"]]
        distances.append(far(small, whole, problem.validation, problem.tokenizer))
        if "distill" in options:
            assert [point["epoch"] for point in facts["curve"] if point["split"] == "validation"] == [1, 2, 3]
        else:
            assert facts["curve"] == []
    cut, refitted, taught = distances
    assert refitted < 0.7 * cut
    assert taught < 0.7 * cut
    assert all(torch.equal(before[name], tensor) for name, tensor in whole.state_dict().items())


def test_keeping_everything_gives_the_same_model(tiny_encoder, problem_of, tmp_path):
    whole = tiny_encoder()
    small, facts = width.prune(whole, problem_of(count=16), width.Options(keep=1.0), tmp_path)
    assert facts == {"layers": [{"heads": 4, "neurons": 128}] * 2, "curve": []}
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_the_same_seed_prunes_the_same(tiny_encoder, problem_of, tmp_path):
    found = [
        width.prune(
            tiny_encoder(), problem_of(count=40, seed=seed), width.Options(keep=0.5, calibration_rows=8), tmp_path
        )
        for seed in (0, 0)
    ]
    (one, facts), (other, others) = found
    assert facts == others
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
