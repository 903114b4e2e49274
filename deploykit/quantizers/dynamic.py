"""Int8 weights, and activations quantized as they come, through Optimum's `ORTQuantizer`.

Weights are signed and activations unsigned: the pair for which ONNX Runtime has VNNI and AMX kernels.
Only matrix products with a constant operand are quantized: `ORTQuantizer` would also take those between
activations, which is slower and less accurate. The task's head stays in float: it costs nothing.
"""

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

from deploykit.artifact import CONFIG
from deploykit.errors import DeploykitError
from deploykit.methods import Options as Base

PRECISION = "int8"


class Options(Base):
    """How to quantize; `per_channel` gives each output column its own scale."""

    per_channel: bool = True


def quantize(graph: Path, options: Options, target: Path) -> dict[str, Any]:
    """Writes a dynamically quantized copy of a graph.

    Args:
        graph: float32; `config.json` stands beside it.
        options: see `Options`.
        target: the file to write.

    Returns:
        How many matrix products were quantized and how many stayed in float.
    """
    products, excluded = matmuls(onnx.load(graph, load_external_data=False))
    configuration = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=options.per_channel,
        operators_to_quantize=["MatMul"],
        nodes_to_exclude=excluded,
    )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        shutil.copy(graph.parent / CONFIG, folder)
        ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name).quantize(
            quantization_config=configuration, save_dir=folder
        )
        (written,) = Path(folder).glob("*.onnx")
        shutil.move(written, target)
    found = sum(node.op_type == "MatMulInteger" for node in onnx.load(target).graph.node)
    if found != products - len(excluded):
        raise DeploykitError(f"{found} products were quantized, expected {products - len(excluded)} of {products}.")
    return {"quantized": found, "float": len(excluded)}


def matmuls(model: onnx.ModelProto) -> tuple[int, list[str]]:
    """Counts the matrix products of a graph and names those that must stay in float.

    These are the products of two activations, and those of the pooler and the task's head: `Gemm` nodes, and
    nodes outside the scope (`/bert/...`) that most nodes share.
    """
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    constants = {found.name for found in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    scopes = Counter(_scope(node.name) for node in nodes)
    encoder = scopes.most_common(1)[0][0] if scopes else ""
    excluded = [node.name for node in nodes if node.input[1] not in constants or _scope(node.name) != encoder]
    # onnxruntime rewrites a Gemm as a MatMul of this name before it quantizes: poolers and heads are Gemm
    gemms = [f"{node.name}_MatMul" for node in model.graph.node if node.op_type == "Gemm"]
    return len(nodes) + len(gemms), excluded + gemms


def _scope(name: str) -> str:
    return name.strip("/").partition("/")[0]
