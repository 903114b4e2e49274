"""The hardware that this process may use: CPU features, cores and memory within the limits of its cgroup, and GPUs.

All thread counts come from here and not from the host's number of cores, so that measurements and services run under
the same limits. Only files of the kernel are read.
"""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

# The CPU features that deploykit looks for, by their names in /proc/cpuinfo.
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
# By precision, the features that make it fast; see `precision_features`.
PRECISION_FEATURES = {
    "int8": ("avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    "bfloat16": ("avx512_bf16", "amx_bf16"),
}
EXACT_INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8")  # sum the products of bytes in 32 bits, not in 16
X86_MACHINES = ("x86_64", "AMD64")  # values of `platform.machine`
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP_FILE = Path("/proc/self/cgroup")  # names the cgroup of this process


def cpu_features() -> tuple[str, ...]:
    """Lists the `CPU_FEATURES` that the kernel reports."""
    flags = _cpuinfo("flags").split()
    return tuple(name for name in CPU_FEATURES if name in flags)


def precision_features(precision: str) -> tuple[str, ...]:
    """Lists the features of this CPU that make a precision fast, and int8 exact.

    AMX is listed if /proc/cpuinfo has it, even in a sandbox that prevents its use by forbidding `arch_prctl`. Engines
    use other instructions there, with the same results.

    Args:
        precision: for example `"int8"`. One that every CPU computes, such as `"float32"`, has no such features.
    """
    features = cpu_features()
    return tuple(name for name in PRECISION_FEATURES.get(precision, ()) if name in features)


def saturates_int8() -> bool:
    """Tells whether sums of int8 products may overflow on this CPU.

    On x86 without VNNI, engines use an instruction (`pmaddubsw`) that sums pairs of products in 16 bits. Weights of 7
    bits are safe there, because two products of 255 and 64 are less than 2**15.
    """
    return platform.machine() in X86_MACHINES and not set(EXACT_INT8_FEATURES) & set(cpu_features())


def cpu_name() -> str:
    """Returns the processor's name, as far as kernel or platform report one."""
    return _cpuinfo("model name") or platform.processor() or "unknown"


def cpu_limit(cgroup: Path = CGROUP_ROOT) -> int:
    """Returns the number of cores that CPU affinity and the quotas of cgroups (version 1 or 2) allow; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(cgroup) if (quota := _quota(group))]
    return max(1, min([cores, *quotas]))


def memory_limit(cgroup: Path = CGROUP_ROOT) -> int:
    """Returns the bytes of memory that this process may use: those of the host, or less if a cgroup limits them."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory/memory.limit_in_bytes")
    limits = [_read(group / name) for group in _groups(cgroup) for name in names]
    return min([host, *(int(limit) for limit in limits if limit.isdigit())])


def thread_wait_s() -> float:
    """Returns the seconds that this thread has waited for a core since it began; 0 if the kernel does not say."""
    fields = _read(Path("/proc/thread-self/schedstat")).split()
    return int(fields[1]) / 1e9 if len(fields) == 3 else 0.0


def gpus() -> tuple[str, ...]:
    """Names the NVIDIA GPUs that the driver reports."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in _read(file).splitlines() if "Model" in line]
    return tuple(line.partition(":")[2].strip() for line in lines)


def has_bf16() -> bool:
    """Tells whether the CPU multiplies bfloat16 in hardware."""
    return bool(precision_features("bfloat16"))


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
    """Returns the first value of a key in /proc/cpuinfo; empty if there is none."""
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _groups(root: Path) -> Iterator[Path]:
    """Yields the directories of the cgroups from the root to this process's own; each of them may set limits."""
    yield root
    lines = _read(OWN_CGROUP_FILE).splitlines()
    own_path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")  # version 2
    for name in Path(own_path).parts:
        root = root / name
        yield root


def _quota(cgroup: Path) -> float | None:
    """Returns how many cores a cgroup may use on average; None if it sets no limit."""
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not quota:  # version 1
        quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) > 0 else None


def _read(path: Path) -> str:
    """Returns the content of a file of the kernel; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
