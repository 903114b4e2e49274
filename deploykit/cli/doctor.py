"""What this machine offers, what is installed, and what to install for what is missing."""

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage

from packaging.requirements import Requirement

from deploykit import hardware, methods

GIB = 2**30
SPACE = 5 * GIB  # an installation with torch, and a run
EXTRAS = {
    "cpu": "serves on the CPU",
    "gpu": "is the ONNX Runtime that knows GPUs",
    "openvino": "runs graphs in bfloat16 where the CPU has it",
    "train": "trains, prunes, exports and quantizes",
    "optimum": "quantizes by Optimum, and opens packages with it, on transformers 4.57",
    "jwt": "lets a service take tokens of an identity provider",
    "otel": "sends traces to a collector",
    "presidio": "finds names of people, to mask them",
    "redis": "counts limits of several replicas together",
    "sign": "signs packages, and checks signatures",
}
NEEDED = ("cpu", "train")  # the others are for whoever wants them, and a GPU's for whoever has one


def rows() -> list[tuple[str, str, str]]:
    """Returns what was looked at, what was found, and an advice, empty where all is well."""
    return [*_machine(), *_engines(), *_extras()]


def _machine() -> list[tuple[str, str, str]]:
    features, cores, free = hardware.cpu_features(), hardware.cpu_limit(), disk_usage(Path.cwd()).free
    fast = {"avx512_vnni", "amx_int8"} & set(features)
    return [
        ("cpu", hardware.cpu_name(), ""),
        (
            "cpu features",
            ", ".join(features) or "none",
            "" if fast else "without VNNI or AMX, int8 may be no faster: the run measures it",
        ),
        ("cores allowed", str(cores), ""),
        ("memory allowed", f"{hardware.memory_limit() / GIB:.1f} GiB", ""),
        ("free disk", f"{free / GIB:.1f} GiB", "" if free > SPACE else "a run with torch needs about 5 GiB"),
        ("gpus", ", ".join(hardware.gpus()) or "none", ""),
    ]


def _engines() -> list[tuple[str, str, str]]:
    found = []
    for name in methods.available("engine"):
        try:
            state, advice = ", ".join(f"{k} {v}" for k, v in methods.load("engine", name).versions().items()), ""
        except Exception as error:  # a broken installation is a finding
            state, advice = "not usable", str(error)
        found.append((f"engine {name}", state, advice))
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        advice = "they are one module: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        found.append(("engine onnxruntime", "installed twice", advice))
    return found


def _extras() -> list[tuple[str, str, str]]:
    found = []
    for extra, purpose in EXTRAS.items():
        missing = [name for name in _members(extra) if not _installed(name)]
        wanted = extra in NEEDED or (extra == "gpu" and hardware.gpus() and not _installed("onnxruntime"))
        state = "complete" if not missing else f"{len(missing)} packages missing: {', '.join(missing[:4])}"
        advice = f"{purpose}: pip install '.[{extra}]' where its source is" if missing and wanted else ""
        found.append((f"extra {extra}", state, advice))
    return found


def _members(extra: str) -> list[str]:
    lines = [Requirement(line) for line in requires("deploykit") or []] if find_spec("deploykit") else []
    return [line.name for line in lines if line.marker and line.marker.evaluate({"extra": extra})]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
