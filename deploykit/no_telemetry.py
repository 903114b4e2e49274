"""Switches off the telemetry of the libraries that deploykit uses, before any of them is imported.

Environment variables that are set already keep their values. Child processes inherit all of them. No file is written.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

VARIABLES = {  # of the environment
    "BENTOML_DO_NOT_TRACK": "True",
    "DISABLE_SAFETENSORS_CONVERSION": "true",  # transformers would ask a public service to convert old checkpoints
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later would also write an id to the home directory
}
# A Python package that sends data when openvino is imported; no environment variable prevents it.
OPENVINO_TELEMETRY = "openvino_telemetry"


def switch_off(environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets the variables that are not set, and hides OpenVINO's telemetry package; OpenVINO works without it.

    The package is not hidden if the user has answered its question for consent, because it obeys the answer.
    """
    for name, value in VARIABLES.items():
        environ.setdefault(name, value)
    if not _has_answered_consent():
        sys.modules.setdefault(OPENVINO_TELEMETRY, None)  # type: ignore[arg-type]  # importing it raises ImportError


def _has_answered_consent() -> bool:
    """Tells whether the user has answered OpenVINO's question for consent, by the folder that the answer leaves."""
    try:
        return Path("~/intel", OPENVINO_TELEMETRY).expanduser().exists()
    except (OSError, RuntimeError):  # no home directory, or no access to it
        return False
