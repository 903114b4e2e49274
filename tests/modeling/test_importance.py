import numpy as np
import pytest
import torch
from models import TASKS

from deploykit.modeling import importance, surgery
from deploykit.pruners._width import sizing
from deploykit.tasks import IGNORE_INDEX

pytestmark = pytest.mark.usefixtures("one_thread")


def brute_force(model, row):
    """The squared gradient of one row's loss by a mask on each head and neuron: sum of input times its gradient."""
    found, parts = (
        {},
        [part for layer in surgery.layers(model) for part in (layer.output_projection, layer.down_projection)],
    )
    hooks = []
    for part in parts:

        def keep(_, fed, part=part):
            fed[0].retain_grad()
            found[part] = fed[0]

        hooks.append(part.register_forward_pre_hook(keep))
    ids = torch.from_numpy(row.features.encoding.ids)[None]
    logits = model(input_ids=ids).logits.reshape(-1, model.config.num_labels)
    targets = torch.from_numpy(row.targets["labels"]).reshape(-1)
    torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    columns = [(found[part] * found[part].grad).sum(dim=(0, 1)).detach() for part in parts]
    heads, neurons = columns[0::2], columns[1::2]
    return [row.reshape(4, -1).sum(1).square().numpy() for row in heads], [row.square().numpy() for row in neurons]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_importance_is_the_squared_gradient_of_each_row_alone(kind, task, tiny_encoder, problem_of):
    model, problem = tiny_encoder(kind, task), problem_of(task)
    rows = problem.train[:3]
    assert len({len(row.features.encoding) for row in rows}) > 1  # so that some are padded
    heads, neurons = importance.importance(model, problem, rows)
    each = [brute_force(model, row) for row in rows]
    for layer in range(2):
        for found, kind_of in ((heads, 0), (neurons, 1)):
            expected = sum(part[kind_of][layer] for part in each)
            assert expected.max() > 0
            np.testing.assert_allclose(found[layer], expected, rtol=2e-3, atol=1e-5 * expected.max())
    assert (heads[0].shape, neurons[0].shape) == ((4,), (128,))


def test_a_head_that_does_nothing_is_worth_nothing(tiny_encoder, problem_of):
    model = tiny_encoder()
    model.bert.encoder.layer[0].attention.output.dense.weight.data[:, 8:16] = 0
    model.bert.encoder.layer[1].output.dense.weight.data[:, 5] = 0
    heads, neurons = importance.importance(model, problem_of(), problem_of().train[:8])
    assert (heads[0][1], neurons[1][5]) == (0, 0)
    assert (np.delete(heads[0], 1) > 0).all()
    kept = sizing.keep_by_share(heads, neurons, 0.99)
    assert kept[0].heads == (0, 1, 2, 3)
    assert sizing.keep_by_share(heads, neurons, 7 / 8)[0].heads == (0, 2, 3)


def test_importance_leaves_the_model_as_it_was(tiny_encoder, problem_of, logits_of):
    model = tiny_encoder()
    before = logits_of(model)
    importance.importance(model, problem_of(), problem_of().train[:8])
    for one, other in zip(before, logits_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
