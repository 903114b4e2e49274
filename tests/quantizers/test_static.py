import numpy as np
import onnx
import pytest
from graph_models import MATMULS, logits, signal_to_noise
from models import ENCODERS
from onnx import TensorProto, numpy_helper
from pydantic import ValidationError

from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls
from deploykit.quantizers import static

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def quantized(variant_graph, padded, tmp_path):
    """`quantized(variant="exported", **options) -> (source, target, facts)`."""

    def build(variant="exported", **options):
        source, target = variant_graph(variant), tmp_path / "model.onnx"
        return source, target, static.quantize(source, static.Options(**options), target, padded(0, 64))

    return build


@pytest.mark.parametrize(
    "options", [{"calibration": "entropy"}, {"percentile": 50}, {"percentile": 100.1}, {"rows": 0}, {"bits": 4}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        static.Options(**options)


def test_without_rows_it_is_refused(uneven_graph, tmp_path):
    with pytest.raises(DeploykitError, match="needs calibration rows, got none"):
        static.quantize(uneven_graph(), static.Options(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", ["exported", "fused", "merged"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_signed_and_activations_unsigned(per_channel, variant, quantized):
    _, target, facts = quantized(variant, per_channel=per_channel)
    graph = onnx.load(target).graph
    arrays = {found.name: found for found in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in makers]
    found = [node for node in found if makers[node.input[1]].op_type == "DequantizeLinear"]
    assert len(found) == facts["quantized"] == (MATMULS - 2 * 2 if variant == "merged" else MATMULS)
    for node in found:
        data, weight = (makers[name] for name in node.input)
        assert arrays[weight.input[0]].data_type == arrays[weight.input[2]].data_type == TensorProto.INT8
        assert not numpy_helper.to_array(arrays[weight.input[2]]).any()  # symmetric
        assert list(arrays[weight.input[1]].dims) == ([arrays[weight.input[0]].dims[1]] if per_channel else [])
        assert data.op_type == "DequantizeLinear"
        assert makers[data.input[0]].op_type == "QuantizeLinear"
        assert arrays[data.input[2]].data_type == TensorProto.UINT8


@pytest.mark.parametrize("variant", ["exported", "fused", "attention"])
def test_only_products_read_bytes_and_they_give_floats(variant, quantized):
    _, target, facts = quantized(variant)
    graph = onnx.load(target).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    readers = [node for node in graph.node if set(node.input) & dequantized]
    assert {node.op_type for node in readers} == {"MatMul"}
    assert len(readers) == facts["quantized"]
    before_bytes = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert not before_bytes & {node.output[0] for node in readers}


@pytest.mark.parametrize("variant", ["exported", "fused", "multi-head"])
def test_onnxruntime_multiplies_bytes(variant, quantized, tmp_path):
    """Every quantized product becomes a kernel of bytes, none of them a float product of unpacked weights."""
    import onnxruntime

    _, target, facts = quantized(variant)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == facts["quantized"]
    assert "MatMulNBits" not in operators


@pytest.mark.parametrize("kind", ENCODERS)
def test_engines_agree_on_rows_with_padding(kind, exported_of, padded, tmp_path):
    """OpenVINO looks for dequantizations in the whole graph, masks included."""
    static.quantize(exported_of(kind) / "model.onnx", static.Options(), tmp_path / "model.onnx", padded(0, 64))
    batches = padded(64, 96)
    assert any(not batch["attention_mask"].all() for batch in batches)
    one, other = (logits(tmp_path / "model.onnx", batches, engine) for engine in static.ENGINES)
    assert np.abs(one - other).max() < 0.02 * np.ptp(one)


def test_rows_are_limited_to_whole_batches(quantized, padded):
    assert [quantized(rows=rows)[-1]["rows"] for rows in (1, 4, 5, 64, 999)] == [4, 4, 8, 64, 64]


def test_ranges_hold_every_batch_whatever_their_sizes(uneven_graph, padded):
    model = matmuls.load(uneven_graph())
    names = [node.input[0] for node in model.graph.node if node.name.endswith("dense/MatMul")]
    batches = [*padded(0, 12), *padded(12, 14, rows=1)]
    found = static.measure_ranges(model, names, batches)
    alone = [static.measure_ranges(model, names, [batch]) for batch in batches]
    for name in names:
        low, high = zip(*(ranges[name] for ranges in alone), strict=True)
        assert found[name] == (min(low), max(high))
        assert len(set(high)) > 1


def test_the_middle_of_a_histogram_leaves_out_both_ends():
    counts = np.array([1, 0, 48, 50, 0, 1])
    np.testing.assert_allclose(static.middle_range(counts, -3.0, 3.0, 100), (-3, 3))
    np.testing.assert_allclose(static.middle_range(counts, -3.0, 3.0, 98.5), (-3, 3))
    np.testing.assert_allclose(static.middle_range(counts, -3.0, 3.0, 98), (-1, 1))
    np.testing.assert_allclose(static.middle_range(counts, -3.0, 3.0, 51), (-1, 1))


def test_percentiles_of_a_normal_distribution(tmp_path):
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    counts, edges = np.histogram(values, 2048)
    low, high = static.middle_range(counts, edges[0], edges[-1], 95.0)
    np.testing.assert_allclose((low, high), (-1.96, 1.96), atol=0.02)


def test_percentiles_cut_the_ranges(uneven_graph, padded):
    model = matmuls.load(uneven_graph())
    names = [node.input[0] for node in model.graph.node if node.name.endswith("layer.1/output/dense/MatMul")]
    whole, most = (static.measure_ranges(model, names, padded(0, 32), percentile) for percentile in (None, 99.0))
    (low, high), (least, greatest) = whole[names[0]], most[names[0]]
    assert low <= least < 0 < greatest < 0.8 * high


def test_what_calibration_cuts_off_is_lost(quantized, padded):
    found = {}
    for percentile in (51, 99.99):
        source, target, _ = quantized(calibration="percentile", percentile=percentile)
        found[percentile] = signal_to_noise(source, target, padded(200, 232))
    assert found[99.99] > 28
    assert found[99.99] > found[51] + 10
