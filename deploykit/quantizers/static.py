"""Int8 weights, and int8 activations with ranges measured beforehand on calibration rows.

Weights are signed and activations unsigned, as pairs of `QuantizeLinear` and `DequantizeLinear` that both ONNX Runtime
and OpenVINO turn into int8 kernels. Only MatMuls with a constant are quantized; sums, normalizations and masks have
outliers that would make the scale too coarse (arXiv 2603.04308). ONNX Runtime's `QDQQuantizer` is used directly,
because Optimum's `ORTQuantizer` cannot leave the outputs of MatMuls in float (on movie reviews the logits had a signal-
to-noise ratio of 24.6 dB with them in float, and 13.7 dB without, at the same speed), cannot quantize fused graphs, and
cannot combine the ranges of several calls (`partial_fit` starts anew each time). Ranges are updated batch by batch, so
that memory does not grow with the number of rows.
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
BINS = 2048  # of the histograms
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

    Also returns the `weight_bits` and the number of calibration `rows`, and raises a DeploykitError if there are none.
    """
    if not calibration:
        raise DeploykitError("static quantization needs calibration rows, got none.")
    model = matmuls.load(graph)
    names = matmuls.choose(model, float_nodes, OPERATORS)
    sources = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in names))
    batches = _first_rows(calibration, options.rows)
    tensor_ranges = ranges(model, sources, batches, options.percentile if options.calibration == "percentile" else None)
    # the quantizer skips tensors without a type, and infers none for the outputs of fused operators
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sources)
    reduced = hardware.saturates_int8()  # 7-bit weights, see `dynamic`
    quantizer = QDQQuantizer(
        model,
        per_channel=options.per_channel,
        reduce_range=reduced,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensor_ranges),
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
        "weight_bits": 7 if reduced else 8,
        "rows": sum(map(_rows, batches)),
    }


def _restore_float_inputs(graph: Any, names: Collection[str]) -> None:
    """Lets only the named MatMuls read quantized tensors; the quantizer lets residual sums read them, too."""
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
    """Returns the minimum and maximum of tensors on the batches.

    Args:
        model: a graph from `matmuls.load`.
        names: of the tensors.
        batches: of calibration rows.
        percentile: percent of the values inside the range, which takes a second run; None: all of them.
    """
    extremes: dict[str, tuple[Array, Array]] = {}
    for arrays in matmuls.values(model, names, tqdm(batches, desc="ranges", unit="batch", disable=None)):
        for name, array in zip(names, arrays, strict=True):
            low, high = extremes.get(name, (array.min(), array.max()))
            extremes[name] = (np.minimum(low, array.min()), np.maximum(high, array.max()))
    if percentile is None:
        return extremes
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in names}
    for arrays in matmuls.values(model, names, tqdm(batches, desc="histograms", unit="batch", disable=None)):
        for name, array in zip(names, arrays, strict=True):
            low, high = map(float, extremes[name])
            counts[name] += np.histogram(array, BINS, (low, high))[0]
    return {name: middle(counts[name], *extremes[name], percentile) for name in names}


def middle(counts: Array, low: Array, high: Array, percentile: float) -> tuple[Array, Array]:
    """Returns the range with the middle `percentile` percent of the values, above 50.

    `counts` are the numbers of values in bins of equal width from `low` to `high`, `(bins,)`.
    """
    edges = np.linspace(low, high, len(counts) + 1, dtype=np.float32)
    cut = (1 - percentile / 100) / 2 * counts.sum()
    first = np.searchsorted(counts.cumsum(), cut, side="right")
    last = len(counts) - np.searchsorted(counts[::-1].cumsum(), cut, side="right")
    return edges[first], edges[last]


def _first_rows(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """Returns the first batches that together have at least so many rows, or all."""
    sizes = np.cumsum([_rows(batch) for batch in batches])
    return list(batches[: int(np.searchsorted(sizes, rows)) + 1])


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
