"""Makes the table of `deploykit doctor`: what this machine offers, what is installed, and what to install."""

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage

from packaging.requirements import Requirement

from deploykit import hardware, methods

GIB = 2**30  # bytes
MIN_FREE_DISK_BYTES = 5 * GIB  # for an installation with torch, and a run
PURPOSE_OF_EXTRA = {
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
REQUIRED_EXTRAS = ("cpu", "train")  # the others are optional; `gpu` is advised if there is a GPU


def rows() -> list[tuple[str, str, str]]:
    """Returns rows of three cells: what was examined, what was found, and advice, which is empty if all is well."""
    return [*_machine_rows(), *_engine_rows(), *_extra_rows()]


def _machine_rows() -> list[tuple[str, str, str]]:
    features, free_bytes = hardware.cpu_features(), disk_usage(Path.cwd()).free
    has_fast_int8 = {"avx512_vnni", "amx_int8"} & set(features)
    int8_advice = "" if has_fast_int8 else "without VNNI or AMX, int8 may be no faster: the run measures it"
    return [
        ("cpu", hardware.cpu_name(), ""),
        ("cpu features", ", ".join(features) or "none", int8_advice),
        ("cores allowed", str(hardware.cpu_limit()), ""),
        ("memory allowed", f"{hardware.memory_limit() / GIB:.1f} GiB", ""),
        (
            "free disk",
            f"{free_bytes / GIB:.1f} GiB",
            "" if free_bytes > MIN_FREE_DISK_BYTES else "a run with torch needs about 5 GiB",
        ),
        ("gpus", ", ".join(hardware.gpus()) or "none", ""),
    ]


def _engine_rows() -> list[tuple[str, str, str]]:
    rows = []
    for name in methods.available("engine"):
        try:
            versions = methods.load("engine", name).versions()
            state, advice = ", ".join(f"{package} {version}" for package, version in versions.items()), ""
        except Exception as error:  # a broken installation is shown, not raised
            state, advice = "not usable", str(error)
        rows.append((f"engine {name}", state, advice))
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        advice = "they are one module: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        rows.append(("engine onnxruntime", "installed twice", advice))
    return rows


def _extra_rows() -> list[tuple[str, str, str]]:
    rows = []
    for extra, purpose in PURPOSE_OF_EXTRA.items():
        missing = [name for name in _packages_of_extra(extra) if not _is_installed(name)]
        needs_gpu_extra = hardware.gpus() and not _is_installed("onnxruntime")  # the two exclude each other
        is_advised = extra in REQUIRED_EXTRAS or (extra == "gpu" and needs_gpu_extra)
        state = "complete" if not missing else f"{len(missing)} packages missing: {', '.join(missing[:4])}"
        advice = f"{purpose}: pip install '.[{extra}]' where its source is" if missing and is_advised else ""
        rows.append((f"extra {extra}", state, advice))
    return rows


def _packages_of_extra(extra: str) -> list[str]:
    """Lists the packages that an extra of deploykit requires."""
    requirements = [Requirement(line) for line in requires("deploykit") or []] if find_spec("deploykit") else []
    return [each.name for each in requirements if each.marker and each.marker.evaluate({"extra": extra})]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
