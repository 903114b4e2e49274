import re
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers
from models import TASKS

from deploykit import architectures
from deploykit.architectures import ARCHITECTURES, Kept, Shape
from deploykit.errors import ModelError

KEPT = (Kept(heads=(0, 3), neurons=tuple(range(0, 128, 2))), Kept(heads=(2,), neurons=(*range(5, 37), 127)))


def masked(model, kept):
    """Returns a copy whose removed heads and neurons are multiplied by zero; it finds them by shape, in order."""
    whole = deepcopy(model)
    linears = [found for found in whole.base_model.modules() if isinstance(found, torch.nn.Linear)]
    outputs = [found for found in linears if found.weight.shape == (32, 32)][3::4]  # after query, key and value
    downs = [found for found in linears if found.weight.shape == (32, 128)]
    assert (len(outputs), len(downs)) == (2, 2)
    for output, down, keep in zip(outputs, downs, kept, strict=True):
        heads = [column for column in range(32) if column // 8 not in keep.heads]
        output.weight.data[:, heads] = 0
        down.weight.data[:, [neuron for neuron in range(128) if neuron not in keep.neurons]] = 0
    return whole


def test_models_of_another_type_are_refused_with_the_list_of_known_ones():
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    )
    message = (
        f"models of type 'gpt2' cannot be pruned: known are {', '.join(ARCHITECTURES)}."
        " To keep the model as it is, set prune: null."
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        architectures.shapes(model)


def test_every_layer_needs_an_entry(tiny_encoder):
    with pytest.raises(ValueError, match="shorter"):
        architectures.shrunk(tiny_encoder(), KEPT[:1])


def test_the_table_is_not_empty():
    assert {"bert", "distilbert", "roberta"} <= set(ARCHITECTURES)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_shrunk_model_computes_what_the_masked_one_does(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    before, state = logits_of(model), deepcopy(model.state_dict())
    small = architectures.shrunk(model, KEPT)
    for found, expected, whole in zip(logits_of(small), logits_of(masked(model, KEPT)), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.abs(found - whole).max() > 1e-3  # what was removed did matter
    assert architectures.shapes(small) == [Shape(2, 64), Shape(1, 33)]
    assert architectures.shapes(model) == [Shape(4, 128), Shape(4, 128)]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    for one, other in zip(logits_of(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_weights_get_physically_smaller(kind, tiny_encoder):
    model = tiny_encoder(kind)
    small = architectures.shrunk(model, KEPT)
    # query, key and value lose rows with their bias, the projection loses columns; up loses rows, down columns
    columns = sum(8 * (4 - len(keep.heads)) for keep in KEPT)
    neurons = sum(128 - len(keep.neurons) for keep in KEPT)
    lost = columns * (3 * 33 + 32) + neurons * (33 + 32)
    count = [sum(parameter.numel() for parameter in found.parameters()) for found in (model, small)]
    assert count[0] - count[1] == lost
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in small.parameters())


def test_keeping_everything_changes_nothing(tiny_encoder, logits_of):
    model = tiny_encoder()
    whole = [Kept(tuple(range(4)), tuple(range(128)))] * 2
    for one, other in zip(logits_of(model), logits_of(architectures.shrunk(model, whole)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_part_of_a_shrunk_model_can_learn(kind, tiny_encoder, tokenizer):
    small = architectures.shrunk(tiny_encoder(kind), KEPT)
    batch = {name: torch.from_numpy(array) for name, array in tokenizer.collate(tokenizer.encode(["the film"])).items()}
    small(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    for layer in architectures.layers(small):
        assert all(float(part.weight.grad.abs().sum()) > 0 for part in (layer.query, layer.value, layer.up, layer.down))


def test_resized_gives_the_sizes_asked_for(tiny_encoder):
    model = tiny_encoder()
    sizes = [Shape(1, 64), Shape(3, 32)]
    assert architectures.shapes(architectures.resized(model, sizes)) == sizes
    assert [layer.head_size for layer in architectures.layers(architectures.resized(model, sizes))] == [8, 8]
