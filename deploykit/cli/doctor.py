"""The table of `deploykit doctor`: what this machine offers, what is installed, and what to install."""

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage

from packaging.requirements import Requirement

from deploykit import hardware, methods

GIB = 2**30
NEEDED_BYTES = 5 * GIB  # for an installation with torch, and a run
EXTRAS = {
    "cpu": "serves on the CPU",
    "gpu": "is the ONNX Runtime for GPUs",
    "images": "reads images",
    "openvino": "runs graphs in bfloat16 on CPUs that have it",
    "train": "trains, prunes, exports and quantizes",
    "optimum": "quantizes with Optimum, and lets it open packages, on transformers 4.57",
    "jwt": "lets a service accept tokens of an identity provider",
    "otel": "sends traces to a collector",
    "presidio": "masks names of people",
    "redis": "shares rate limits between replicas",
    "sign": "signs packages, and checks signatures",
}
NEEDED_EXTRAS = ("cpu", "train")  # the others are optional; `gpu` is advised if there is a GPU


def rows() -> list[tuple[str, str, str]]:
    """Returns rows of what was examined, what was found, and advice, which is empty if all is well."""
    return [*_machine(), *_engines(), *_extras()]


def _machine() -> list[tuple[str, str, str]]:
    features, free = hardware.cpu_features(), disk_usage(Path.cwd()).free
    fast = {"avx512_vnni", "amx_int8"} & set(features)
    int8 = "" if fast else "without VNNI or AMX, int8 may be no faster: the run measures it"
    return [
        ("cpu", hardware.cpu_name(), ""),
        ("cpu features", ", ".join(features) or "none", int8),
        ("cores allowed", str(hardware.cpu_limit()), ""),
        ("memory allowed", f"{hardware.memory_limit() / GIB:.1f} GiB", ""),
        (
            "free disk",
            f"{free / GIB:.1f} GiB",
            "" if free > NEEDED_BYTES else "a run with torch needs about 5 GiB",
        ),
        ("gpus", ", ".join(hardware.gpus()) or "none", ""),
    ]


def _engines() -> list[tuple[str, str, str]]:
    rows = []
    for name in methods.available("engine"):
        try:
            versions = methods.load("engine", name).versions()
            state, advice = ", ".join(f"{package} {version}" for package, version in versions.items()), ""
        except Exception as error:  # a broken installation is worth a row
            state, advice = "not usable", str(error)
        rows.append((f"engine {name}", state, advice))
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        advice = "they are one module: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        rows.append(("engine onnxruntime", "installed twice", advice))
    return rows


def _extras() -> list[tuple[str, str, str]]:
    rows = []
    for extra, purpose in EXTRAS.items():
        missing = [name for name in _members(extra) if not _installed(name)]
        useful = extra in NEEDED_EXTRAS or (extra == "gpu" and hardware.gpus() and not _installed("onnxruntime"))
        state = "complete" if not missing else f"{len(missing)} packages missing: {', '.join(missing[:4])}"
        advice = f"{purpose}: pip install '.[{extra}]' where its source is" if missing and useful else ""
        rows.append((f"extra {extra}", state, advice))
    return rows


def _members(extra: str) -> list[str]:
    lines = [Requirement(line) for line in requires("deploykit") or []] if find_spec("deploykit") else []
    return [line.name for line in lines if line.marker and line.marker.evaluate({"extra": extra})]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
