"""Int8 weights, and activations quantized as they come, through Optimum's `ORTQuantizer` where it is installed.

Weights are signed and activations unsigned: the pair for which ONNX Runtime has VNNI and AMX kernels. Where the CPU has
neither, weights take 7 bits, so that sums of products do not overflow. The products
are named one by one: left to itself `ORTQuantizer` also takes those between two activations, which is slower and
less accurate, and heads. The part of Optimum that has `ORTQuantizer`, optimum-onnx, needs transformers 4.57 (the extra
`optimum`). Without it the function of ONNX Runtime that it calls, `quantize_dynamic`, is called with the same settings
and writes the same bytes. Graphs with operators of ONNX Runtime's own always go through that function: shape inference
stops at them, and `ORTQuantizer` cannot pass on the option that says what a tensor of unknown type is
(`DefaultTensorType`); it fails with "Unable to find data type".
"""

import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from deploykit import hardware
from deploykit.errors import DeploykitError
from deploykit.graphs import matmuls
from deploykit.methods import Options as Base
from deploykit.quantizers import Batch

try:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig
    from transformers import PretrainedConfig

    OPTIMUM = True
except (ImportError, RuntimeError):  # Optimum's lazy modules raise the latter where transformers does not fit
    OPTIMUM = False

PRECISION = "int8"
ENGINES = ("onnxruntime",)
OPERATORS = ("MatMul", "Attention")
CONTRIBUTED = "com.microsoft"  # the domain of ONNX Runtime's own operators


class Options(Base):
    """Weights in int8, activations quantized while the graph runs."""

    per_channel: bool = True
    """Gives each output column a scale of its own."""
    embeddings: bool = False
    """Also stores the largest embedding table in int8, with one scale: smaller, not faster."""


def quantize(
    graph: Path, options: Options, target: Path, calibration: Sequence[Batch] = (), keep: Collection[str] = ()
) -> dict[str, Any]:
    """Writes a dynamically quantized copy of a graph.

    Args:
        graph: float32.
        options: see `Options`.
        target: the file to write.
        calibration: not needed.
        keep: names of nodes that stay in float besides those outside of the layers.

    Returns:
        How many products were quantized, how many weights stayed in float, and the `weight_bits`.

    Raises:
        DeploykitError: there is nothing to quantize, or something else was quantized than was to be.
    """
    model = matmuls.load(graph)
    add_pre_process_metadata(model)  # or the tools would warn that they infer shapes themselves
    names = matmuls.choose(model, keep, OPERATORS)
    tables = _largest_table(model) if options.embeddings else []
    reduced = hardware.saturates_int8()
    fused = any(node.domain == CONTRIBUTED for node in model.graph.node)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        write = _by_optimum if OPTIMUM and not fused else _by_onnxruntime
        written = write(source, [*names, *tables], options.per_channel, reduced)
        shutil.move(written, target)
    if _embedded(target) != len(tables):
        raise DeploykitError("the table of embeddings was not quantized. Set quantize.embeddings: false.")
    return {**matmuls.check(target, PRECISION, len(names)), "weight_bits": 7 if reduced else 8}


def _by_optimum(source: Path, names: list[str], per_channel: bool, reduced: bool) -> Path:
    configuration = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=per_channel,
        nodes_to_quantize=names,
        operators_to_quantize=[*OPERATORS, "Gather"],
    )
    configuration.reduce_range = reduced
    quantizer = ORTQuantizer(source, config=PretrainedConfig())  # it writes one beside the graph, which is not kept
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
    sizes = {
        found.name: found.dims[0] * found.dims[1]
        for found in model.graph.initializer
        if len(found.dims) == 2 and found.data_type == onnx.TensorProto.FLOAT
    }
    tables = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] in sizes]
    return [max(tables, key=lambda node: sizes[node.input[0]]).name] if tables else []


def _embedded(graph: Path) -> int:
    """Counts tables of bytes that are looked up."""
    model = onnx.load(graph)
    stored = {found.name for found in model.graph.initializer if found.data_type != onnx.TensorProto.FLOAT}
    return sum(
        node.op_type == "Gather" and node.input[0] in stored and node.input[0].endswith("_quantized")
        for node in model.graph.node
    )
