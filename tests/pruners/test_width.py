from itertools import pairwise

import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError

from deploykit import architectures
from deploykit.architectures import Shape
from deploykit.errors import ModelError
from deploykit.fitting import inputs
from deploykit.pruners import _fisher, width

pytestmark = pytest.mark.usefixtures("one_thread")

RECOVERY = {"epochs": 3, "learning_rate": 2e-3, "batch_size": 8, "bf16": "off", "soft": 1.0}


def prune(*arguments):
    made = width.prune(*arguments)
    return made.model, made.facts


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
        prune(model, problem_of(count=8), width.Options(), tmp_path)


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


# the whole method


@pytest.mark.parametrize("task", TASKS)
def test_a_refit_and_a_teacher_bring_a_pruned_model_nearer_to_the_whole_one(task, tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(task=task, initializer_range=0.3), problem_of(task)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    harsh, distances = {"keep": 0.5, "refit_tokens": 0}, []
    for index, options in enumerate(({}, {"refit_tokens": 16384}, {"distill": RECOVERY})):
        small, facts = prune(whole, problem, width.Options(**{**harsh, **options}), tmp_path / f"{index}")
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


@pytest.mark.parametrize("task", TASKS)
def test_a_pruned_model_that_was_taught_keeps_what_the_whole_one_had_learned(task, fitted, problem_of, tmp_path):
    whole, curve = fitted(task)
    problem, first = problem_of(task), problem_of(task).task.METRICS[0]
    _, facts = prune(whole, problem, width.Options(keep=0.5, distill=RECOVERY), tmp_path)
    best = [
        max(point[first] for point in points if point["split"] == "validation") for points in (curve, facts["curve"])
    ]
    assert best[1] >= best[0] - 0.05


def test_keeping_everything_gives_the_same_model(tiny_encoder, problem_of, tmp_path):
    whole = tiny_encoder()
    small, facts = prune(whole, problem_of(count=16), width.Options(keep=1.0), tmp_path)
    assert facts == {"layers": [{"heads": 4, "neurons": 128}] * 2, "curve": []}
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_the_same_seed_prunes_the_same(tiny_encoder, problem_of, tmp_path):
    found = [
        prune(tiny_encoder(), problem_of(count=40, seed=seed), width.Options(keep=0.5, calibration_rows=8), tmp_path)
        for seed in (0, 0)
    ]
    (one, facts), (other, others) = found
    assert facts == others
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
