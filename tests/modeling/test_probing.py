"""Heads that are fitted to the states of an encoder before all weights are trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from deploykit import tasks
from deploykit.modeling import probing
from deploykit.modeling.heads import EncoderWithHeads, TextHead, heads_config, with_heads
from deploykit.modeling.losses import task_loss
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import model_inputs, padded_batches, validation_metrics
from deploykit.tasks import Target

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = FitOptions(bf16="off")


@pytest.fixture
def encoder(tiny_encoder, problem_of):
    """A random encoder with a new head for the labels of `problem_of()`."""
    labels = problem_of().spec.labels
    heads = heads_config({"logits": ("labels",)}, {"logits": labels})
    torch.manual_seed(0)
    return with_heads(tiny_encoder("bert").bert, heads)


def mean_loss(model, problem):
    loss, sums = task_loss(problem.task), []
    for batch in padded_batches(problem, problem.train):
        with torch.inference_mode():
            sums.append(loss(model.eval()(**model_inputs(model, batch)), batch["labels"]) * len(batch["labels"]))
    return float(sum(sums)) / len(problem.train)


def test_the_head_standardizes_states_and_fits_the_training_rows(encoder, problem_of):
    problem = problem_of()
    before = mean_loss(encoder, problem), validation_metrics(encoder, problem, "before")["accuracy"]
    weights = {name: tensor.clone() for name, tensor in encoder.base_model.state_dict().items()}
    probing.fit_text_heads(encoder, problem, OPTIONS)
    assert mean_loss(encoder, problem) < 0.8 * before[0]
    assert validation_metrics(encoder, problem, "after")["accuracy"] > before[1]
    assert all(torch.equal(tensor, encoder.base_model.state_dict()[name]) for name, tensor in weights.items())

    seen = []
    head = encoder.heads["logits"]
    head.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mean_loss(encoder, problem)
    states = torch.cat(seen)
    np.testing.assert_allclose(states.mean(dim=0), 0, atol=1e-4)
    assert states.std(dim=0, correction=0).max() < 1 + 1e-3


def test_a_model_of_transformers_is_left_as_it_is(tiny_encoder, problem_of):
    model = tiny_encoder("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probing.fit_text_heads(model, problem_of(), OPTIONS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error", "binary_cross_entropy"])
def test_the_regression_finds_the_optimum_that_others_find(loss, monkeypatch):
    """The penalty is on weights alone; scikit-learn sums losses, and `C` divides them."""
    draws, strength, rows = np.random.default_rng(0), 0.1, 300
    monkeypatch.setattr(probing, "PENALTIES", (strength,))
    states = draws.normal(size=(rows, 6)).astype(np.float32)
    noisy = states @ draws.normal(size=(6, 3)) + draws.normal(size=(rows, 3))
    if loss == "cross_entropy":
        targets, other = noisy.argmax(axis=1), LogisticRegression(C=1 / (strength * rows), tol=1e-8)
    elif loss == "squared_error":
        targets, other = noisy[:, 0].astype(np.float32), Ridge(alpha=strength * rows / 2)
    else:  # two labels, each a problem of its own; the mean is over rows and labels
        targets, other = (noisy[:, :2] > 0).astype(np.float32), None
    head = TextHead(6, {"cross_entropy": 3, "squared_error": 1, "binary_cross_entropy": 2}[loss])
    split = torch.from_numpy(states), torch.from_numpy(targets)
    weight, bias, value = probing._fit_linear_head(head, Target("logits", loss), split, split, None)
    if other is not None:
        other.fit(states, targets)
        np.testing.assert_allclose(weight, np.atleast_2d(other.coef_), atol=2e-3)
    else:
        for index in range(2):
            alone = LogisticRegression(C=1 / (strength * rows * 2), tol=1e-8).fit(states, targets[:, index])
            np.testing.assert_allclose(weight[index], alone.coef_[0], atol=2e-3)
    assert np.isfinite(value)
    assert bias.shape == head.output.bias.shape


def test_a_strength_is_chosen_by_validation_rows():
    """Columns that carry nothing, and fewer rows than columns: a weak penalty learns the noise."""
    draws = np.random.default_rng(1)
    states = torch.from_numpy(draws.normal(size=(140, 100)).astype(np.float32))
    targets = (states[:, 0] + torch.from_numpy(draws.normal(size=140)) > 0).long()
    train, validation = ((states[part], targets[part]) for part in (slice(40), slice(40, None)))
    head, target = TextHead(100, 2), Target("logits", "cross_entropy")
    _, _, value = probing._fit_linear_head(head, target, train, validation, None)
    losses = {}
    for strength in probing.PENALTIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(probing, "PENALTIES", (strength,))
            losses[strength] = probing._fit_linear_head(head, target, train, validation, None)[2]
    assert value == pytest.approx(min(losses.values()), rel=0.05)
    assert max(losses.values()) > 1.5 * value


def test_rows_without_a_target_are_not_counted(tiny_encoder, problem_of):
    """Half of the rows have none; a head of tokens beside it is left as it is."""
    problem = problem_of()
    outputs = {"logits": ("labels",), "names/logits": ("tokens", "labels")}
    heads = heads_config(outputs, {"logits": problem.spec.labels, "names/logits": ("O", "B-A")})
    model = with_heads(tiny_encoder("bert").bert, heads)
    before = model.heads["names/logits"].output.weight.clone()
    missing = tuple(
        replace(row, targets={"labels": np.array(tasks.IGNORE_INDEX)}) if index % 2 else row
        for index, row in enumerate(problem.train)
    )
    probing.fit_text_heads(model, replace(problem, train=missing), OPTIONS)
    assert isinstance(model, EncoderWithHeads)
    assert torch.equal(before, model.heads["names/logits"].output.weight)
    assert validation_metrics(model, problem, "after")["accuracy"] > 0.5
