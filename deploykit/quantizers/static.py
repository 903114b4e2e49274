"""Int8 weights, and int8 activations with ranges measured beforehand on calibration rows.

Weights are signed and activations unsigned, as pairs of `QuantizeLinear` and `DequantizeLinear` that both ONNX Runtime
and OpenVINO turn into int8 kernels. Only MatMuls with a constant weight are quantized. Sums, normalizations and masks
have outliers that would make the scale too coarse (arXiv 2603.04308).

ONNX Runtime's `QDQQuantizer` is used directly, for three reasons. Optimum's `ORTQuantizer` cannot leave the outputs of
MatMuls in float: on movie reviews, the logits had a signal-to-noise ratio of 24.6 dB with them in float, and 13.7 dB
without, at the same speed. It cannot quantize fused graphs. And it cannot combine the ranges of several calls, because
`partial_fit` starts anew each time; here ranges are updated batch by batch, so that memory does not grow with the rows.
"""

from collections.abc import Collection, Mapping, Sequence
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
from deploykit.artifact.execution import Device
from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls
from deploykit.graphs.matmuls import Array
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

PRECISION = "int8"
ENGINES = ("onnxruntime", "openvino")
DEVICES: tuple[Device, ...] = ("cpu",)
SEARCHED: Mapping[str, Mapping[str, Any]] = {"latency": {}, "throughput": {}, "size": {}}
OPERATORS = ("MatMul",)
BINS = 2048  # of the histograms of activations from which percentiles are read
# Of `QDQQuantizer`: weights without a zero point, and outputs of MatMuls in float.
EXTRA_OPTIONS = {"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]}


class Options(Base):
    """Weights and activations in int8, with ranges from calibration rows."""

    calibration: Literal["minmax", "percentile"] = "minmax"
    """Range of the activations: from minimum to maximum (`minmax`), or of the middle `percentile` percent."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Percent of the activations inside the range of `calibration: percentile`."""
    rows: int = Field(default=256, ge=1)
    """Maximum number of training rows to calibrate with."""
    per_channel: bool = True
    """Uses a scale for each output column."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a statically quantized copy; see `Quantizer.quantize`.

    The facts also have the `weight_bits` and the number of calibration `rows`.

    Raises:
        DeploykitError: there are no calibration rows, or for the reasons of `Quantizer.quantize`.
    """
    if not calibration:
        raise DeploykitError("static quantization needs calibration rows, got none.")
    model = matmuls.load(graph)
    names = matmuls.choose(model, float_nodes, OPERATORS)
    activations = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in names))
    batches = _first_batches(calibration, options.rows)
    percentile = options.percentile if options.calibration == "percentile" else None
    ranges = measure_ranges(model, activations, batches, percentile)
    # The quantizer skips tensors without a type, and infers no type for the outputs of fused operators.
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in activations)
    seven_bits = hardware.saturates_int8()  # see `dynamic`
    quantizer = QDQQuantizer(
        model,
        per_channel=options.per_channel,
        reduce_range=seven_bits,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=names,
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options=EXTRA_OPTIONS,
    )
    quantizer.quantize_model()
    _restore_float_inputs(quantizer.model.model.graph, names)
    quantizer.model.topological_sort()
    onnx.save(quantizer.model.model, target)
    return {
        **matmuls.check(target, PRECISION, len(names)),
        "weight_bits": 7 if seven_bits else 8,
        "rows": sum(map(_count_rows, batches)),
    }


def _restore_float_inputs(graph: Any, names: Collection[str]) -> None:
    """Lets only the named MatMuls read quantized tensors, in place; the quantizer also lets residual sums read them.

    Every other node reads the float tensor from before the `QuantizeLinear` and `DequantizeLinear` again.
    """
    source_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    float_of = {
        node.output[0]: source_of[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in source_of
    }
    for node in graph.node:
        if node.name not in names:
            node.input[:] = [float_of.get(name, name) for name in node.input]


def measure_ranges(
    model: Any, names: Sequence[str], batches: Sequence[Batch], percentile: float | None = None
) -> dict[str, tuple[Array, Array]]:
    """Returns the minimum and the maximum of each tensor on the batches, by name.

    Args:
        model: a graph from `matmuls.load`.
        names: of the tensors.
        batches: of calibration rows.
        percentile: percent of the values inside the range, which takes a second run of the model; None: all of them.
    """
    extremes: dict[str, tuple[Array, Array]] = {}
    for arrays in matmuls.tensor_values(model, names, tqdm(batches, desc="ranges", unit="batch", disable=None)):
        for name, array in zip(names, arrays, strict=True):
            low, high = extremes.get(name, (array.min(), array.max()))
            extremes[name] = (np.minimum(low, array.min()), np.maximum(high, array.max()))
    if percentile is None:
        return extremes
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    for arrays in matmuls.tensor_values(model, names, tqdm(batches, desc="histograms", unit="batch", disable=None)):
        for name, array in zip(names, arrays, strict=True):
            low, high = map(float, extremes[name])
            counts[name] += np.histogram(array, BINS, (low, high))[0]
    return {name: middle_range(counts[name], *extremes[name], percentile) for name in names}


def middle_range(counts: Array, low: Array, high: Array, percentile: float) -> tuple[Array, Array]:
    """Returns the range that holds the middle values of a histogram, without as many at both ends.

    Args:
        counts: values in each bin, `(bins,)`; the bins have equal width.
        low: where the first bin begins.
        high: where the last bin ends.
        percentile: percent of the values inside the range, more than 50.
    """
    edges = np.linspace(low, high, len(counts) + 1, dtype=np.float32)
    outside_per_end = (1 - percentile / 100) / 2 * counts.sum()
    first = np.searchsorted(counts.cumsum(), outside_per_end, side="right")
    last = len(counts) - np.searchsorted(counts[::-1].cumsum(), outside_per_end, side="right")
    return edges[first], edges[last]


def _first_batches(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Returns as many of the first batches as have at least `rows` rows together, or all batches."""
    cumulative_rows = np.cumsum([_count_rows(batch) for batch in batches])
    return list(batches[: int(np.searchsorted(cumulative_rows, rows)) + 1])


def _count_rows(batch: Batch) -> int:
    """Returns the number of rows of a padded batch."""
    return len(next(iter(batch.values())))
