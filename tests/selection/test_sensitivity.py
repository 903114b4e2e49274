import json

import numpy as np
import onnx
import pytest
from graph_models import logits, signal_to_noise
from onnx import numpy_helper

from deploykit import quantizers
from deploykit.graphs import matmuls
from deploykit.selection import sensitivity
from deploykit.selection.sensitivity import Damage

pytestmark = pytest.mark.usefixtures("one_thread")


def test_damage_is_the_error_over_the_variance():
    before = np.float32([[0, 2], [4, 6]])  # variance 5
    assert sensitivity.damage(before, before) == 0
    assert sensitivity.damage(before, before + 1) == pytest.approx(1 / 5)
    assert sensitivity.damage(before, np.float32([[0, 2], [4, 9]])) == pytest.approx(9 / 4 / 5)
    assert np.isnan(sensitivity.damage(before, np.float32([[0, 2], [4, np.nan]])))
    assert sensitivity.damage(np.ones((1, 1)), np.ones((1, 1))) == 0  # no variance, no error


def test_decibels_are_bounded():
    assert sensitivity.decibels(1) == 0
    assert sensitivity.decibels(0.001) == pytest.approx(30)
    assert sensitivity.decibels(0) == 120


@pytest.mark.parametrize("variant", ["exported", "fused", "attention", "merged"])
@pytest.mark.parametrize("name", ["dynamic", "static", "weight-only"])
def test_damage_is_that_of_a_graph_with_one_matmul_quantized(name, variant, variant_graph, padded, tmp_path):
    method, source, batches = quantizers.load(name), variant_graph(variant), padded(0, 16, "left")
    ranking = sensitivity.rank(source, method, method.Options(), batches, tmp_path)
    every = matmuls.quantizable(matmuls.load(source), method.OPERATORS)
    assert sorted(entry.node for entry in ranking) == sorted(every)
    errors = [entry.error for entry in ranking]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[-1] > 0
    for entry in (ranking[0], ranking[len(ranking) // 2], ranking[-1]):
        keep = [node for node in every if node != entry.node]
        assert method.quantize(source, method.Options(), tmp_path / "single.onnx", batches, keep)["quantized"] == 1
        expected = sensitivity.damage(logits(source, batches), logits(tmp_path / "single.onnx", batches))
        assert entry.error == pytest.approx(expected, rel=0.02)
        assert entry.decibels == sensitivity.decibels(entry.error)


def test_a_matmul_with_an_outlier_is_the_worst(uneven_graph, padded, tmp_path):
    """Large weights of a neuron that is always zero change nothing in float, but enlarge the quantization scale."""
    model = matmuls.load(uneven_graph())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    (down,) = (node for node in model.graph.node if node.name.endswith("layer.0/output/dense/MatMul"))
    for name, value in (("bert.encoder.layer.0.intermediate.dense.bias", -100), (down.input[1], 9)):
        array = numpy_helper.to_array(tensors[name]).copy()
        array[0] = value
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "source.onnx")
    method = quantizers.load("dynamic")
    worst, *others = sensitivity.rank(tmp_path / "source.onnx", method, method.Options(), padded(0, 8), tmp_path)
    assert worst.node == down.name
    assert worst.error > 10 * others[0].error


def test_the_parts_of_a_seq2seq_are_ranked(seq2seq_graphs, seq2seq_batches, tmp_path):
    method = quantizers.load("dynamic")
    for part, count in (("encoder", 6 * 2), ("decoder", 10 * 2)):
        ranking = sensitivity.rank(seq2seq_graphs[part], method, method.Options(), seq2seq_batches(0), tmp_path)
        assert len(ranking) == count
        assert all(20 < entry.decibels < 120 for entry in ranking)


def test_returning_the_worst_to_float_helps_more_than_returning_the_least(uneven_graph, padded, tmp_path):
    method, source, batches = quantizers.load("weight-only"), uneven_graph(), padded(0, 16)
    ranking = sensitivity.rank(source, method, method.Options(), batches, tmp_path)
    ratios = {}
    for name, keep in (("worst", ranking[:4]), ("least", ranking[-4:])):
        target = tmp_path / f"{name}.onnx"
        method.quantize(source, method.Options(), target, (), [entry.node for entry in keep])
        ratios[name] = signal_to_noise(source, target, padded(100, 132))
    assert ratios["worst"] > ratios["least"] + 3


def test_groups_grow_and_never_hold_everything():
    ranking = [Damage(node=f"n{index}", error=1 / (index + 1), decibels=0) for index in range(9)]
    assert [sorted(group) for group in sensitivity.groups(ranking)] == [
        [f"n{index}" for index in range(count)] for count in (1, 2, 4, 8)
    ]
    assert [len(group) for group in sensitivity.groups(ranking[:8])] == [1, 2, 4]
    assert list(sensitivity.groups(ranking[:1])) == list(sensitivity.groups([])) == []


def test_damage_comes_back_from_json():
    damage = Damage(node="n", error=0.0, decibels=sensitivity.decibels(0))
    assert Damage.model_validate(json.loads(damage.model_dump_json())) == damage
