import logging
import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS
from rows import classification_loss

from deploykit import tasks
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import scoring
from deploykit.inference.predictor import Predictor
from deploykit.modeling import finetuning
from deploykit.modeling.finetuning import fit
from deploykit.modeling.losses import task_loss
from deploykit.modeling.options import FitOptions
from deploykit.modeling.problem import Problem, collate, first_metric, model_inputs
from deploykit.tasks import IGNORE_INDEX
from deploykit.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"batch_size": 16, "learning_rate": 3e-3, "bf16": "off"}


class KilledError(Exception):
    """Stands for a kill in the middle of an epoch."""


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def logits_and_labels(task):
    torch.manual_seed(0)
    shape = (6,) if task == "text-classification" else (6, 5)
    labels = torch.randint(0, 3, shape)
    if task == "token-classification":
        labels[:, [0, -1]] = IGNORE_INDEX
    return torch.randn(*shape, 3, dtype=torch.float64), labels


# checkpoints


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1'], ids=["no-state", "empty", "cut-off"])
def test_a_checkpoint_that_a_kill_left_half_written_is_removed(content, tmp_path):
    for step, state_file in ((9, "{}"), (10, "{}"), (100, content)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("weights")
        if state_file is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state_file)
    assert finetuning.newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    finetuning.remove_incomplete_checkpoints(tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_without_a_checkpoint_there_is_nothing_to_continue(tmp_path):
    (tmp_path / "runs").mkdir()
    assert finetuning.newest_checkpoint(tmp_path) is None
    assert finetuning.newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    task, tmp_path, tiny_encoder, problem_of, caplog
):
    problem, options = problem_of(task, 48), FitOptions(epochs=3, **QUICK)
    whole, killed = tiny_encoder(task=task), tiny_encoder(task=task)
    curve = fit(whole, problem, options, classification_loss(), tmp_path / "whole")

    calls, loss = [], classification_loss()

    def dies(outputs, labels, num_items_in_batch=None):
        calls.append(outputs["logits"].requires_grad)
        if sum(calls) == 8:  # three batches make an epoch: in the third
            raise KilledError
        return loss(outputs, labels, num_items_in_batch)

    with pytest.raises(KilledError):
        fit(killed, problem, options, dies, tmp_path / "work")
    half = tmp_path / "work" / "checkpoint-7"
    shutil.copytree(tmp_path / "work" / "checkpoint-6", half)
    (half / "trainer_state.json").write_text("{")
    (half / "optimizer.pt").write_bytes(b"half")

    resumed, calls[:] = tiny_encoder(task=task, seed=5), []  # another start, as only the checkpoint counts

    def counts(outputs, labels, num_items_in_batch=None):
        calls.append(outputs["logits"].requires_grad)
        return loss(outputs, labels, num_items_in_batch)

    with caplog.at_level(logging.INFO, logger="deploykit"):
        resumed_curve = fit(resumed, problem, options, counts, tmp_path / "work")
    assert f"continuing from {tmp_path / 'work' / 'checkpoint-6'}" in caplog.text
    assert sum(calls) == 3  # the third epoch alone
    assert same(state(whole), state(resumed))
    assert resumed_curve == curve
    assert not half.exists()


# learning


@pytest.mark.parametrize(("task", "metric"), [(TASKS[0], "accuracy"), (TASKS[1], "entity_f1")])
def test_a_tiny_model_learns(task, metric, fitted):
    _, curve = fitted(task)
    learned = [point["loss"] for point in curve if point["split"] == "train"]
    judged = [point[metric] for point in curve if point["split"] == "validation"]
    assert max(judged) >= 0.95
    assert np.mean(learned[-5:]) < 0.3 * np.mean(learned[:5])
    assert [point["epoch"] for point in curve if point["split"] == "validation"] == [*range(1, 9)]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, tiny_encoder, problem_of):
    found = []
    for index, seed in enumerate((0, 0, 1)):
        model = tiny_encoder()
        fit(
            model,
            problem_of(count=48, seed=seed),
            FitOptions(epochs=1, **QUICK),
            classification_loss(),
            tmp_path / f"{index}",
        )
        found.append(state(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_the_model_is_left_at_its_best_epoch(tmp_path, tiny_encoder, problem_of, monkeypatch):
    judge, weights = finetuning.validation_metrics, []
    model, quality = tiny_encoder(), iter([0.5, 0.9, 0.7])

    def staged(*arguments):
        weights.append(state(model))
        return {**judge(*arguments), "accuracy": next(quality)}

    monkeypatch.setattr(finetuning, "validation_metrics", staged)
    fit(model, problem_of(count=48), FitOptions(epochs=3, **QUICK), classification_loss(), tmp_path)
    assert not same(weights[1], weights[2])
    assert same(state(model), weights[1])


def test_among_epochs_with_the_same_metric_the_one_with_the_lowest_loss_is_kept(
    tmp_path, tiny_encoder, problem_of, monkeypatch
):
    judge, weights = finetuning.validation_metrics, []
    model = tiny_encoder()

    def staged(*arguments):
        weights.append(state(model))
        return {**judge(*arguments), "accuracy": 0.9}

    monkeypatch.setattr(finetuning, "validation_metrics", staged)
    curve = fit(model, problem_of(count=48), FitOptions(epochs=4, **QUICK), classification_loss(), tmp_path)
    losses = [point["loss"] for point in curve if point["split"] == "validation"]
    best = losses.index(min(losses))
    assert best > 0
    assert same(state(model), weights[best])
    assert not any(finetuning.CHOSEN_BY in point for point in curve)


def test_patience_ends_a_run_that_gets_no_better(tmp_path, tiny_encoder, problem_of):
    model = tiny_encoder()
    options = FitOptions(epochs=6, patience=2, **{**QUICK, "learning_rate": 1e-12})
    curve = fit(model, problem_of(count=32), options, classification_loss(), tmp_path)
    assert max(point["epoch"] for point in curve) == 3


def test_a_run_that_patience_had_ended_is_not_gone_on_with(tmp_path, tiny_encoder, problem_of, monkeypatch):
    """Killed after the last epoch was saved, it takes the best epoch and learns nothing more."""
    options = FitOptions(epochs=6, patience=2, **{**QUICK, "learning_rate": 1e-12})
    model = tiny_encoder()
    curve = fit(model, problem_of(count=48), options, classification_loss(), tmp_path)
    monkeypatch.setattr(finetuning.Trainer, "train", lambda *_, **__: pytest.fail("it went on"))
    again = tiny_encoder(seed=5)
    assert fit(again, problem_of(count=48), options, classification_loss(), tmp_path) == curve
    assert same(state(again), state(model))


def test_the_history_says_what_it_measured(tmp_path, tiny_encoder, problem_of):
    curve = fit(tiny_encoder(), problem_of(count=48), FitOptions(epochs=1, **QUICK), classification_loss(), tmp_path)
    *learned, judged = curve
    assert [point["step"] for point in learned] == [1, 2, 3]
    assert {"loss", "step", "epoch", "split"} <= set(learned[0])
    assert {"accuracy", "macro_f1", "loss", "epoch", "split"} <= set(judged)
    assert (judged["split"], {point["split"] for point in learned}) == ("validation", {"train"})
    assert not any(name.endswith("per_second") or name.startswith("eval_") for point in curve for name in point)


def test_half_an_epoch_is_half_of_the_steps_and_is_judged(tmp_path, tiny_encoder, problem_of):
    options = FitOptions(epochs=0.5, **{**QUICK, "batch_size": 8})
    *learned, judged = fit(tiny_encoder(), problem_of(count=48), options, classification_loss(), tmp_path)
    assert [point["step"] for point in learned] == [1, 2, 3]
    assert (judged["split"], judged["step"]) == ("validation", 3)


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_of_the_history_is_that_of_the_model(task, fitted, problem_of):
    model, curve = fitted(task)
    problem = problem_of(task)
    with torch.inference_mode():
        batch = collate(problem, problem.rows(problem.validation))
        best = model(**model_inputs(model, batch)).logits.argmax(-1)
    shown = batch["labels"] != IGNORE_INDEX
    accuracy = (best == batch["labels"])[shown].double().mean().item()
    first = problem.task.METRICS[0]
    judged = [point for point in curve if point["split"] == "validation"]
    kept = max(judged, key=lambda point: (point[first], -point["loss"]))
    assert accuracy == pytest.approx(kept["accuracy"])


@pytest.mark.parametrize("max_windows", [1, 16], ids=["cut", "windows"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_epoch_the_search_and_the_manifest_judge_alike_where_texts_are_long(
    side, max_windows, tmp_path, tiny_encoder, dataset_of, tokenizer_folder
):
    """Words that the model did not read count as `O` in all of them; those of all windows are read."""
    task, dataset = tasks.load("token-classification"), dataset_of("token-classification")
    tokenizer = replace(Tokenizer.load(tokenizer_folder, max_tokens=8), padding_side=side)
    spec = tasks.Spec(dataset.labels, task.Options(max_windows=max_windows))
    problem = Problem.of(task, spec, tokenizer, dataset.train, dataset.validation, 0)
    for rows in (dataset.train, dataset.validation):
        encoded = task.encode([row.input for row in rows], tokenizer, spec)
        long = [parts[-1].encoding.truncated if max_windows == 1 else len(parts) > 1 for parts in encoded]
        assert 0 < sum(long) < len(rows)
        assert len(problem.rows(rows)) == sum(map(len, encoded))
    assert len(problem.train) == len(problem.rows(dataset.train))
    model = tiny_encoder(task="token-classification", seed=1)
    curve = fit(model, problem, FitOptions(epochs=2, **{**QUICK, "batch_size": 4}), classification_loss(), tmp_path)
    predictor = Predictor(task, spec, tokenizer, TorchModel(model, Execution(engine="torch")))
    predictions = {"validation": scoring.predict(predictor, dataset.validation, "validation")}
    stated = scoring.compute_metrics(task, spec, dataset, predictions, 0)["validation"]
    epochs = [point for point in curve if point["split"] == "validation"]
    kept = max(epochs, key=lambda point: point["entity_f1"])
    assert 0 < stated["entity_f1"].value < 1
    assert {name: kept[name] for name in stated} == {
        name: pytest.approx(metric.value) for name, metric in stated.items()
    }
    assert first_metric(model.eval(), problem) == pytest.approx(stated["entity_f1"].value)


def test_an_epoch_is_judged_with_the_thresholds_that_fit_its_model(tiny_encoder, dataset_of, tokenizer):
    """Labels that are seldom true have low probabilities at first, and none would reach one half."""
    task, dataset = tasks.load("multi-label-classification"), dataset_of()
    rows = [replace(row, target=(row.target,)) for row in (*dataset.train, *dataset.validation)]
    spec = tasks.Spec(dataset.labels, task.Options())
    problem = Problem.of(task, spec, tokenizer, rows[:8], rows, 0)
    model = tiny_encoder(seed=1)
    model.classifier.bias.data.fill_(-2.0)  # as after an epoch: some reach 0.1, none one half
    fixed = replace(
        problem, spec=tasks.Spec(dataset.labels, task.Options(thresholds=dict.fromkeys(dataset.labels, 0.5)))
    )
    assert first_metric(model, problem) > 0.4
    assert first_metric(model, fixed) < 0.1


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path, tiny_encoder, problem_of):
    found = []
    for size, accumulate in ((16, 1), (4, 4)):
        model = tiny_encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        options = FitOptions(epochs=1, accumulate=accumulate, **{**QUICK, "batch_size": size, "learning_rate": 1e-3})
        fit(model, problem_of("text-classification", 16), options, classification_loss(), tmp_path / f"{size}")
        found.append(state(model))
    for name in found[0]:  # Adam's first step hides the size of a gradient, not its sign: zeros may go either way
        near = torch.isclose(found[0][name], found[1][name], atol=2e-4, rtol=0)
        assert near.float().mean() > 0.99, name


# batches


def test_targets_are_padded_where_the_tokens_are(problem_of):
    problem = problem_of("token-classification", 8)
    batch = collate(problem, problem.train)
    assert batch["labels"].shape == batch["input_ids"].shape
    for row, labels in zip(problem.train, batch["labels"].numpy(), strict=True):
        np.testing.assert_array_equal(labels[: len(row.targets["labels"])], row.targets["labels"])
        assert (labels[len(row.targets["labels"]) :] == IGNORE_INDEX).all()
    assert int((batch["labels"] != IGNORE_INDEX).sum()) == sum(
        len(row.features.encoding) - 2 - pieces(row) for row in problem.train
    )


def pieces(row):
    """Tokens that continue a word."""
    starts, ends = row.features.encoding.offsets[1:-1].T
    return int((starts[1:] == ends[:-1]).sum())


def test_a_model_gets_only_the_inputs_that_it_takes(tiny_encoder, problem_of):
    batch = collate(problem_of(), problem_of().train[:2])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert set(model_inputs(tiny_encoder("distilbert"), batch)) == {"input_ids", "attention_mask"}
    assert set(model_inputs(tiny_encoder("bert"), batch)) == {"input_ids", "attention_mask", "token_type_ids"}


# the loss


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 3.0)], ids=["even", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_torch_divided_by_the_units(task, weights, smoothing):
    logits, labels = logits_and_labels(task)
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = classification_loss(weights, smoothing)
    flat, kept = logits.reshape(-1, 3), labels.reshape(-1)
    expected = torch.nn.functional.cross_entropy(
        flat[kept != IGNORE_INDEX],
        kept[kept != IGNORE_INDEX],
        weight=weights,
        label_smoothing=smoothing,
        reduction="sum",
    )
    units = int((labels != IGNORE_INDEX).sum())
    torch.testing.assert_close(loss({"logits": logits}, labels), expected / units)
    torch.testing.assert_close(loss({"logits": logits}, labels, torch.tensor(40)), expected / 40)
    if weights is None:
        mean = torch.nn.functional.cross_entropy(logits.reshape(-1, 3), kept, label_smoothing=smoothing)
        torch.testing.assert_close(loss({"logits": logits}, labels), mean)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("learning_rate", 0), ("batch_size", 0), ("warmup", 1.0), ("max_grad_norm", 0), ("patience", 0)],
)
def test_options_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        FitOptions(**{name: value})


def test_a_problem_is_not_changed_by_learning_it(tmp_path, tiny_encoder, problem_of):
    problem = problem_of(count=16)
    before = deepcopy([(row.features.encoding.ids, row.targets["labels"]) for row in problem.train])
    fit(tiny_encoder(), problem, FitOptions(epochs=1, **QUICK), classification_loss(), tmp_path)
    for (ids, target), row in zip(before, problem.train, strict=True):
        np.testing.assert_array_equal(ids, row.features.encoding.ids)
        np.testing.assert_array_equal(target, row.targets["labels"])


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_the_batches_of_a_step_share_its_loss(task, tmp_path, tiny_encoder, problem_of, monkeypatch):
    captured = {}

    def capture(**arguments):
        captured.update(arguments)
        raise KilledError

    monkeypatch.setattr(finetuning, "LossTrainer", capture)
    problem = replace(problem_of(count=16), task=tasks.load(task), validation=())
    steps = FitOptions(accumulate=4, bf16="off")
    with pytest.raises(KilledError):
        fit(tiny_encoder(), problem, steps, task_loss(problem.task), tmp_path)
    outputs = {target.output: torch.randn(8, 5, requires_grad=True) for target in problem.task.TARGETS.values()}
    labels = {name: torch.randint(0, 5, (8,)) for name in problem.task.TARGETS}
    labels = labels if len(labels) > 1 else labels["labels"]
    share = captured["compute_loss_func"](outputs, labels, torch.tensor(32) if len(outputs) == 1 else None)
    torch.testing.assert_close(4 * share, task_loss(problem.task)(outputs, labels))
    with torch.no_grad():  # in evaluation there are no steps
        torch.testing.assert_close(
            captured["compute_loss_func"]({name: array.detach() for name, array in outputs.items()}, labels),
            task_loss(problem.task)(outputs, labels),
        )
