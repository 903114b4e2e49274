from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError

from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import ModelError
from deploykit.evaluation import scoring
from deploykit.inference.predictor import Predictor
from deploykit.modeling import surgery
from deploykit.modeling.losses import divergence
from deploykit.modeling.problem import Teacher, first_metric, padded_batches
from deploykit.pruners import _layers, layers

pytestmark = pytest.mark.usefixtures("one_thread")

RECOVERY = {"epochs": 2, "learning_rate": 2e-3, "batch_size": 8, "bf16": "off", "soft": 1.0}


def silenced(model, indices):
    """Makes some layers of a GPT-2 add nothing to the residual stream."""
    for index in indices:
        block = model.transformer.h[index]
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.data.zero_()
            part.bias.data.zero_()
    return model


# options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "greater than or equal to 1"),
        ({"max_drop": -0.1}, "greater than or equal to 0"),
        ({"calibration_rows": 0}, "greater than or equal to 1"),
        ({"kep": 1}, "kep"),
        ({"keep": 1, "max_drop": 0.1}, "takes either keep or max_drop"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        layers.Options(**options)


@pytest.mark.parametrize(
    ("kind", "task", "keep", "least"), [("bert", TASKS[0], 4, 1), ("t5", "text2text-generation", 1, 2)]
)
def test_a_number_of_layers_that_the_model_cannot_have_is_refused(
    kind, task, keep, least, tiny_encoder, problem_of, tmp_path
):
    model, options = tiny_encoder(kind, task, layers=3), layers.Options(keep=keep)
    depth = sum(surgery.depths(model))
    message = rf"^keep must be from {least} to {depth}, the number of layers, got {keep}\.$"
    with pytest.raises(ModelError, match=message):
        layers.prune(model, problem_of(task, 8), options, tmp_path)


# which layers are removed


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("idle", [(0,), (3,), (2, 0), (1, 3)], ids=str)
def test_idle_layers_are_removed_first_wherever_they_are(idle, task, tiny_encoder, problem_of, tmp_path):
    model = silenced(tiny_encoder("gpt2", task, layers=4), idle)
    pruned = layers.prune(model, problem_of(task, 40), layers.Options(keep=4 - len(idle)), tmp_path)
    assert set(pruned.facts["gone"]) == set(idle)
    assert pruned.layers == tuple(layer for layer in range(4) if layer not in idle)
    assert surgery.depths(pruned.model) == [4 - len(idle)]
    assert surgery.depths(model) == [4]


def test_the_damage_of_every_candidate_is_reported_and_correct(tiny_encoder, problem_of, tmp_path):
    model, problem = tiny_encoder(layers=3), problem_of(count=20)
    pruned = layers.prune(model, problem, layers.Options(keep=1), tmp_path)
    first, second = pruned.facts["ablation"]
    assert set(first["damage"]) == {"0", "1", "2"}
    assert set(second["damage"]) == {"0", "1", "2"} - {str(first["gone"][0])}
    assert second["gone"] == pruned.facts["gone"] == [*first["gone"], second["gone"][-1]]
    whole = TorchModel(model, Execution(engine="torch"))
    batch = problem.tokenizer.collate([row.features.encoding for row in problem.train])
    for step, before in ((first, []), (second, first["gone"])):
        for layer, damage in step["damage"].items():
            small = TorchModel(surgery.without_layers(model, [*before, int(layer)]), Execution(engine="torch"))
            logits = [torch.from_numpy(engine.run(batch)["logits"]) for engine in (small, whole)]
            assert damage == pytest.approx(float(divergence("cross_entropy", *logits)), rel=1e-3)
        assert min(step["damage"], key=step["damage"].get) == str(step["gone"][-1])


def test_of_two_stacks_both_lose_layers_and_neither_all(tiny_encoder, problem_of, tmp_path):
    model = tiny_encoder("t5", "text2text-generation", layers=3)
    pruned = layers.prune(model, problem_of("text2text-generation", 20), layers.Options(keep=2), tmp_path)
    assert surgery.depths(pruned.model) == [1, 1]
    assert len(pruned.facts["gone"]) == 4
    assert all(set(step["damage"]).isdisjoint({"6"}) for step in pruned.facts["ablation"])


def test_of_repetitions_of_one_layer_only_the_number_counts(tiny_encoder, problem_of, tmp_path):
    pruned = layers.prune(tiny_encoder("albert", layers=4), problem_of(count=20), layers.Options(keep=2), tmp_path)
    assert [list(step["damage"]) for step in pruned.facts["ablation"]] == [["3"], ["2"]]
    assert pruned.model.config.num_hidden_layers == 2


def test_layers_are_removed_while_the_metric_stays_above_the_bound(fitted, problem_of, tmp_path):
    whole, problem = fitted()[0], problem_of()
    before = first_metric(whole, problem)
    for drop in (0.0, 0.01, 1.0):
        pruned = layers.prune(whole, problem, layers.Options(max_drop=drop), tmp_path)
        assert first_metric(pruned.model, problem) >= before - drop
        assert len(pruned.facts["ablation"]) == len(pruned.facts["gone"]) <= 1
        if not pruned.facts["gone"]:
            assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), pruned.model.parameters(), strict=True))
    assert pruned.facts["gone"]  # with a bound of 1, layers are always removed


def test_idle_layers_are_removed_by_default(tiny_encoder, problem_of, tmp_path):
    """By default, layers are removed while the metric falls by at most 0.01."""
    whole, problem = silenced(tiny_encoder("gpt2", layers=4), [0, 2]), problem_of(count=40)
    pruned = layers.prune(whole, problem, layers.Options(), tmp_path)
    assert set(pruned.facts["gone"][:2]) == {0, 2}
    assert first_metric(pruned.model, problem) >= first_metric(whole, problem) - _layers.DEFAULT_MAX_DROP


# recovery


def test_the_teacher_is_the_unpruned_model_with_matched_layers(tiny_encoder, problem_of, tmp_path, monkeypatch):
    captured = []
    monkeypatch.setattr(_layers, "distill", lambda *arguments: captured.append(arguments) or [])
    model, problem = silenced(tiny_encoder("gpt2", layers=4), [1, 2]), problem_of(count=20)
    options = layers.Options(keep=2, distill={})
    layers.prune(model, problem, options, tmp_path)
    other = tiny_encoder(layers=6)
    layers.prune(model, replace(problem, teacher=Teacher(other, (0, 2, 3, 5))), options, tmp_path)
    assert [arguments[2].teacher for arguments in captured] == [Teacher(model, (0, 3)), Teacher(other, (0, 5))]


def test_distillation_brings_a_shallower_model_closer_to_its_teacher(fitted, problem_of, tmp_path):
    whole, problem = fitted()[0], problem_of()
    loss = []
    for index, distill in enumerate((None, RECOVERY)):
        pruned = layers.prune(whole, problem, layers.Options(keep=1, distill=distill), tmp_path / f"{index}")
        data = list(padded_batches(problem, problem.rows(problem.validation)))
        models = [_layers.target_logits(model, problem.task, data)["labels"] for model in (pruned.model, whole)]
        loss.append(float(divergence("cross_entropy", *models)))
    assert loss[1] < 0.7 * loss[0]
    assert [point["epoch"] for point in pruned.facts["curve"] if point["split"] == "validation"] == [1, 2]


# the judge


@pytest.mark.parametrize("task", TASKS)
def test_the_metric_is_the_one_that_evaluation_finds(task, fitted, problem_of, dataset_of):
    model, problem, dataset = fitted(task)[0], problem_of(task), dataset_of(task)
    predictor = Predictor(problem.task, problem.spec, problem.tokenizer, TorchModel(model, Execution(engine="torch")))
    predictions = scoring.predict_all(predictor, dataset)
    judged = scoring.compute_metrics(problem.task, problem.spec, dataset, predictions, 0)["validation"][
        problem.task.METRICS[0]
    ]
    assert first_metric(model, problem) == pytest.approx(judged.value)
    assert np.isfinite(judged.value)
