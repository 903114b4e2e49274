"""Int8 weights, and activations quantized with ranges that real rows have shown beforehand.

Weights are signed and activations unsigned, as pairs of `QuantizeLinear` and `DequantizeLinear` that both ONNX Runtime
and OpenVINO turn into int8 kernels. Only products with a constant are quantized; sums, normalizations and masks have
outliers that would spoil the scale (arXiv 2603.04308). ONNX Runtime's `QDQQuantizer` is used directly, because
Optimum's `ORTQuantizer` can neither leave the products' outputs in float (on movie reviews the logits had 24.6 dB of
signal to noise against 13.7 dB, at the same speed), nor take fused graphs, nor join the ranges of several calls
(`partial_fit` starts anew each time). Ranges are running minima and maxima, or histograms, batch by batch, so that
memory does not grow with the number of rows.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from pydantic import Field
from tqdm import tqdm

from deploykit import hardware
from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls
from deploykit.graphs.matmuls import Array
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

PRECISION = "int8"
ENGINES = ("onnxruntime", "openvino")
OPERATORS = ("MatMul",)
BINS = 2048  # of the histograms
EXTRA = {"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]}


class Options(Base):
    """Weights and activations in int8, with ranges from calibration rows."""

    calibration: Literal["minmax", "percentile"] = "minmax"
    """Range of the activations: all of it (`minmax`), or the middle `percentile` percent."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Percent of the activations that `calibration: percentile` keeps."""
    rows: int = Field(default=256, ge=1)
    """Most rows of the training split to calibrate with."""
    per_channel: bool = True
    """Gives each output column a scale of its own."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a statically quantized copy of a graph.

    Args:
        graph: float32.
        options: see `Options`.
        target: the file to write.
        calibration: padded batches of real rows.
        keep: names of nodes that stay in float besides those outside of the layers.

    Returns:
        How many products were quantized, how many weights stayed in float, the `weight_bits`, and how many `rows` were
        looked at.

    Raises:
        DeploykitError: there are no rows or nothing to quantize, or something else was quantized than was to be.
    """
    if not calibration:
        raise DeploykitError("static quantization needs rows to calibrate with, and got none.")
    model = matmuls.load(graph)
    names = matmuls.choose(model, keep, OPERATORS)
    sources = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in names))
    batches = _first_rows(calibration, options.rows)
    found = ranges(model, sources, batches, options.percentile if options.calibration == "percentile" else None)
    # what is behind fused operators has no type that the tool could infer, and it passes over what has none
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sources)
    reduced = hardware.saturates_int8()  # then weights take 7 bits, see `dynamic`
    quantizer = QDQQuantizer(
        model,
        per_channel=options.per_channel,
        reduce_range=reduced,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, found),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options=EXTRA,
    )
    quantizer.quantize_model()
    _give_floats_back(quantizer.model.model.graph, names)
    quantizer.model.topological_sort()
    onnx.save(quantizer.model.model, target)
    return {
        **matmuls.check(target, PRECISION, len(names)),
        "weight_bits": 7 if reduced else 8,
        "rows": sum(map(_rows, batches)),
    }


def _give_floats_back(graph: Any, names: Collection[str]) -> None:
    """Lets only products read quantized tensors: the tool gives them to every reader, residual sums included."""
    bytes_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    float_of = {
        node.output[0]: bytes_of[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in bytes_of
    }
    for node in graph.node:
        if node.name not in names:
            node.input[:] = [float_of.get(name, name) for name in node.input]


def ranges(
    model: Any, names: Sequence[str], batches: Sequence[Batch], percentile: float | None = None
) -> dict[str, tuple[Array, Array]]:
    """Finds between which values tensors lie.

    Args:
        model: what `products.load` gave.
        names: of the tensors.
        batches: of real rows.
        percentile: the share of the values to cover, in percent; None for all of them. It takes a second run.
    """
    whole: dict[str, tuple[Array, Array]] = {}
    for arrays in matmuls.values(model, names, _tracked(batches, "ranges")):
        for name, array in zip(names, arrays, strict=True):
            low, high = whole.get(name, (array.min(), array.max()))
            whole[name] = (np.minimum(low, array.min()), np.maximum(high, array.max()))
    if percentile is None:
        return whole
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    for arrays in matmuls.values(model, names, _tracked(batches, "histograms")):
        for name, array in zip(names, arrays, strict=True):
            low, high = map(float, whole[name])
            counts[name] += np.histogram(array, BINS, (low, high))[0]
    return {name: middle(counts[name], *whole[name], percentile) for name in names}


def middle(counts: Array, low: Array, high: Array, percentile: float) -> tuple[Array, Array]:
    """Finds the range that holds the middle `percentile` percent of the values.

    Args:
        counts: of the values in bins of equal width from `low` to `high`, `(bins,)`.
        low: the least value.
        high: the greatest.
        percentile: above 50, up to 100.
    """
    edges = np.linspace(low, high, len(counts) + 1, dtype=np.float32)
    cut = (1 - percentile / 100) / 2 * counts.sum()
    first = np.searchsorted(counts.cumsum(), cut, side="right")
    last = len(counts) - np.searchsorted(counts[::-1].cumsum(), cut, side="right")
    return edges[first], edges[last]


def _first_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Returns whole batches until there are enough rows."""
    sizes = np.cumsum([_rows(batch) for batch in batches])
    return list(batches[: int(np.searchsorted(sizes, rows)) + 1])


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _tracked(batches: Sequence[Batch], what: str) -> Any:
    return tqdm(batches, desc=what, unit="batch", disable=None)
