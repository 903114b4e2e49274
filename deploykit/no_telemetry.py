"""Switches off the telemetry of the libraries that deploykit uses, before any of them is imported.

Environment variables are inherited by child processes; those that are set keep their values. No file is written.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

VARIABLES = {
    "BENTOML_DO_NOT_TRACK": "True",
    "DISABLE_SAFETENSORS_CONVERSION": "true",  # transformers would ask a public service to convert old checkpoints
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later would also write an id to the home directory
}
OPENVINO = "openvino_telemetry"  # sends when openvino is imported; no environment variable prevents it


def switch_off(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables that are not set, and hides OpenVINO's telemetry package, without which OpenVINO works.

    The package is not hidden if the user has answered its question for consent.
    """
    for name, value in VARIABLES.items():
        environ.setdefault(name, value)
    if not _has_answered():
        sys.modules.setdefault(OPENVINO, None)  # type: ignore[arg-type]  # importing it raises ImportError


def _has_answered() -> bool:
    """Tells whether the user has answered OpenVINO's question for consent."""
    try:
        return Path("~/intel", OPENVINO).expanduser().exists()
    except (OSError, RuntimeError):  # no home directory, or no access to it
        return False
