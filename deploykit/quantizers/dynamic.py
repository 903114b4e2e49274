"""Int8 weights, and int8 activations with ranges measured while the graph runs.

Weights are signed and activations unsigned: for these types, ONNX Runtime has VNNI and AMX kernels. On a CPU with
neither, weights take 7 bits, so that sums do not overflow. MatMuls are named one by one: without names, `ORTQuantizer`
would also quantize heads and MatMuls of two activations, which is slower and less accurate.

Optimum's `ORTQuantizer` is used where its package optimum-onnx is installed (the extra `optimum`), which needs
transformers 4.57. It calls `quantize_dynamic` of ONNX Runtime. Elsewhere, that is called directly with the same
settings, and writes the same bytes.

Graphs with ONNX Runtime's own operators are always quantized without Optimum. Shape inference stops at those operators,
and `ORTQuantizer` cannot pass on the type of unknown tensors (`DefaultTensorType`): it fails with "Unable to find data
type".
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

    HAS_OPTIMUM = True
except (ImportError, RuntimeError):  # Optimum's lazy modules raise RuntimeError with another version of transformers
    HAS_OPTIMUM = False

PRECISION = "int8"
ENGINES = ("onnxruntime",)
DEVICES: tuple[Device, ...] = ("cpu",)
SEARCHED: Mapping[str, Mapping[str, Any]] = {"latency": {}, "throughput": {}, "size": {"embeddings": True}}
OPERATORS = ("MatMul", "Attention")
ORT_DOMAIN = "com.microsoft"  # the domain of ONNX Runtime's own operators


class Options(Base):
    """Weights in int8, activations quantized while the graph runs."""

    per_channel: bool = True
    """Uses a scale for each output column."""
    embeddings: bool = False
    """Also stores the largest embedding table in int8, with one scale: smaller, not faster."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), float_nodes: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a dynamically quantized copy; see `Quantizer.quantize`. The facts also have the `weight_bits`."""
    model = matmuls.load(graph)
    add_pre_process_metadata(model)  # otherwise the tools warn that the graph was not prepared
    names = matmuls.choose(model, float_nodes, OPERATORS)
    lookups = _largest_table_lookups(model) if options.embeddings else []
    seven_bits = hardware.saturates_int8()
    fused = any(node.domain == ORT_DOMAIN for node in model.graph.node)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        write = _quantize_by_optimum if HAS_OPTIMUM and not fused else _quantize_by_onnxruntime
        shutil.move(write(source, [*names, *lookups], options.per_channel, seven_bits), target)
    if _count_quantized_lookups(target) != len(lookups):
        raise DeploykitError("the embedding table was not quantized. Set quantize.embeddings: false.")
    return {**matmuls.check(target, PRECISION, len(names)), "weight_bits": 7 if seven_bits else 8}


def _quantize_by_optimum(source: Path, names: list[str], per_channel: bool, seven_bits: bool) -> Path:
    """Quantizes the named nodes of a graph, and returns the new file, which lies beside it."""
    configuration = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=per_channel,
        nodes_to_quantize=names,
        operators_to_quantize=[*OPERATORS, "Gather"],
    )
    configuration.reduce_range = seven_bits
    quantizer = ORTQuantizer(source, config=PretrainedConfig())  # it needs a configuration, to save it with the graph
    quantizer.quantize(quantization_config=configuration, save_dir=source.parent)
    return source.with_name("model_quantized.onnx")


def _quantize_by_onnxruntime(source: Path, names: list[str], per_channel: bool, seven_bits: bool) -> Path:
    """Quantizes the named nodes of a graph, and returns the new file, which lies beside it."""
    target = source.with_name("model_quantized.onnx")
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=[*OPERATORS, "Gather"],
        per_channel=per_channel,
        reduce_range=seven_bits,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=names,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )
    return target


def _largest_table_lookups(model: Any) -> list[str]:
    """Returns the name of the `Gather` node that reads the largest embedding table; an empty list if there is none."""
    sizes = {
        tensor.name: tensor.dims[0] * tensor.dims[1]
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    nodes = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in sizes]
    return [max(nodes, key=lambda node: sizes[node.input[0]]).name] if nodes else []


def _count_quantized_lookups(graph: Path) -> int:
    """Counts the `Gather` nodes that read a quantized table."""
    model = onnx.load(graph)
    quantized = {tensor.name for tensor in model.graph.initializer if tensor.data_type != onnx.TensorProto.FLOAT}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    return sum(name in quantized and name.endswith("_quantized") for name in tables)
