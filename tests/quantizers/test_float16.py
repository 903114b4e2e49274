import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from deploykit.graphs import matmuls
from deploykit.quantizers import float16

pytestmark = pytest.mark.usefixtures("one_thread")


def test_weights_take_half_the_bytes_and_the_head_all(uneven_graph, tmp_path):
    source, target = uneven_graph(), tmp_path / "model.onnx"
    float16.quantize(source, float16.Options(), target)
    halved = {found.name: found for found in onnx.load(target).graph.initializer}
    for found in matmuls.load(source).graph.initializer:
        if len(found.dims) == 2:
            head = found.name.startswith(("classifier", "bert.pooler"))
            assert halved[found.name].data_type == (TensorProto.FLOAT if head else TensorProto.FLOAT16)
            difference = numpy_helper.to_array(found) - numpy_helper.to_array(halved[found.name]).astype(np.float32)
            assert np.abs(difference).max() < 1e-3


def test_masked_tokens_stay_masked(uneven_graph, padded, tmp_path):
    """The masks' least float32 does not fit into float16; what stands at padding must not matter all the same."""
    float16.quantize(uneven_graph(), float16.Options(), tmp_path / "model.onnx")
    opened = matmuls.session(tmp_path / "model.onnx")
    for batch in padded(0, 16):
        other = {**batch, "input_ids": np.where(batch["attention_mask"], batch["input_ids"], 17)}
        assert (other["input_ids"] != batch["input_ids"]).any()
        np.testing.assert_array_equal(opened.run(None, other)[0], opened.run(None, batch)[0])


def test_the_cpu_computes_with_wide_activations(uneven_graph, padded, tmp_path):
    float16.quantize(uneven_graph(), float16.Options(), tmp_path / "model.onnx")
    (batch,) = padded(0, 4)
    (logits,) = matmuls.session(tmp_path / "model.onnx").run(None, batch)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
