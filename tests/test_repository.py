"""The files beside the package say the same as the package."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from deploykit.stages import bundle

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_serving_requirements_are_those_that_packages_carry():
    found = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert found == bundle.pinned_requirements(bundle.SERVING_PACKAGES)


def test_serving_requirements_are_among_the_tested_versions():
    tested = {canonical(name): version for name, version in pins("constraints.txt").items()}
    assert pins("requirements.txt").items() <= tested.items()


def test_every_dependency_has_a_tested_version():
    lines = [*PROJECT["dependencies"], *(line for extra in ("cpu", "train", "dev") for line in EXTRAS[extra])]
    names = {canonical(re.split(r"[<>=!~\[ ]", line)[0]) for line in lines}
    assert names <= {canonical(name) for name in pins("constraints.txt")}


EXTRAS = PROJECT["optional-dependencies"]


def test_only_one_onnxruntime_in_each_extra():
    assert {name for name, lines in EXTRAS.items() if any("onnxruntime" in line for line in lines)} == {"cpu", "gpu"}


def test_bentofile_takes_what_packages_take():
    content = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert sorted(content["include"]) == sorted(f"/deploykit/{pattern}" for pattern in bundle.SERVED_PATTERNS)
    assert sorted(content["exclude"]) == sorted(f"/deploykit/{pattern}" for pattern in bundle.UNSERVED_FILES)


def test_shipped_recipes_are_valid(tmp_path):
    from deploykit import recipe

    shipped = sorted((ROOT / "deploykit/recipe/shipped").glob("*.yaml"))
    assert shipped
    assert [recipe.load(path).name for path in shipped] == [path.stem for path in shipped]


def test_wheel_and_source_distribution_are_reproducible_and_complete(tmp_path):
    builds = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        builds.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert builds[0] == builds[1]
    (wheel,) = (tmp_path / "first").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {file for file in (ROOT / "deploykit").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file.relative_to(ROOT).as_posix() for file in package} <= inside
