from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers
from models import SEPARATE, TASKS, VARIANTS, uneven

from deploykit import engines
from deploykit.modeling import surgery
from deploykit.modeling.surgery import KeptUnits, Shape, matrix, set_matrix

KEPT = (KeptUnits(heads=(0, 3), neurons=tuple(range(0, 128, 2))), KeptUnits(heads=(2,), neurons=(*range(5, 37), 127)))
RESIDUAL = {"gpt2": ("c_proj",), "llama": ("o_proj", "down_proj"), "t5": ("o", "wo")}  # all that a layer adds

variants = pytest.mark.parametrize(("kind", "task"), VARIANTS)


def equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)
    return True


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


def muted(model, kept):
    """The same through the table of names."""
    whole = deepcopy(model)
    for layer, keep in zip(surgery.layers(whole), kept, strict=True):
        gone = [neuron for neuron in range(128) if neuron not in keep.neurons]
        set_matrix(layer.down_projection, matrix(layer.down_projection).index_fill(1, torch.tensor(gone), 0))
        if layer.output_projection is not None:
            gone = [column for column in range(32) if column // 8 not in keep.heads]
            set_matrix(
                layer.output_projection, matrix(layer.output_projection).index_fill(1, torch.tensor(gone, dtype=int), 0)
            )
    return whole


# narrower layers


def test_every_layer_needs_an_entry(tiny_encoder):
    with pytest.raises(ValueError, match="shorter"):
        surgery.shrunk(tiny_encoder(), KEPT[:1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", SEPARATE)
def test_a_shrunk_encoder_computes_what_the_masked_one_does(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    small = surgery.shrunk(model, KEPT)
    for found, expected in zip(logits_of(small), logits_of(masked(model, KEPT)), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert surgery.shapes(small) == [Shape(2, 64), Shape(1, 33)]
    assert surgery.shapes(model) == [Shape(4, 128), Shape(4, 128)]


@variants
def test_a_shrunk_model_computes_what_the_muted_one_does(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    kept, before, state = uneven(model), logits_of(model), deepcopy(model.state_dict())
    small = surgery.shrunk(model, kept)
    for found, expected, whole in zip(logits_of(small), logits_of(muted(model, kept)), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found - whole).max() > 1e-3  # what was removed did matter
    assert surgery.shapes(small) == [Shape(len(keep.heads), len(keep.neurons)) for keep in kept]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert equal(logits_of(model), before)


@variants
def test_weights_get_physically_smaller(kind, task, tiny_encoder):
    model = tiny_encoder(kind, task)
    kept, small = uneven(model), surgery.shrunk(model, uneven(model))
    lost = (
        0  # query, key and value lose rows with their bias, the projection loses columns; ups lose rows, down columns
    )
    for layer, keep in zip(surgery.layers(model), kept, strict=True):
        neurons, inputs = 128 - len(keep.neurons), 32 + (layer.up_projections[0].bias is not None)
        lost += neurons * (len(layer.up_projections) * inputs + 32) + 8 * (layer.shape.heads - len(keep.heads)) * (
            3 * 33 + 32
        )
    count = [sum(parameter.numel() for parameter in found.parameters()) for found in (model, small)]
    assert count[0] - count[1] == lost > 0
    for one, other in zip(model.parameters(), small.parameters(), strict=True):
        assert other.is_contiguous()
        assert other.requires_grad == one.requires_grad


@variants
def test_keeping_everything_changes_nothing(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task)
    assert equal(logits_of(model), logits_of(surgery.resized(model, surgery.shapes(model))))


@variants
def test_every_part_of_a_shrunk_model_can_learn(kind, task, tiny_encoder, tokenizer):
    from deploykit.modeling.problem import model_inputs

    model = tiny_encoder(kind, task)
    small = surgery.shrunk(model, uneven(model))
    batch = {name: torch.from_numpy(array) for name, array in tokenizer.collate(tokenizer.encode(["the film"])).items()}
    small(**model_inputs(small, {**batch, "labels": batch["input_ids"]})).logits.square().sum().backward()
    for layer in surgery.layers(small):
        parts = [
            *layer.up_projections,
            layer.down_projection,
            *([layer.query, layer.value] if layer.shape.heads else []),
        ]
        assert all(float(part.weight.grad.abs().sum()) > 0 for part in parts)


def test_resized_gives_the_sizes_asked_for(tiny_encoder):
    model = tiny_encoder()
    sizes = [Shape(1, 64), Shape(3, 32)]
    assert surgery.shapes(surgery.resized(model, sizes)) == sizes
    small = surgery.layers(surgery.resized(model, sizes))
    assert [len(matrix(layer.query)) // layer.shape.heads for layer in small] == [8, 8]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_matrices_are_outputs_by_inputs_however_they_are_stored(kind, tiny_encoder):
    (layer, _) = surgery.layers(tiny_encoder(kind))
    for linear, shape in ((layer.up_projections[0], (128, 32)), (layer.down_projection, (32, 128))):
        states, before = torch.randn(3, shape[1]), matrix(linear).clone()
        assert before.shape == shape
        torch.testing.assert_close(linear(states), states @ before.T + linear.bias)
        set_matrix(linear, 2 * before[:, :7])
        torch.testing.assert_close(linear(states[:, :7]), 2 * states[:, :7] @ before[:, :7].T + linear.bias)
        assert linear.weight.requires_grad


def test_a_shared_layer_stands_for_all_its_repetitions(tiny_encoder):
    (layer,) = surgery.layers(tiny_encoder("albert", layers=5))
    assert layer.runs == 5
    assert {layer.runs for layer in surgery.layers(tiny_encoder("bert", layers=5))} == {1}


# fewer layers


def test_the_last_layer_of_a_stack_stays(tiny_encoder):
    with pytest.raises(ValueError, match=r"at least one layer of decoder\.block must stay, got \[2, 3\] to remove"):
        surgery.without_layers(tiny_encoder("t5", "text2text-generation"), [2, 3])


@variants
def test_a_layer_that_goes_takes_its_weights_and_the_others_keep_theirs(kind, task, tiny_encoder, logits_of):
    model = tiny_encoder(kind, task, layers=3)
    before, depths = logits_of(model), surgery.depths(model)
    assert depths == [3] * len(depths)
    for gone in ([0], [1], [0, 2], *([[1, 4]] if len(depths) == 2 else [])):
        small = surgery.without_layers(model, gone)
        stay = [index for index in range(sum(depths)) if index not in gone]
        if kind != "albert":
            old, new = surgery.layers(model), surgery.layers(small)
            for one, other in zip([old[index] for index in stay], new, strict=True):
                assert torch.equal(matrix(one.down_projection), matrix(other.down_projection))
        assert sum(surgery.depths(small)) == len(stay)
        assert max(np.abs(a - b).max() for a, b in zip(logits_of(small), before, strict=True)) > 1e-3
        assert type(small) is type(model)
        assert not small.training
    assert surgery.depths(model) == depths
    assert equal(logits_of(model), before)


@pytest.mark.parametrize("gone", [[0], [1], [0, 2], [0, 4], [3], [1, 3, 4]], ids=str)
@pytest.mark.parametrize(("kind", "task"), [found for found in VARIANTS if found[0] in RESIDUAL])
def test_without_a_layer_is_as_if_it_added_nothing(kind, task, gone, tiny_encoder, logits_of):
    """What T5's first layers hold for all others, the position bias, must have stayed."""
    model = tiny_encoder(kind, task, layers=3)
    gone = [index for index in gone if index < sum(surgery.depths(model))]
    silent, start = deepcopy(model), 0
    for _, _, layers in surgery.stacks(silent):
        for index, layer in enumerate(layers, start):
            for name, module in layer.named_modules():
                if index in gone and name.rpartition(".")[2] in RESIDUAL[kind]:
                    module.weight.data.zero_()
                    if getattr(module, "bias", None) is not None:
                        module.bias.data.zero_()
        start += len(layers)
    for one, other in zip(logits_of(silent), logits_of(surgery.without_layers(model, gone)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_without_a_repetition_a_shared_layer_runs_less_often(tiny_encoder, logits_of):
    model = tiny_encoder("albert", layers=5)
    small = surgery.without_layers(model, [0, 3])
    count = []
    surgery.layers(small)[0].down_projection.register_forward_hook(lambda *_: count.append(1))
    expected = deepcopy(model)
    expected.config.num_hidden_layers = 3
    assert equal(logits_of(small), logits_of(expected))
    assert len(count) == 3 * len(logits_of(expected))


@pytest.mark.parametrize(("kind", "task"), [found for found in VARIANTS if "generation" in found[1]])
def test_a_model_with_fewer_layers_writes_the_same_with_and_without_a_cache(kind, task, tiny_encoder):
    small = surgery.without_layers(tiny_encoder(kind, task, layers=3), [1])
    prompt = {"input_ids": torch.tensor([[2, 40, 41, 3]]), "attention_mask": torch.ones(1, 4, dtype=int)}
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    texts = [small.generate(**prompt, **settings, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*texts)
    assert texts[0].shape[1] > 8


# fewer tokens

TOKENS = [0, 1, 2, 3, *range(5, 110, 3)]


@variants
def test_fewer_tokens_give_the_same_answers_about_those_that_stay(kind, task, tiny_encoder):
    from deploykit.modeling.problem import model_inputs

    model = tiny_encoder(kind, task)
    model = surgery.shrunk(model, uneven(model))
    small = surgery.with_tokens(model, TOKENS)
    ids = torch.tensor([[2, 8, 11, 20, 107, 3], [2, 101, 5, 3, 0, 0]])
    few = torch.tensor([[TOKENS.index(token) for token in row] for row in ids.tolist()])
    one, other = (
        found(**model_inputs(found, {"input_ids": given, "attention_mask": (ids != 0).long(), "labels": given})).logits
        for found, given in ((model, ids), (small, few))
    )
    assert torch.equal(one[..., TOKENS] if "generation" in task else one, other)
    assert small.get_input_embeddings().num_embeddings == small.config.vocab_size == len(TOKENS)
    assert surgery.shapes(small) == surgery.shapes(model)
    assert len(list(small.parameters())) == len(list(model.parameters()))  # what was one tensor is one
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size > 110


def test_tokens_that_the_configurations_name_get_their_new_numbers(tiny_encoder):
    model = tiny_encoder("marian", "text2text-generation", pad_token_id=50, decoder_start_token_id=50)
    model.generation_config.bad_words_ids = [[50], [7, 8]]
    model.generation_config.suppress_tokens = [9]
    assert surgery.configured_token_ids(model) == {2, 3, 50, 7, 8, 9}
    small = surgery.with_tokens(model, [2, 3, 7, 8, 9, 50])
    assert (small.config.pad_token_id, small.config.decoder_start_token_id, small.config.eos_token_id) == (5, 5, 1)
    assert small.config.decoder_vocab_size == small.config.vocab_size == 6
    assert small.final_logits_bias.shape == (1, 6)
    assert small.model.encoder.embed_tokens.padding_idx == 5
    assert small.generation_config.bad_words_ids == [[5], [2, 3]]
    assert (small.generation_config.suppress_tokens, small.generation_config.eos_token_id) == ([4], 1)
    assert model.generation_config.bad_words_ids == [[50], [7, 8]]


def test_masked_language_models_lose_the_rows_of_their_output_layer(tiny_encoder):
    model = transformers.BertForMaskedLM(tiny_encoder().config).eval()
    model.cls.predictions.bias.data.normal_()
    small = surgery.with_tokens(model, TOKENS)
    one, other = model(torch.tensor([TOKENS[4:9]])).logits, small(torch.tensor([[4, 5, 6, 7, 8]])).logits
    torch.testing.assert_close(one[..., TOKENS], other, rtol=0, atol=1e-6)


# what a model takes


@pytest.mark.parametrize(("kind", "typed"), [("bert", True), ("distilbert", False), ("gpt2", False), ("t5", False)])
def test_token_types_go_only_to_models_that_count_them(kind, typed, tiny_encoder):
    assert ("token_type_ids" in engines.input_names(tiny_encoder(kind))) == typed
