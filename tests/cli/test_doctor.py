from collections import namedtuple
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import onnxruntime
import pytest

from deploykit import hardware, methods
from deploykit.cli import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def look():
    """`look() -> {what: (state, advice)}`."""
    return lambda: {what: (state, advice) for what, state, advice in doctor.rows()}


@pytest.fixture
def without(monkeypatch):
    """`without(name)`: as if a distribution were not installed."""
    real = doctor.version

    def hide(*names):
        def version(name):
            if name in names:
                raise PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(doctor, "version", version)

    return hide


@pytest.mark.parametrize(("extra", "name"), [("train", "torch"), ("train", "optimum"), ("cpu", "onnxruntime")])
def test_a_missing_package_is_named_with_the_command_that_adds_it(extra, name, look, without):
    without(name)
    state, advice = look()[f"extra {extra}"]
    assert state == f"1 packages missing: {name}"
    assert advice == f"{doctor.PURPOSE_OF_EXTRA[extra]}: pip install '.[{extra}]' where its source is"


def test_an_engine_that_cannot_be_loaded_is_a_finding_and_no_crash(look, monkeypatch):
    load = methods.load

    def broken(kind, name):
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return load(kind, name)

    monkeypatch.setattr(methods, "load", broken)
    found = look()
    assert found["engine torch"] == ("not usable", "libtorch.so: cannot open shared object file")
    assert found["engine onnxruntime"][1] == ""


def test_both_packages_of_onnxruntime_at_once_are_told_apart(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    assert ("engine onnxruntime", "installed twice") in [row[:2] for row in doctor.rows()]
    advice = [row[2] for row in doctor.rows() if row[1] == "installed twice"]
    assert advice == ["they are one module: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"]


def test_little_space_is_told(look, monkeypatch):
    monkeypatch.setattr(doctor, "disk_usage", lambda _: Usage(1, 1, 2**30))
    assert look()["free disk"] == ("1.0 GiB", "a run with torch needs about 5 GiB")


@pytest.mark.parametrize(
    ("features", "state", "slow"),
    [((), "none", True), (("avx2",), "avx2", True), (("avx2", "avx512_vnni"), "avx2, avx512_vnni", False)],
)
def test_a_processor_without_int8_instructions_is_told(features, state, slow, look, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    found = look()["cpu features"]
    assert found[0] == state
    assert bool(found[1]) == slow


def test_a_graphics_card_asks_for_its_extra(look, without, monkeypatch):
    without("onnxruntime-gpu", "onnxruntime")
    monkeypatch.setattr(hardware, "gpus", lambda: ())
    assert look()["gpus"] == ("none", "")
    assert look()["extra gpu"][1] == ""
    monkeypatch.setattr(hardware, "gpus", lambda: ("a card",))
    assert look()["gpus"] == ("a card", "")
    assert look()["extra gpu"][1] == "is the ONNX Runtime for GPUs: pip install '.[gpu]' where its source is"


def test_what_may_be_used_is_what_the_cgroup_allows(look, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_limit", lambda: 3)
    monkeypatch.setattr(hardware, "memory_limit", lambda: 3 * 2**29)
    found = look()
    assert (found["cores allowed"], found["memory allowed"]) == (("3", ""), ("1.5 GiB", ""))


def test_where_all_is_well_there_is_no_advice(look):
    found = look()
    assert {f"engine {name}" for name in methods.available("engine")} <= set(found)
    assert {f"extra {name}" for name in doctor.PURPOSE_OF_EXTRA} <= set(found)
    assert found["engine onnxruntime"] == (f"onnxruntime {onnxruntime.__version__}", "")
    assert found["extra train"] == ("complete", "")
    assert all(isinstance(text, str) and text for what, (state, _) in found.items() for text in (what, state))


def test_every_extra_of_a_method_is_known():
    every = [(kind, name) for kind in methods.METHOD_FOLDERS for name in methods.available(kind)]
    assert {methods.required_extra(*method) for method in every} <= set(doctor.PURPOSE_OF_EXTRA)
    assert Path(doctor.__file__).is_file()


def test_every_extra_of_the_project_is_looked_at(look):
    extras = set(metadata("deploykit").get_all("Provides-Extra")) - {"dev"}
    assert {f"extra {extra}" for extra in extras} == {what for what in look() if what.startswith("extra ")}


def test_what_is_there_for_whoever_wants_it_is_no_advice(look, without):
    without("limits")
    assert look()["extra redis"] == ("1 packages missing: limits", "")
