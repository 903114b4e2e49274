import json

import pytest

from deploykit import hardware


@pytest.fixture
def cgroup(tmp_path):
    def write(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content + "\n")
        return tmp_path

    return write


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8), ("9900000 100000", 8)],
)
def test_cores_of_cgroup_version_2(cgroup, quota, cores):
    assert hardware.cpu_limit(cgroup(cpu_DOT_max=quota)) == cores


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8), ("0", 8)])
def test_cores_of_cgroup_version_1(cgroup, quota, cores):
    folder = cgroup(cpu__cpu_DOT_cfs_quota_us=quota, cpu__cpu_DOT_cfs_period_us="100000")
    assert hardware.cpu_limit(folder) == cores


@pytest.mark.usefixtures("eight_cores")
def test_without_a_cgroup_the_affinity_counts(tmp_path):
    assert hardware.cpu_limit(tmp_path) == 8


@pytest.mark.parametrize("name", ["memory_DOT_max", "memory__memory_DOT_limit_in_bytes"])
def test_memory_of_both_versions(cgroup, name):
    assert hardware.memory_limit(cgroup(**{name: "1073741824"})) == 2**30


@pytest.mark.parametrize("text", ["max", "9223372036854771712"])
def test_memory_without_a_limit_is_that_of_the_host(cgroup, tmp_path, text):
    assert hardware.memory_limit(cgroup(memory_DOT_max=text)) == hardware.memory_limit(tmp_path / "nothing") > 2**27


def test_features_are_those_that_the_kernel_lists(monkeypatch):
    text = (
        "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t\t: fpu avx2 avx512_vnni amx_bf16 avx_vnni avx512fake\n"
    )
    monkeypatch.setattr(hardware, "_read", lambda path: text if path.name == "cpuinfo" else "")
    assert hardware.cpu_features() == ("avx2", "avx_vnni", "avx512_vnni", "amx_bf16")
    assert hardware.cpu_name() == "Some CPU: 3 GHz"
    assert hardware.has_bf16()


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("int8", ("avx512_vnni", "amx_int8")), ("bfloat16", ("amx_bf16",)), ("float32", ()), ("another", ())],
)
def test_a_precision_relies_on_those_of_its_features_that_are_here(monkeypatch, precision, expected):
    here = ("avx2", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16")
    monkeypatch.setattr(hardware, "cpu_features", lambda: here)
    assert hardware.precision_features(precision) == expected
    monkeypatch.setattr(hardware, "cpu_features", lambda: ("avx2",))
    assert hardware.precision_features(precision) == ()


def test_all_that_a_precision_may_rely_on_is_looked_for():
    assert {name for names in hardware.PRECISION_FEATURES.values() for name in names} <= set(hardware.CPU_FEATURES)


def test_a_machine_without_cpuinfo_has_no_features(monkeypatch):
    monkeypatch.setattr(hardware, "_read", lambda _: "")
    assert hardware.cpu_features() == ()
    assert hardware.cpu_name() != ""
    assert not hardware.has_bf16()


def test_the_description_can_be_written_as_json():
    found = hardware.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == hardware.cpu_limit() >= 1


def test_the_limit_of_the_own_group_and_of_those_above_it_holds(tmp_path, monkeypatch):
    inner = tmp_path / "system.slice" / "train.service"
    inner.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/system.slice/train.service\n")
    monkeypatch.setattr(hardware, "OWN_CGROUP_FILE", tmp_path / "self")
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(16)))
    assert hardware.cpu_limit(tmp_path) == 16
    (inner.parent / "cpu.max").write_text("600000 100000")
    assert hardware.cpu_limit(tmp_path) == 6
    (inner / "cpu.max").write_text("250000 100000")
    (inner / "memory.max").write_text("4096")
    assert (hardware.cpu_limit(tmp_path), hardware.memory_limit(tmp_path)) == (3, 4096)


def test_waiting_for_a_core_is_read_from_the_kernel_and_never_falls(monkeypatch):
    before = hardware.thread_wait_s()
    assert before >= 0
    assert hardware.thread_wait_s() >= before
    monkeypatch.setattr(hardware, "_read", lambda _: "104005 2237010000 1")
    assert hardware.thread_wait_s() == pytest.approx(2.23701)
    monkeypatch.setattr(hardware, "_read", lambda _: "")
    assert hardware.thread_wait_s() == 0.0


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512f"), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), False),
        ("aarch64", (), False),
    ],
)
def test_int8_saturates_on_x86_without_vnni(machine, features, expected, monkeypatch):
    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    assert hardware.saturates_int8() is expected
