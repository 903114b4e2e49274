"""What this process may use: CPU features, cores and memory allowed by the cgroup, GPUs.

Thread counts come from here and never from the host's core count, so that what was measured and what
serves run under the same budget. Reads only files of the kernel: importing it costs nothing.
"""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
RELIED_ON = {
    "int8": ("avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    "bfloat16": ("avx512_bf16", "amx_bf16"),
}
EXACT_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")  # instructions that add up products of bytes in 32 bits
X86 = ("x86_64", "AMD64")
CGROUP, SELF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_features() -> tuple[str, ...]:
    """Lists those of `CPU_FEATURES` that the kernel reports."""
    flags = _cpuinfo("flags").split()
    return tuple(name for name in CPU_FEATURES if name in flags)


def relied_on(precision: str) -> tuple[str, ...]:
    """Lists the features of this CPU that a precision owes its speed to, and int8 without saturation its answers.

    AMX counts as it stands in /proc/cpuinfo. A sandbox that forbids `arch_prctl` keeps a process from using it
    all the same: the engines then take the next best instructions, with the same answers, and say nothing.

    Args:
        precision: for example `"int8"`; one that any CPU computes, such as `"float32"`, relies on nothing.
    """
    here = cpu_features()
    return tuple(name for name in RELIED_ON.get(precision, ()) if name in here)


def saturates_int8() -> bool:
    """Says whether this CPU adds up products of unsigned and signed bytes in pairs of 16 bits, which overflow.

    Engines use such an instruction (`pmaddubsw`) on x86 without VNNI. Weights of 7 bits are safe there: two products of
    255 and 64 are less than 2**15.
    """
    return platform.machine() in X86 and not set(EXACT_INT8) & set(cpu_features())


def cpu_name() -> str:
    """Returns the processor's name as the kernel gives it."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_limit(cgroup: Path = CGROUP) -> int:
    """Returns how many cores this process may use: affinity and cgroup quota, at least one.

    Args:
        cgroup: where the cgroup is mounted; version 2 (`cpu.max`) and version 1 are read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(cgroup) if (quota := _quota(group))]
    return max(1, min([cores, *quotas]))


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Returns the bytes of memory that this process may use."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory/memory.limit_in_bytes")
    found = [_read(group / name) for group in _groups(cgroup) for name in names]
    return min([host, *(int(text) for text in found if text.isdigit())])


def waited() -> float:
    """Returns the seconds in which this thread was ready while others held the cores; 0 where the kernel tells none."""
    fields = _read(Path("/proc/thread-self/schedstat")).split()
    return int(fields[1]) / 1e9 if len(fields) == 3 else 0.0


def gpus() -> tuple[str, ...]:
    """Names the NVIDIA GPUs that the driver shows; empty without one."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [line.partition(":")[2].strip() for file in found for line in _read(file).splitlines() if "Model" in line]
    return tuple(names)


def has_bf16() -> bool:
    """Says whether the CPU multiplies bfloat16 in hardware."""
    return bool(relied_on("bfloat16"))


def describe() -> dict[str, str | int | list[str]]:
    """Returns the facts that a manifest records about the machine."""
    return {
        "cpu": cpu_name(),
        "cores": cpu_limit(),
        "memory_bytes": memory_limit(),
        "cpu_features": list(cpu_features()),
        "gpus": list(gpus()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _groups(root: Path) -> Iterator[Path]:
    """Yields the root of the cgroups and those below it down to this process's own: each may set a limit."""
    yield root
    lines = _read(SELF).splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    for name in Path(own).parts:
        root = root / name
        yield root


def _quota(cgroup: Path) -> float | None:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
