"""NaN and infinite weights, losses and logits stop the stage where they first appear, and the message says why."""

import json

import numpy as np
import pytest
import torch
from models import TASKS
from rows import classification_loss
from safetensors.torch import load_file, save_file

import deploykit
from deploykit.errors import ModelError
from deploykit.evaluation import parity
from deploykit.modeling import finetuning
from deploykit.modeling.distillation import distill
from deploykit.modeling.finetuning import fit
from deploykit.modeling.importance import importance
from deploykit.modeling.options import DistillOptions, FitOptions
from deploykit.modeling.problem import first_metric
from deploykit.pruners import layers, width
from deploykit.tasks import IGNORE_INDEX

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"epochs": 1, "batch_size": 16, "bf16": "off"}
BROKEN = "bert.encoder.layer.0.output.dense.weight"


def break_weight(model, value=float("nan")):
    with torch.no_grad():
        dict(model.named_parameters())[BROKEN][0, 0] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("train", [{"method": "full", "epochs": 1}, None], ids=["train", "null"])
def test_a_base_model_whose_weights_are_no_numbers_is_refused(tmp_path, tiny_recipe, tiny_model, train, value):
    base = tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights[BROKEN][0, 0] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, model=str(base), train=train, prune=None))
    with pytest.raises(
        ModelError, match=rf"1 of \d+ values of .* {BROKEN!r} are NaN or infinite.*another copy"
    ) as caught:
        deploykit.train(recipe)
    assert caught.value.exit_code == 2


def test_a_learning_rate_that_is_far_too_high_stops_at_the_step_that_it_breaks(tmp_path, tiny_recipe):
    train = {"method": "full", "epochs": 2, "learning_rate": 1e30, "max_grad_norm": 1e30, "bf16": "off"}
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, train=train, prune=None))
    with pytest.raises(ModelError, match=r"at step [23], with the learning rate 1e\+30.* Lower learning_rate"):
        deploykit.train(recipe)
    assert not list((tmp_path / "runs/tiny").glob("train*"))


def test_logits_that_are_numbers_but_far_too_large_are_what_diverged(tmp_path, tiny_recipe):
    """One step at such a rate leaves numbers, but no float32 graph could repeat them within the export's tolerance."""
    train = {"method": "full", "epochs": 1, "learning_rate": 1e4, "batch_size": 512, "bf16": "off"}
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, train=train, prune=None))
    with pytest.raises(ModelError, match=r"logits reach .*e\+\d\d, .* training diverged\. Lower learning_rate"):
        deploykit.run(recipe, until="export")


def test_a_model_as_it_is_with_far_too_large_logits_is_not_the_export_s_fault(tmp_path, tiny_recipe, tiny_model):
    base = tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["classifier.weight"] *= 1e6
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = deploykit.load_recipe(
        tiny_recipe(tmp_path, model=str(base), train=None, prune=None, quantize=None, package=None)
    )
    with pytest.raises(ModelError, match=r"logits of the model reach .*e\+\d\d.* export\.tolerance"):
        deploykit.run(recipe)


def test_a_loss_that_is_no_number_stops_the_first_step(tmp_path, tiny_encoder, problem_of):
    with pytest.raises(ModelError, match=r"the loss is nan at step 1, with the learning rate 0\.001"):
        fit(
            break_weight(tiny_encoder()),
            problem_of(count=32),
            FitOptions(**QUICK, learning_rate=1e-3),
            classification_loss(),
            tmp_path,
        )


def test_an_epoch_whose_logits_are_no_numbers_is_never_the_best(tmp_path, tiny_encoder, problem_of):
    """Only what is judged is broken: such an epoch would have the share of the first label as its accuracy."""
    model = tiny_encoder()

    def hook(module, _, outputs):
        if not module.training:
            outputs.logits.fill_(float("nan"))

    model.register_forward_hook(hook)
    loss = classification_loss()

    def only_learning(outputs, labels, num_items_in_batch=None):
        return loss(outputs, labels, num_items_in_batch) if model.training else torch.tensor(0.0)

    with pytest.raises(ModelError, match=r"after epoch 1, with the learning rate 5e-05: .* NaN or infinite"):
        fit(model, problem_of(count=32), FitOptions(**QUICK), only_learning, tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_a_target_has_the_loss_zero(task):
    logits = torch.zeros(2, 3, requires_grad=True) if task == TASKS[0] else torch.zeros(2, 4, 3, requires_grad=True)
    labels = torch.full(logits.shape[:-1], IGNORE_INDEX)
    for count in (None, torch.tensor(0), 0):
        value = classification_loss()({"logits": logits}, labels, count)
        assert value == 0
        assert torch.autograd.grad(value, logits, retain_graph=True)[0].isfinite().all()


def test_distillation_stops_where_teacher_or_student_gives_no_numbers(tmp_path, tiny_encoder, problem_of):
    options = DistillOptions(**QUICK)
    for name, student, teacher in (
        ("student", break_weight(tiny_encoder()), tiny_encoder()),
        ("teacher", tiny_encoder(), break_weight(tiny_encoder())),
    ):
        with pytest.raises(ModelError, match=r"the loss is nan at step 1"):
            distill(student, teacher, problem_of(count=32), options, tmp_path / name)


def test_importance_and_metric_of_a_model_that_gives_no_numbers_are_refused(tmp_path, tiny_encoder, problem_of):
    problem, model = problem_of(count=32), break_weight(tiny_encoder())
    with pytest.raises(ModelError, match=r"importance .* NaN or infinite"):
        importance(model, problem, problem.train)
    with pytest.raises(ModelError, match="NaN or infinite"):
        first_metric(model, problem)
    for pruner, options in ((width, width.Options()), (layers, layers.Options(keep=1))):
        with pytest.raises(ModelError, match="NaN or infinite"):
            pruner.prune(model, problem, options, tmp_path)


def test_the_export_is_not_blamed_for_a_model_that_gives_no_numbers(tiny_encoder, problem_of, dataset_of):
    from deploykit.artifact.execution import Execution
    from deploykit.engines.torch import TorchModel
    from deploykit.inference.predictor import Predictor

    problem = problem_of()
    broken, whole = (
        TorchModel(model, Execution(engine="torch")) for model in (break_weight(tiny_encoder()), tiny_encoder())
    )
    reference = Predictor(problem.task, problem.spec, problem.tokenizer, broken)
    with pytest.raises(ModelError, match=r"the model itself, .* batch 1 .* NaN or infinite"):
        parity.difference(reference, whole, dataset_of().validation)


def test_a_checkpoint_that_an_older_version_broke_is_not_pruned(tmp_path, tiny_encoder, sealed_checkpoint, job_of):
    from deploykit.stages import pruning

    parent = sealed_checkpoint(tmp_path / "train-0", tiny_encoder())
    weights = load_file(parent.file("model.safetensors"))
    weights[BROKEN][0, 0] = float("nan")
    save_file(weights, parent.file("model.safetensors"), metadata={"format": "pt"})
    job = job_of("prune", parent, prune={"method": "width", "keep": 0.5})
    with pytest.raises(ModelError, match=rf"1 of \d+ values of the parameter {BROKEN!r} are NaN or infinite"):
        pruning.prune(job)


def test_scores_that_are_no_numbers_are_not_judged(tmp_path, tiny_recipe, tiny_model):
    """All weights are numbers; what they compute is too large to be one."""
    base = tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    for name, value in (("bert.pooler.dense.weight", 0), ("bert.pooler.dense.bias", 9), ("classifier.weight", 3e38)):
        weights[name].fill_(value)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    recipe = deploykit.load_recipe(tiny_recipe(tmp_path, model=str(base), train=None, prune=None))
    with pytest.raises(ModelError, match=r"NaN or infinite logits for \d+ of 60 texts of the validation split"):
        deploykit.train(recipe)


def test_the_learning_curve_shows_no_loss_that_was_hidden(tmp_path, tiny_encoder, problem_of):
    curve = fit(tiny_encoder(), problem_of(count=32), FitOptions(**QUICK), classification_loss(), tmp_path)
    assert all(np.isfinite(point["loss"]) for point in curve)
    arguments = finetuning._training_arguments(problem_of(count=32), FitOptions(**QUICK), tmp_path)
    assert arguments.logging_nan_inf_filter is False
    assert json.dumps(curve)
