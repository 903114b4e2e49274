"""Switches off what libraries of ours send to their makers, before any of them is imported.

Nothing that this package starts opens a connection that its user did not ask for. Environment variables reach child
processes as well; one that is set already keeps its value. No file is written.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

VARIABLES = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DISABLE_SAFETENSORS_CONVERSION": "true",  # transformers asks a public service to convert a hub's old checkpoints
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later, which also leaves an id in the home directory
}
OPENVINO = "openvino_telemetry"  # sends on `import openvino`; no environment variable stops it


def switch_off(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables that are not set, and hides OpenVINO's telemetry package from OpenVINO.

    OpenVINO goes on without that package. A user who has answered its question for consent keeps that answer: it lies
    in `~/intel/openvino_telemetry`.

    Args:
        environ: the environment to change.
    """
    for name, value in VARIABLES.items():
        environ.setdefault(name, value)
    if not _has_answered():
        sys.modules.setdefault(OPENVINO, None)  # type: ignore[arg-type]  # importing it raises ImportError


def _has_answered() -> bool:
    """Says whether the user has answered OpenVINO's question for consent."""
    try:
        return Path("~/intel", OPENVINO).expanduser().exists()
    except (OSError, RuntimeError):  # a home directory of somebody else, or none
        return False
