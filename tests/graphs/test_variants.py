import numpy as np
import onnx
import pytest
from graph_models import HEADS, MATMULS
from onnx import helper, numpy_helper

from deploykit import engines
from deploykit.artifact.execution import Execution
from deploykit.errors import GraphError
from deploykit.graphs import variants
from deploykit.stages import exporting

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("bert", "roberta", "distilbert", "electra")
FUSING = {"attention": "Attention", "multi-head": "MultiHeadAttention"}


def count(graph, operator):
    return sum(node.op_type == operator for node in onnx.load(graph).graph.node)


def logits(graph, batches):
    opened = engines.load("onnxruntime").load(graph, Execution())
    return [opened.run(batch)["logits"] for batch in batches]


def changed_heads(model, heads):
    """Changes the number of heads of the fused attentions."""
    nodes = [node for node in model.graph.node if node.op_type in FUSING.values()]
    for node, number in zip(nodes, heads, strict=True):
        (attribute,) = (entry for entry in node.attribute if entry.name == "num_heads")
        attribute.i = number
    return model


@pytest.fixture
def planted(monkeypatch):
    """`planted(change)`: changes the result of the fusion before it is checked."""
    fuse = variants._fuse

    def plant(change):
        monkeypatch.setattr(variants, "_fuse", lambda model, variant: change(fuse(model, variant)))

    return plant


# refusals


@pytest.mark.parametrize("variant", FUSING)
def test_heads_that_fusion_changed_are_refused(variant, uneven_graph, tmp_path, planted):
    planted(lambda model: changed_heads(model, [1, 1]))
    with pytest.raises(GraphError, match=r"fusion changed the heads of the attentions: \[3, 1\] became \[1, 1\]"):
        variants.write(variant, uneven_graph(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", FUSING)
def test_wrong_heads_also_show_in_the_outputs(variant, uneven_graph, tmp_path, planted, monkeypatch):
    planted(lambda model: changed_heads(model, [1, 1]))
    monkeypatch.setattr(variants, "_check_heads", lambda *_: None)
    with pytest.raises(GraphError, match=rf"'{variant}' does not compute the same: outputs differ by \d"):
        variants.write(variant, uneven_graph(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", FUSING)
def test_masks_that_became_lengths_show_where_padding_is_on_the_left(variant, uneven_graph, tmp_path, monkeypatch):
    monkeypatch.setattr(variants.FusionOptions, "use_raw_attention_mask", lambda self: None)  # the tool's default
    with pytest.raises(GraphError, match="does not compute the same"):
        variants.write(variant, uneven_graph(), tmp_path / "model.onnx")
    monkeypatch.setattr(variants, "PROBE_BATCHES", [shape for shape in variants.PROBE_BATCHES if shape[-1] == "right"])
    variants.write(variant, uneven_graph(), tmp_path / "model.onnx")  # with padding on the right, both are the same


@pytest.mark.parametrize("weight", [1.5, float("nan")])
def test_a_weight_that_changed_is_refused(weight, uneven_graph, tmp_path, planted):
    def scale(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(weight), tensor.name))
        return model

    planted(scale)
    with pytest.raises(GraphError, match="outputs differ by"):
        variants.write("fused", uneven_graph(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("part", "variant", "message"),
    [
        ("encoder", "attention", "'attention' does not apply to this graph: 0 of 2 attentions matched"),
        ("decoder", "multi-head", "'multi-head' does not apply to this graph: 0 of 4 attentions matched"),
        ("decoder", "merged", "'merged' does not apply to this graph: 2 of 4 attentions matched"),
    ],
)
def test_an_architecture_that_a_variant_does_not_know_is_refused(part, variant, message, seq2seq_graphs, tmp_path):
    with pytest.raises(GraphError, match=message):
        variants.write(variant, seq2seq_graphs[part], tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_the_tool_is_reported(uneven_graph, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("shape")

    monkeypatch.setattr(variants, "optimize_model", fail)
    with pytest.raises(GraphError, match=r"cannot be fused: AssertionError\('shape'\)\. Use the variant `exported`"):
        variants.write("fused", uneven_graph(), tmp_path / "model.onnx")


def test_a_graph_without_attention_or_norms_is_refused(tmp_path, tiny_graph):
    tiny_graph(tmp_path / "source.onnx")
    for variant, message in (("merged", "0 of 0 attentions"), ("attention", "nothing to fuse"), ("fused", "to fuse")):
        with pytest.raises(GraphError, match=message):
            variants.write(variant, tmp_path / "source.onnx", tmp_path / "model.onnx")


def test_heads_that_are_not_constants_are_refused(uneven_graph, tmp_path):
    model = onnx.load(uneven_graph())
    shape = next(node for node in model.graph.node if node.name.endswith("layer.0/attention/self/Concat"))
    model.graph.input.append(helper.make_tensor_value_info("heads", onnx.TensorProto.INT64, [1]))
    shape.input[2] = "heads"
    onnx.save(model, tmp_path / "source.onnx")
    with pytest.raises(GraphError, match=r"the heads of /bert/encoder/layer\.0/.* are not constants of the graph"):
        variants.write("attention", tmp_path / "source.onnx", tmp_path / "model.onnx")


# what is written


@pytest.mark.parametrize("variant", variants.VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_uneven_graphs_of_every_architecture_compute_the_same(kind, variant, uneven_graph, padded, tmp_path):
    source, target = uneven_graph(kind), tmp_path / "model.onnx"
    before = source.read_bytes()
    facts = variants.write(variant, source, target)
    assert source.read_bytes() == before
    assert facts["difference"] < 1e-5
    onnx.checker.check_model(onnx.load(target))
    for side in ("right", "left"):
        batches = [*padded(0, 24, side, 8), *padded(24, 26, side, rows=1)]
        for expected, output in zip(logits(source, batches), logits(target, batches), strict=True):
            np.testing.assert_allclose(expected, output, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_norm_and_activation_is_fused(kind, uneven_graph, tmp_path):
    facts = variants.write("fused", uneven_graph(kind), tmp_path / "model.onnx")
    assert (facts["SkipLayerNormalization"], facts["BiasGelu"]) == (2 * 2, 2)
    assert count(tmp_path / "model.onnx", "LayerNormalization") == 1  # that of the embeddings, which has no sum
    assert count(tmp_path / "model.onnx", "Softmax") == 2


@pytest.mark.parametrize("variant", FUSING)
@pytest.mark.parametrize("kind", KINDS)
def test_every_attention_is_fused_with_its_own_heads(kind, variant, uneven_graph, tmp_path):
    facts = variants.write(variant, uneven_graph(kind), tmp_path / "model.onnx")
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == FUSING[variant]]
    assert [helper.get_node_attr_value(node, "num_heads") for node in nodes] == HEADS
    assert facts[FUSING[variant]] == 2
    assert count(tmp_path / "model.onnx", "Softmax") == 0
    matmuls = {"attention": MATMULS - 3 * 2, "multi-head": MATMULS}[variant]
    assert count(tmp_path / "model.onnx", "MatMul") == matmuls


@pytest.mark.parametrize("kind", KINDS)
def test_merged_matmuls_have_the_widths_of_their_parts(kind, uneven_graph, tmp_path):
    assert variants.write("merged", uneven_graph(kind), tmp_path / "model.onnx")["merged"] == 2
    model = onnx.load(tmp_path / "model.onnx")
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    merged = [node for node in model.graph.node if node.name.endswith("_merged")]
    assert [shapes[node.input[1]] for node in merged] == [[32, 3 * 8 * heads] for heads in HEADS]
    assert count(tmp_path / "model.onnx", "MatMul") == MATMULS - 2 * 2 + 2 * 2  # two each between activations
    read = {name for node in model.graph.node for name in node.input}
    assert set(shapes) <= read  # what was merged is not stored twice


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_t5_is_fused_without_its_attentions(part, seq2seq_graphs, tmp_path):
    facts = variants.write("fused", seq2seq_graphs[part], tmp_path / "model.onnx")
    assert facts["SkipSimplifiedLayerNormalization"] in {"encoder": (3, 4), "decoder": (5, 6)}[part]  # 5 finds one more
    assert facts["difference"] < 1e-4


def test_layers_that_share_weights_go_on_sharing_them(tiny_encoder, tmp_path):
    exporting.write_graph(tiny_encoder("albert"), tmp_path, "text-classification", 18)
    assert variants.write("merged", tmp_path / "model.onnx", tmp_path / "merged.onnx")["merged"] == 2
    merged = [node for node in onnx.load(tmp_path / "merged.onnx").graph.node if node.name.endswith("_merged")]
    assert len({node.input[1] for node in merged}) == 1


def test_a_difference_that_is_not_a_number_is_returned(uneven_graph, tmp_path):
    model = onnx.load(uneven_graph())
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.float32([np.nan, 0]), bias.name))
    onnx.save(model, tmp_path / "model.onnx")
    assert variants.largest_difference(uneven_graph(), uneven_graph()) == 0
    assert np.isnan(variants.largest_difference(uneven_graph(), tmp_path / "model.onnx"))
