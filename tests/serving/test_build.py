"""`bentoml build` in a package's folder, and from a repository with the package in BentoML's model store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import deploykit
from deploykit.artifact import Artifact
from deploykit.serving import launch

ROOT = Path(deploykit.__file__).parent.parent
REPOSITORY_BENTOFILE = (ROOT / "bentofile.yaml").read_text().replace("movie-reviews:latest", "tiny:latest")
PUT_INTO_STORE = """
import shutil, sys
import bentoml

with bentoml.models.create("tiny:v1") as model:
    shutil.copytree(sys.argv[1], model.path, dirs_exist_ok=True)
"""


def bentoml(*argv, cwd, home, **changes):
    env = {**os.environ, "BENTOML_HOME": str(home), **changes}
    done = subprocess.run([sys.executable, *argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder, home, **changes):
    (tag,) = bentoml("-m", "bentoml", "build", "-o", "tag", cwd=folder, home=home, **changes).strip().splitlines()[-1:]
    return home / "bentos" / Path(tag.removeprefix("__tag__:").replace(":", "/"))


def serves(bento, tmp_path, port):
    """Serves a Bento's directory in a home of its own, with access control off, until it is ready."""
    env = {**os.environ, "BENTOML_HOME": str(tmp_path / "other"), "DEPLOYKIT_AUTH": "off"}
    argv = [sys.executable, "-m", "bentoml", "serve", str(bento), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        launch.wait_ready(f"http://127.0.0.1:{port}", process, log)
    finally:
        launch.stop(process)
    return True


def test_a_package_builds_and_what_is_built_still_verifies(copied, tmp_path):
    bento = build(copied, tmp_path / "home")
    Artifact.load(bento / "src").verify()
    description = yaml.safe_load((bento / "apis" / "openapi.yaml").read_text())
    assert "/v1/predict" in description["paths"]
    assert (bento / "src/deploykit/serving/api/ui/index.html").is_file()
    assert serves(bento, tmp_path, launch.free_port())


def test_building_needs_no_keys_and_no_store_says_what_is_missing(tmp_path, package):
    folder = tmp_path / "repository"
    shutil.copytree(Path(deploykit.__file__).parent, folder / "deploykit", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bentofile.yaml").write_text(REPOSITORY_BENTOFILE)
    (folder / "requirements.txt").write_text("onnxruntime\n")
    home = tmp_path / "home"
    with pytest.raises(AssertionError, match="Run the recipe first"):
        build(folder, home)

    bentoml("-c", PUT_INTO_STORE, str(package), cwd=tmp_path, home=home)
    bento = build(folder, home)
    assert (bento / "src/deploykit/serving/api/ui/index.html").is_file()
    (model,) = yaml.safe_load((bento / "bento.yaml").read_text())["models"]
    assert (model["tag"], model["alias"]) == ("tiny:v1", "package")

    export = "import bentoml, sys; bentoml.export_bento(sys.argv[1], sys.argv[2], output_format='folder')"
    bentoml("-c", export, f"deploykit:{bento.name}", str(tmp_path / "exported"), cwd=tmp_path, home=home)
    assert (
        json.loads((tmp_path / "exported" / "models" / "tiny" / "v1" / "manifest.json").read_text())["name"] == "tiny"
    )
    assert serves(tmp_path / "exported", tmp_path, launch.free_port())
