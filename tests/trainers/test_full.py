import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight

from deploykit.modeling import finetuning
from deploykit.modeling.problem import balanced_weights
from deploykit.tasks import IGNORE_INDEX
from deploykit.trainers import full

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"class_weights": "square"}, {"epoch": 3}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        full.Options(**options)


@pytest.mark.parametrize("task", TASKS)
def test_balanced_weights_are_those_of_scikit_learn(task, problem_of):
    problem = problem_of(task, 37)
    targets = np.concatenate([row.targets["labels"].reshape(-1) for row in problem.train])
    targets = targets[targets != IGNORE_INDEX]
    expected = compute_class_weight("balanced", classes=np.arange(len(problem.spec.labels)), y=targets)
    weights = balanced_weights(problem)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert len(set(expected)) > 1
    assert expected[targets].mean() == pytest.approx(1)  # the learning rate keeps its meaning


def test_weights_and_smoothing_reach_the_loss(monkeypatch, tmp_path, problem_of):
    seen = []
    monkeypatch.setattr(finetuning, "fit", lambda model, problem, options, loss, work: seen.append(loss) or [])
    problem = problem_of("token-classification", 37)
    options = full.Options(class_weights="balanced", label_smoothing=0.1)
    assert full.train(torch.nn.Identity(), problem, options, tmp_path).curve == []
    logits, labels = torch.randn(4, 6, 3), torch.randint(0, 3, (4, 6))
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 3),
        labels.reshape(-1),
        weight=balanced_weights(problem),
        label_smoothing=0.1,
        reduction="sum",
    )
    torch.testing.assert_close(seen[0]({"logits": logits}, labels), expected / 24)


def test_every_weight_moves(tmp_path, tiny_encoder, problem_of):
    model = tiny_encoder()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    options = full.Options(epochs=1, learning_rate=1e-3, bf16="off", label_smoothing=0.1, class_weights="balanced")
    full.train(model, problem_of(count=32), options, tmp_path)
    still = {name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])}
    assert still == set()
