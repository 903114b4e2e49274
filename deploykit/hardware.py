"""What this process may use: CPU features, cores and memory within the limits of the cgroup, GPUs.

All thread counts come from here, not from the host's number of cores, so that measurements and services run under the
same limits. Only files of the kernel are read.
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
EXACT_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")  # features that sum the products of bytes in 32 bits
X86 = ("x86_64", "AMD64")
CGROUP, SELF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_features() -> tuple[str, ...]:
    """Lists the `CPU_FEATURES` that the kernel reports."""
    flags = _cpuinfo("flags").split()
    return tuple(name for name in CPU_FEATURES if name in flags)


def relied_on(precision: str) -> tuple[str, ...]:
    """Lists the features of this CPU on which the speed of a precision depends, and the exactness of int8.

    AMX is listed if /proc/cpuinfo has it, although a sandbox that forbids `arch_prctl` prevents its use. The engines
    then use other instructions, with the same results.

    Args:
        precision: for example `"int8"`; one that every CPU computes, such as `"float32"`, depends on no feature.
    """
    features = cpu_features()
    return tuple(name for name in RELIED_ON.get(precision, ()) if name in features)


def saturates_int8() -> bool:
    """Tells whether int8 products may overflow on this CPU, because pairs of them are summed in 16 bits.

    Engines use such an instruction (`pmaddubsw`) on x86 without VNNI. Weights of 7 bits are safe there: two products of
    255 and 64 are less than 2**15.
    """
    return platform.machine() in X86 and not set(EXACT_INT8) & set(cpu_features())


def cpu_name() -> str:
    """Returns the processor's name as reported by the kernel."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_limit(cgroup: Path = CGROUP) -> int:
    """Returns the number of cores that CPU affinity and cgroup quota (version 1 or 2) allow, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(cgroup) if (quota := _quota(group))]
    return max(1, min([cores, *quotas]))


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Returns the bytes of memory that this process may use."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory/memory.limit_in_bytes")
    limits = [_read(group / name) for group in _groups(cgroup) for name in names]
    return min([host, *(int(limit) for limit in limits if limit.isdigit())])


def waited() -> float:
    """Returns the seconds that this thread has waited for a core; 0 if the kernel does not report them."""
    fields = _read(Path("/proc/thread-self/schedstat")).split()
    return int(fields[1]) / 1e9 if len(fields) == 3 else 0.0


def gpus() -> tuple[str, ...]:
    """Names the NVIDIA GPUs that the driver reports."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in _read(file).splitlines() if "Model" in line]
    return tuple(line.partition(":")[2].strip() for line in lines)


def has_bf16() -> bool:
    """Tells whether the CPU multiplies bfloat16 in hardware."""
    return bool(relied_on("bfloat16"))


def describe() -> dict[str, str | int | list[str]]:
    """Describes the machine for a manifest."""
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
    """Yields the cgroups from the root to this process's own, each of which may set a limit."""
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
