"""Int8 weights, and int8 activations with ranges measured while the graph runs.

Weights are signed and activations unsigned, for which ONNX Runtime has VNNI and AMX kernels. On a CPU with neither,
weights take 7 bits, so that sums do not overflow. MatMuls are named one by one: without names, `ORTQuantizer` would
also quantize heads and MatMuls of two activations, which is slower and less accurate.

Optimum's `ORTQuantizer` is used where its package optimum-onnx is installed, which needs transformers 4.57 (the extra
`optimum`). Otherwise `quantize_dynamic` of ONNX Runtime, which it calls, is called with the same settings and writes
the same bytes. Graphs with ONNX Runtime's own operators are always quantized that way: shape inference stops at those
operators, and `ORTQuantizer` cannot pass on the type of unknown tensors (`DefaultTensorType`); it fails with "Unable to
find data type".
"""

import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from deploykit import hardware
from deploykit.artifact.execution import Device
from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

try:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from transformers import PretrainedConfig

    OPTIMUM = True
except (ImportError, RuntimeError):  # Optimum's lazy modules raise RuntimeError with another version of transformers
    OPTIMUM = False

PRECISION = "int8"
ENGINES = ("onnxruntime",)
DEVICES: tuple[Device, ...] = ("cpu",)
SEARCHED: Mapping[str, Mapping[str, Any]] = {"latency": {}, "throughput": {}, "size": {"embeddings": True}}
OPERATORS = ("MatMul", "Attention")
ORT_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators


class Options(Base):
    """Weights in int8, activations quantized while the graph runs."""

    per_channel: bool = True
    """Uses a scale for each output column."""
    embeddings: bool = False
    """Also stores the largest embedding table in int8, with one scale: smaller, not faster."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a dynamically quantized copy, and also returns the `weight_bits`; see `Quantizer.quantize`."""
    model = matmuls.load(graph)
    add_pre_process_metadata(model)  # without it, the tools warn
    names = matmuls.choose(model, float_nodes, OPERATORS)
    tables = _largest_table(model) if options.embeddings else []
    reduced = hardware.saturates_int8()
    fused = any(node.domain == ORT_DOMAIN for node in model.graph.node)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        write = _by_optimum if OPTIMUM and not fused else _by_onnxruntime
        shutil.move(write(source, [*names, *tables], options.per_channel, reduced), target)
    if _count_quantized_tables(target) != len(tables):
        raise DeploykitError("the embedding table was not quantized. Set quantize.embeddings: false.")
    return {**matmuls.check(target, PRECISION, len(names)), "weight_bits": 7 if reduced else 8}


def _by_optimum(source: Path, names: list[str], per_channel: bool, reduced: bool) -> Path:
    configuration = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=per_channel,
        nodes_to_quantize=names,
        operators_to_quantize=[*OPERATORS, "Gather"],
    )
    configuration.reduce_range = reduced
    quantizer = ORTQuantizer(source, config=PretrainedConfig())  # it saves this beside the graph
    quantizer.quantize(quantization_config=configuration, save_dir=source.parent)
    return source.with_name("model_quantized.onnx")


def _by_onnxruntime(source: Path, names: list[str], per_channel: bool, reduced: bool) -> Path:
    target = source.with_name("model_quantized.onnx")
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=[*OPERATORS, "Gather"],
        per_channel=per_channel,
        reduce_range=reduced,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=names,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )
    return target


def _largest_table(model: Any) -> list[str]:
    """Returns the name of the node that reads the largest embedding table; empty if there is none."""
    sizes = {
        tensor.name: tensor.dims[0] * tensor.dims[1]
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    nodes = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in sizes]
    return [max(nodes, key=lambda node: sizes[node.input[0]]).name] if nodes else []


def _count_quantized_tables(graph: Path) -> int:
    model = onnx.load(graph)
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type != onnx.TensorProto.FLOAT}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    return sum(name in stored and name.endswith("_quantized") for name in tables)
