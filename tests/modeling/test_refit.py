from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS

from deploykit.modeling import refit, surgery
from deploykit.modeling.problem import padded_batches
from deploykit.modeling.surgery import KeptUnits

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ridge_is_the_closed_form():
    rng = np.random.default_rng(0)
    fed, out, weight = (rng.normal(size=shape) for shape in ((50, 7), (50, 3), (3, 7)))
    strength = 0.1 * np.trace(fed.T @ fed) / 7
    expected = np.linalg.inv(fed.T @ fed + strength * np.eye(7)) @ (fed.T @ out + strength * weight.T)
    found = refit.ridge(*(torch.from_numpy(array).float() for array in (fed, out, weight)), penalty=0.1)
    assert (found.dtype, found.is_contiguous()) == (torch.float32, True)
    np.testing.assert_allclose(found.numpy(), expected.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 1e6])
def test_ridge_lies_between_least_squares_and_the_old_weights(penalty):
    rng = np.random.default_rng(1)
    fed, out, weight = (torch.from_numpy(rng.normal(size=shape)).float() for shape in ((80, 6), (80, 4), (4, 6)))
    found = refit.ridge(fed, out, weight, penalty)

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
    torch.testing.assert_close(refit.ridge(torch.zeros(9, 5), torch.randn(9, 3), weight), weight)


def outputs(model, problem, rows):
    """What every output projection puts out for the real tokens of rows."""
    return [
        array.float()
        for array in refit._record_outputs(model, refit._projections(model), list(padded_batches(problem, rows)))
    ]


def test_a_decoder_is_refitted_to_its_targets_even_if_they_are_padded_like_the_source(
    tiny_encoder, problem_of, tokenizer
):
    problem = problem_of("text2text-generation")
    rows = sorted(problem.train[:20], key=len)
    short, long = rows[0], rows[-1]
    few = {"labels": short.targets["labels"][:2]}
    rows = [replace(short, targets=long.targets), replace(long, targets=few)]
    sources, targets = sum(map(len, rows)), sum(len(row.targets["labels"]) for row in rows)
    assert sources != targets
    sizes = [len(array) for array in outputs(tiny_encoder("t5", "text2text-generation"), problem, rows)]
    assert sizes == [sources] * 2 + [targets] * 2


@pytest.mark.parametrize("task", TASKS)
def test_a_refit_reduces_the_error_of_every_output_that_was_cut(task, fitted, problem_of, tokenizer):
    whole, _ = fitted(task)
    problem = problem_of(task)
    rows = problem.train[:60]
    kept = [KeptUnits((0, 1, 2, 3), tuple(range(128))), KeptUnits((1,), tuple(range(64)))]
    small = surgery.shrunk(whole, kept)
    refitted = deepcopy(small)
    refit.refit(refitted, whole, problem, rows)
    wanted, cut, better = (outputs(model, problem, rows) for model in (whole, small, refitted))
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
    refit.refit(same, whole, problem_of(), problem_of().train[:8])
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_a_refit_leaves_no_hooks(tiny_encoder, problem_of, tokenizer):
    whole = tiny_encoder()
    small = surgery.shrunk(whole, [KeptUnits((0,), tuple(range(64)))] * 2)
    refit.refit(small, whole, problem_of(), problem_of().train[:8])
    assert not any(part._forward_hooks or part._forward_pre_hooks for one in (whole, small) for part in one.modules())


def test_a_classifier_with_a_decoder_is_refitted_without_padding(tiny_encoder, problem_of, tokenizer):
    """Its decoder reads the text again, one place later."""
    problem = problem_of()
    rows = problem.train[:20]
    tokens = sum(len(row.features.encoding) for row in rows)
    assert [len(array) for array in outputs(tiny_encoder("t5"), problem, rows)] == [tokens] * 4
