import logging
import subprocess
import sys

import numpy as np
import onnx
import pytest
from graph_models import signal_to_noise
from onnx import helper, numpy_helper
from pydantic import ValidationError

from deploykit.quantizers import weight_only

pytestmark = pytest.mark.usefixtures("one_thread")


def unpacked(node, arrays):
    """Computes the weights that a product of blocks stands for, `(K, N)`, in numpy; 8 or 4 bits, with zero points."""
    rows, columns, bits, size = (helper.get_node_attr_value(node, name) for name in ("K", "N", "bits", "block_size"))
    blocks = -(-rows // size)

    def values(array, count):
        if bits == 4:
            array = np.stack([array & 15, array >> 4], -1)
        return array.reshape(columns, -1)[:, :count].astype(np.float32)

    packed, scales, zeros = (arrays[name] for name in node.input[1:4])
    centred = values(packed, blocks * size).reshape(columns, blocks, size) - values(zeros, blocks)[..., None]
    return (centred * scales.reshape(columns, blocks, 1)).reshape(columns, -1)[:, :rows].T


@pytest.mark.parametrize("options", [{"bits": 3}, {"block_size": 48}, {"accuracy_level": 2}, {"rows": 1}])
def test_options_that_no_kernel_has_are_refused(options):
    with pytest.raises(ValidationError):
        weight_only.Options(**options)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 64])
def test_weights_are_within_half_a_step_of_their_blocks(bits, block_size, uneven_graph, tmp_path):
    source, target = uneven_graph(), tmp_path / "model.onnx"
    facts = weight_only.quantize(source, weight_only.Options(bits=bits, block_size=block_size), target)
    assert facts == {"quantized": 12, "float": 2, "bits": bits}
    arrays = {found.name: numpy_helper.to_array(found) for found in onnx.load(target).graph.initializer}
    originals = {found.name: numpy_helper.to_array(found) for found in onnx.load(source).graph.initializer}
    weights = {node.name: originals.get(node.input[1]) for node in onnx.load(source).graph.node if len(node.input) > 1}
    nodes = [node for node in onnx.load(target).graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 12
    for node in nodes:
        weight = weights[node.name.removesuffix(f"_Q{bits}")]
        found = unpacked(node, arrays)
        assert found.shape == weight.shape
        steps = arrays[node.input[2]].reshape(weight.shape[1], -1).max(axis=1)
        assert (np.abs(found - weight) <= 0.51 * steps + 1e-6).all()


def test_more_bits_and_smaller_blocks_are_nearer(uneven_graph, padded, tmp_path):
    found = {}
    for bits, block_size in ((4, 128), (4, 16), (8, 128)):
        target = tmp_path / "model.onnx"
        weight_only.quantize(uneven_graph(), weight_only.Options(bits=bits, block_size=block_size), target)
        found[bits, block_size] = signal_to_noise(uneven_graph(), target, padded(0, 32))
    assert found[4, 128] + 1 < found[4, 16] < found[8, 128] - 10


def test_importing_it_does_not_set_up_logging():
    code = "import logging, deploykit.quantizers.weight_only; print(logging.root.handlers, logging.root.level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == f"[] {logging.WARNING}"
