"""What every quantizer keeps, on every variant of a graph with uneven layers and on the files of a T5."""

import numpy as np
import onnx
import pytest
from graph_models import MATMULS

from deploykit import engines, quantizers
from deploykit.artifact.execution import Execution
from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls, variants
from deploykit.selection import sensitivity

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = quantizers.writers()
QUANTIZED = {"merged": MATMULS - 2 * 2, "attention": MATMULS - 3 * 2}  # others: all
NEAR = {"int4": 14, "int8": 28, "float16": 45, "float32": 100}  # decibels
HEAD = ("/classifier/Gemm", "/bert/pooler/dense/Gemm", "/classifier/Gemm_MatMul", "/bert/pooler/dense/Gemm_MatMul")

every_method = pytest.mark.parametrize("name", METHODS)


def expected(method, variant):
    """How many MatMuls a method quantizes: one attention holds three, which only some methods take."""
    inside = 2 if variant == "attention" and "Attention" in method.OPERATORS else 0
    return QUANTIZED.get(variant, MATMULS) + inside if method.OPERATORS else 0


def described(graph):
    opened = matmuls.session(graph)
    return [
        [(found.name, found.type, found.shape) for found in side]
        for side in (opened.get_inputs(), opened.get_outputs())
    ]


def logits(graph, batches, engine="onnxruntime"):
    opened = engines.load(engine).load(graph, Execution(engine=engine))
    return np.concatenate([array.reshape(-1) for batch in batches for array in opened.run(batch).values()])


def decibels(one, other):
    return sensitivity.decibels(sensitivity.damage(one, other))


def test_there_are_the_methods_that_are_promised():
    assert set(METHODS) >= {"none", "dynamic", "static", "weight-only", "float16"}


@every_method
def test_what_cannot_be_quantized_is_refused_and_nothing_is_written(name, variant_graph, padded, tmp_path):
    method, source, target = quantizers.load(name), variant_graph("exported"), tmp_path / "model.onnx"
    if name == "none":
        assert method.quantize(source, method.Options(), target) == {"quantized": 0, "float": MATMULS + 2}
        assert target.read_bytes() == source.read_bytes()
        return
    every = matmuls.quantizable(matmuls.load(source), method.OPERATORS)
    for keep, message in (
        (every, r"nothing to quantize: 12 MatMuls .* 12 of them .* \{method: none\}"),
        (["nothing/MatMul"], "the graph has no node 'nothing/MatMul'"),
    ):
        with pytest.raises(DeploykitError, match=message):
            method.quantize(source, method.Options(), target, padded(0, 8), keep)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", variants.VARIANTS)
@every_method
def test_a_quantized_graph_takes_and_gives_the_same(name, variant, variant_graph, padded, tmp_path):
    method, source, target = quantizers.load(name), variant_graph(variant), tmp_path / "model.onnx"
    before = source.read_bytes()
    facts = method.quantize(source, method.Options(), target, padded(0, 64))
    assert source.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(target))
    assert described(target) == described(source)

    found = matmuls.precisions(onnx.load(target))
    assert facts["quantized"] == expected(method, variant)
    assert facts["float"] == len(found) - facts["quantized"]
    if method.OPERATORS:
        assert sum(precision == method.PRECISION for precision in found.values()) == facts["quantized"]
    assert [found[head] for head in HEAD if head in found] == ["float32"] * 2
    for side in ("right", "left"):
        batches = padded(200, 232, side) + padded(232, 234, side, rows=1)
        assert decibels(logits(source, batches), logits(target, batches)) > NEAR[method.PRECISION]


@pytest.mark.parametrize("variant", ["exported", "attention", "merged"])
@pytest.mark.parametrize("name", [name for name in METHODS if quantizers.load(name).OPERATORS])
def test_what_is_to_be_kept_stays_in_float(name, variant, variant_graph, padded, tmp_path):
    method, source, target = quantizers.load(name), variant_graph(variant), tmp_path / "model.onnx"
    every = matmuls.quantizable(matmuls.load(source), method.OPERATORS)
    keep = [every[0], next(found for found in every if found.endswith("layer.1/output/dense/MatMul"))]
    facts = method.quantize(source, method.Options(), target, padded(0, 32), keep)
    assert facts["quantized"] == expected(method, variant) - 2
    found = matmuls.precisions(onnx.load(target))
    assert [found[node] for node in keep] == ["float32"] * 2


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@every_method
def test_the_files_of_a_t5_are_quantized_one_by_one(name, part, seq2seq_graphs, seq2seq_batches, tmp_path):
    method, source, target = quantizers.load(name), seq2seq_graphs[part], tmp_path / "model.onnx"
    facts = method.quantize(source, method.Options(), target, seq2seq_batches(0))
    count = {"encoder": 6 * 2, "decoder": 10 * 2}[part]  # the decoder has a second attention in each layer
    assert facts["quantized"] == (count if method.OPERATORS else 0)
    assert described(target) == described(source)
    batches = seq2seq_batches(1)
    assert decibels(logits(source, batches), logits(target, batches)) > NEAR[method.PRECISION]
    if part == "decoder":  # the head is tied to the embeddings; it gives out what it computes, in float32
        (last,) = (node for node in onnx.load(target).graph.node if "logits" in node.output)
        assert (last.op_type, last.name) == ("MatMul", "/lm_head/MatMul")


@pytest.mark.parametrize("variant", variants.VARIANTS)
@pytest.mark.parametrize("name", [name for name in METHODS if "openvino" in quantizers.load(name).ENGINES])
def test_openvino_computes_the_same_from_the_same_file(name, variant, variant_graph, padded, tmp_path):
    pytest.importorskip("openvino")
    method, target = quantizers.load(name), tmp_path / "model.onnx"
    method.quantize(variant_graph(variant), method.Options(), target, padded(0, 64))
    for side in ("right", "left"):
        batches = padded(200, 216, side)
        one, other = logits(target, batches), logits(target, batches, "openvino")
        assert decibels(one, other) > (90 if method.PRECISION == "float32" else 30)
