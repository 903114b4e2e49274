import math
from itertools import count

import numpy as np
import pytest
import torch
from clocks import additive
from models import TASKS
from pydantic import ValidationError

from deploykit import recipe
from deploykit.artifact import Metric
from deploykit.errors import ModelError, RecipeError
from deploykit.inference.predictor import pad_in_batches
from deploykit.modeling import surgery
from deploykit.modeling.problem import first_rows_within, model_inputs, sample
from deploykit.modeling.surgery import Shape
from deploykit.pruners import width
from deploykit.pruners._width import meter, pruning

pytestmark = pytest.mark.usefixtures("one_thread")

RECOVERY = {"epochs": 3, "learning_rate": 2e-3, "batch_size": 8, "bf16": "off", "soft": 1.0}


def prune(*arguments):
    made = width.prune(*arguments)
    return made.model, made.facts


def far(model, whole, rows, tokenizer):
    """The root mean square difference of two models' logits."""
    (batch,) = pad_in_batches([row.features for row in rows], tokenizer, len(rows))
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.inference_mode():
        one, other = (found.eval()(**model_inputs(found, batch)).logits for found in (model, whole))
    shown = batch["attention_mask"].bool() if one.ndim == 3 else slice(None)
    return float((one - other)[shown].square().mean().sqrt())


# what is asked for


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"keep": 1.01}, {"calibration_rows": 0}, {"refit_tokens": -1}, {"kep": 1}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        width.Options(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 0.5}, ".speedup: must be at least 1, got 0.5. To keep the model as it is, set prune: null."),
        ({"speedup": math.nan}, ".speedup: Input should be a finite number, got nan"),
        ({"speedup": 2, "keep": 0.5}, ": takes one target, got keep: 0.5, speedup: 2. Leave all but one out."),
        ({"max_drop": 0, "speedup": 2}, ": takes one target, got speedup: 2, max_drop: 0. Leave all but one out."),
        (
            {"speedup": 2, "minutes": 5},
            ": minutes limits the search of max_drop, got no max_drop. To limit the training, set distill.minutes.",
        ),
        ({"max_drop": 0.01, "steps": 2}, ": max_drop has steps of its own, got steps: 2. Leave steps out."),
        ({"speedup": 2, "engine": "torch"}, ": needs an engine that runs graphs in float32, got engine: torch."),
        (
            {"max_drop": 0, "precision": "bfloat16"},
            ": needs an engine that runs graphs in bfloat16, got engine: onnxruntime.",
        ),
    ],
)
def test_a_recipe_with_a_target_that_makes_no_sense_says_what_to_do(options, message):
    content = {"name": "a", "task": "text-classification", "model": "a/b", "data": {"train": "a/b"}}
    with pytest.raises(RecipeError) as caught:
        recipe.parse({**content, "prune": {"method": "width", **options}})
    assert str(caught.value) == f"the recipe has 1 mistake:\n  - prune{message}"


def test_without_a_target_three_quarters_stay():
    assert width.Options().keep == width.Options(keep=None).keep == 0.75
    for name in ("speedup", "max_drop"):
        assert width.Options(**{name: 1}).keep is None


@pytest.mark.parametrize("options", [{"temperature": 0}, {"soft": 1.1}, {"hidden": -1}, {"epochs": 0}])
def test_ways_to_distill_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        width.Options(distill=options)


def test_a_model_of_an_unknown_type_is_refused(tiny_encoder, problem_of, tmp_path):
    model = tiny_encoder()
    model.config.model_type = "unheard-of"
    with pytest.raises(ModelError, match="models of type 'unheard-of' cannot be pruned"):
        prune(model, problem_of(count=8), width.Options(), tmp_path)


# the rows


def test_calibration_rows_are_drawn_once_and_the_same_for_a_seed(problem_of):
    rows = problem_of().train
    drawn = sample(rows, 50, 3)
    assert len({id(row) for row in drawn}) == 50
    assert [id(row) for row in drawn] == [id(row) for row in sample(rows, 50, 3)]
    assert [id(row) for row in drawn] != [id(row) for row in sample(rows, 50, 4)]
    assert len(sample(rows, 10**6, 0)) == len(rows)
    lengths = np.cumsum([len(row.features.encoding) for row in drawn])
    assert first_rows_within(drawn, int(lengths[9])) == drawn[:10]
    assert first_rows_within(drawn, int(lengths[9]) - 1) == drawn[:9]
    assert first_rows_within(drawn, 1) == drawn[:1]


# the whole method


@pytest.mark.parametrize("task", TASKS)
def test_a_refit_and_a_teacher_bring_a_pruned_model_nearer_to_the_whole_one(task, tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(task=task, initializer_range=0.3), problem_of(task)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    harsh, distances = {"keep": 0.5, "refit_tokens": 0}, []
    for index, options in enumerate(({}, {"refit_tokens": 16384}, {"distill": RECOVERY})):
        small, facts = prune(whole, problem, width.Options(**{**harsh, **options}), tmp_path / f"{index}")
        assert surgery.shapes(small) == [Shape(**layer) for layer in facts["layers"]]
        distances.append(far(small, whole, problem.rows(problem.validation), problem.tokenizer))
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
    assert best[1] >= best[0] - 0.1  # two of the thirty names in fifteen sentences


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


# steps


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a tiny model takes 0.36, and 0.03 for each head and 0.1 for each block of neurons."""
    monkeypatch.setattr(pruning, "relative_timer", lambda *_: additive(0.03, 0.1, 0.36))


@pytest.fixture
def recovery(monkeypatch):
    """Writes down what each recovery was given, and teaches nothing."""
    found = []

    def distill(small, whole, problem, options, work):
        found.append((surgery.shapes(small), options, work))
        return [{"step": len(found)}]

    monkeypatch.setattr(pruning, "distill", distill)
    return found


def heads(sizes):
    return sum(size.heads for size in sizes)


def test_steps_share_the_way_and_the_recovery(tiny_encoder, problem_of, tmp_path, recovery):
    distill = {"epochs": 3, "minutes": 6.0}
    options = width.Options(keep=0.25, steps=2, distill=distill, refit_tokens=0, calibration_rows=8)
    small, facts = prune(tiny_encoder(), problem_of(count=40), options, tmp_path)
    assert [heads(sizes) for sizes, _, _ in recovery] == [4, 2]  # of 8
    assert surgery.shapes(small) == recovery[-1][0]
    assert [(given.epochs, given.minutes) for _, given, _ in recovery] == [(1.5, 3.0)] * 2
    assert [work for _, _, work in recovery] == [tmp_path / "step-1", tmp_path / "step-2"]
    assert facts["curve"] == [{"step": 1}, {"step": 2}]


def test_a_part_of_an_epoch_can_be_learned(tiny_encoder, problem_of, tmp_path):
    options = width.Options(keep=0.5, steps=2, distill={**RECOVERY, "epochs": 1}, calibration_rows=8)
    _, facts = prune(tiny_encoder(), problem_of(count=64), options, tmp_path)  # eight steps an epoch
    assert [point["epoch"] for point in facts["curve"] if point["split"] == "validation"] == [0.5, 0.5]
    assert [point["step"] for point in facts["curve"] if point["split"] == "validation"] == [4, 4]


def test_importance_is_looked_at_anew_in_each_step(tiny_encoder, problem_of, tmp_path, monkeypatch):
    seen = []
    real = pruning.importance
    monkeypatch.setattr(pruning, "importance", lambda model, *rest: seen.append(model) or real(model, *rest))
    whole = tiny_encoder()
    small, _ = prune(whole, problem_of(count=40), width.Options(keep=0.3, steps=3, calibration_rows=8), tmp_path)
    assert seen[0] is whole
    assert [heads(surgery.shapes(model)) for model in (*seen, small)] == [8, 5, 3, 2]


# a speedup


def test_a_speedup_that_the_narrowest_model_does_not_have_is_refused(tiny_encoder, problem_of, tmp_path, machine):
    with pytest.raises(ModelError) as caught:
        prune(tiny_encoder(), problem_of(count=16), width.Options(speedup=5, calibration_rows=8), tmp_path)
    assert str(caught.value) == (
        "a speedup of 5 is out of reach of the pruner width: with one head and 64 neurons in each layer, the model is"
        " 1.61 times as fast here. Set a lower speedup, or remove layers first."
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_a_model_is_made_as_fast_as_was_asked_for(steps, tiny_encoder, problem_of, tmp_path, machine, recovery):
    options = width.Options(speedup=1.4, steps=steps, distill={}, calibration_rows=8)
    small, facts = prune(tiny_encoder(), problem_of(count=40), options, tmp_path)
    speeds = [1 / additive(0.03, 0.1, 0.36)(surgery.resized(tiny_encoder(), sizes)).value for sizes, _, _ in recovery]
    assert len(speeds) == steps
    for step, speed in enumerate(speeds, 1):
        assert 1.4 ** (step / steps) <= speed < 1.1 * 1.4 ** (step / steps)
    assert facts["layers"] == [{"heads": size.heads, "neurons": size.neurons} for size in surgery.shapes(small)]
    assert facts["speedup"]["wanted"] == pytest.approx(1.4)
    assert facts["speedup"]["measured"]["value"] == pytest.approx(speeds[-1])


def test_a_run_that_was_killed_chooses_the_same_again(tiny_encoder, problem_of, tmp_path, monkeypatch):
    times = count(95, -1)
    monkeypatch.setattr(meter, "relative_time", lambda *_: Metric(value=next(times) / 100, low=0.1, high=1.0))
    problem, options = problem_of(count=40), width.Options(speedup=1.1, calibration_rows=8, refit_tokens=0)
    small, facts = prune(tiny_encoder(), problem, options, tmp_path)
    assert facts["speedup"]["measured"]["value"] >= 1.1
    assert surgery.shapes(small) != surgery.shapes(tiny_encoder())
    monkeypatch.setattr(meter, "relative_time", lambda *_: pytest.fail("measured again"))
    assert prune(tiny_encoder(), problem, options, tmp_path)[1] == facts


@pytest.mark.parametrize("kind", ["gpt2", "albert"])
def test_what_has_no_heads_to_remove_or_shares_its_layers_gets_faster_too(
    kind, tiny_encoder, problem_of, tmp_path, machine, monkeypatch
):
    whole = tiny_encoder(kind)
    total = additive(0.03, 0.1, 0.36)(whole).value
    monkeypatch.setattr(pruning, "relative_timer", lambda *_: additive(0.03 / total, 0.1 / total, 0.36 / total))
    small, facts = prune(whole, problem_of(count=40), width.Options(speedup=1.1, calibration_rows=8), tmp_path)
    assert facts["speedup"]["measured"]["value"] >= 1.1
    for size, before in zip(surgery.shapes(small), surgery.shapes(whole), strict=True):
        assert size.neurons <= before.neurons
        assert size.heads == before.heads == 0 or kind == "albert"
    assert surgery.shapes(small) != surgery.shapes(whole)


# the fastest that is good enough


@pytest.fixture
def judged(monkeypatch):
    """`judged(*metrics)`: what is found on the validation split, the whole model's first."""

    def given(*metrics):
        values = iter(metrics)
        monkeypatch.setattr(pruning, "first_metric", lambda *_: next(values))

    return given


def searched(facts):
    return [(found["wanted"], found["metric"]) for found in facts["search"]]


SEARCH = {"max_drop": 0.02, "calibration_rows": 8, "refit_tokens": 0}


def test_a_search_returns_the_last_model_that_is_good_enough(
    tiny_encoder, problem_of, tmp_path, machine, recovery, judged
):
    judged(0.9, 0.91, 0.88, 0.87)
    small, facts = prune(tiny_encoder(), problem_of(count=40), width.Options(**SEARCH, distill={"epochs": 2}), tmp_path)
    assert searched(facts) == [(1.2, 0.91), (pytest.approx(1.44), 0.88), (pytest.approx(1.728), 0.87)]
    assert surgery.shapes(small) == recovery[1][0]
    assert facts["speedup"]["wanted"] == pytest.approx(1.44)
    assert facts["curve"] == [{"step": 1}, {"step": 2}]
    assert [given.epochs for _, given, _ in recovery] == [2] * 3
    assert [work.name for _, _, work in recovery] == ["step-1", "step-2", "step-3"]


def test_each_step_of_a_search_starts_from_the_last_that_has_recovered(
    tiny_encoder, problem_of, tmp_path, machine, recovery, judged, monkeypatch
):
    seen, real = [], pruning.importance
    monkeypatch.setattr(pruning, "importance", lambda model, *rest: seen.append(model) or real(model, *rest))
    judged(0.9, 0.9, 0.5)
    whole = tiny_encoder()
    small, _ = prune(whole, problem_of(count=40), width.Options(**SEARCH, distill={}), tmp_path)
    assert seen[0] is whole
    assert seen[1] is small


def test_where_the_first_step_is_too_much_the_model_stays_as_it_was(
    tiny_encoder, problem_of, tmp_path, machine, judged
):
    judged(0.9, 0.8)
    whole = tiny_encoder()
    small, facts = prune(whole, problem_of(count=40), width.Options(**SEARCH), tmp_path)
    assert surgery.shapes(small) == surgery.shapes(whole)
    assert searched(facts) == [(1.2, 0.8)]
    assert "speedup" not in facts


def test_a_search_ends_where_there_is_nothing_left_to_remove(tiny_encoder, problem_of, tmp_path, machine, judged):
    judged(*[0.9] * 99)
    small, facts = prune(tiny_encoder(), problem_of(count=40), width.Options(**SEARCH), tmp_path)
    assert surgery.shapes(small) == [Shape(1, 64)] * 2
    assert facts["speedup"]["measured"]["value"] == pytest.approx(1 / 0.62)


@pytest.mark.parametrize(("minutes", "steps"), [(None, 3), (100, 3), (2.9, 2), (1, 1)])
def test_no_step_is_begun_that_would_not_end_in_time(
    minutes, steps, tiny_encoder, problem_of, tmp_path, machine, judged, monkeypatch
):
    now = {"seconds": 0.0}

    def distill(*_):
        now["seconds"] += 60
        return []

    monkeypatch.setattr(pruning.time, "monotonic", lambda: now["seconds"])
    monkeypatch.setattr(pruning, "distill", distill)
    judged(*[0.9] * 3, 0.1)
    _, facts = prune(
        tiny_encoder(), problem_of(count=40), width.Options(**SEARCH, minutes=minutes, distill={}), tmp_path
    )
    assert len(facts["search"]) == steps
