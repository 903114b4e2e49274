"""A service that must be signed: none starts that is not, wherever the package comes from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import bentoml
import pytest
from asgi import BODY, PREDICT, assert_problem
from cryptography.hazmat.primitives.asymmetric import ec
from forging import BREAKS, write_pair
from test_build import build

from deploykit.artifact import SIGNATURE, Artifact, signing
from deploykit.errors import ArtifactError, InputError, MissingExtraError
from deploykit.serving import launch, settings
from deploykit.stages import bundle


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("keys") / "own", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def made(package, tmp_path_factory, pair):
    folder = Path(shutil.copytree(package, tmp_path_factory.mktemp("signed") / "package"))
    signing.sign(folder, pair[0])
    return folder


@pytest.fixture
def signed(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "signed"))


@pytest.mark.parametrize("how", BREAKS)
def test_what_is_not_as_it_was_signed_is_not_served(signed, pair, how, serve, monkeypatch, key_file, alice):
    change, message = BREAKS[how]
    change(signed, pair)
    monkeypatch.setenv("DEPLOYKIT_SIGNED_BY", str(pair[1]))
    with pytest.raises(ArtifactError, match=message):  # before a process is started
        launch.plan(signed, keys=key_file)
    client = serve(signed)  # and in one that was started by other means
    with pytest.raises(ArtifactError, match=message):
        raise ArtifactError(client._app._runtime.fault)
    assert client.get("/readyz").status == 503
    assert_problem(client.post(PREDICT, json_body=BODY), 503, "not ready")


def test_what_is_signed_is_served(made, pair, key_file, alice, tmp_path):
    around = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), "DEPLOYKIT_SIGNED_BY": str(pair[1])}
    for _ in range(2):  # the first start leaves nothing that the second would not take
        with launch.running_service(made, key_file, environ=around):
            pass
    assert not list(made.rglob("__pycache__"))


def test_a_signature_that_nobody_asks_for_is_no_hindrance(serve, signed):
    (signed / SIGNATURE).write_text("{}")
    assert serve(signed).post(PREDICT, json_body=BODY).status == 200


def test_no_service_starts_where_signatures_cannot_be_checked(made, pair, key_file, alice, tmp_path, monkeypatch):
    def starts(path):
        monkeypatch.setenv("DEPLOYKIT_SIGNED_BY", path)
        launch.plan(made, keys=key_file)

    for path, message in {
        "": "got ''",
        " ": "got ''",
        str(tmp_path / "none"): "must be the file of a public key",
    }.items():
        with pytest.raises(InputError, match=message):
            starts(path)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[sign\]'"):
        starts(str(pair[1]))
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[sign\]'"):
        signing.require_key(settings.load_settings(made)[0].signed_by)


def test_bentoml_does_not_serve_without_the_library(made, pair, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.modules['model_signing'] = None\n")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    changes = {"BENTOML_HOME": str(tmp_path / "home"), "DEPLOYKIT_AUTH": "off", "DEPLOYKIT_SIGNED_BY": str(pair[1])}
    env = {**os.environ, **changes, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "bentoml", "serve", str(made), "--port", str(launch.free_port())]
    ended = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "pip install '.[sign]'" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_bento_carries_the_signature(signed, pair, tmp_path):
    bento = build(signed, tmp_path / "home", PYTHONDONTWRITEBYTECODE="1")
    signing.check(Artifact.load(bento / "src"), pair[1])


def test_what_the_model_store_holds_is_signed_with_the_package(signed, pair):
    (signed / SIGNATURE).unlink()
    tag = bundle.add_to_store(Artifact.load(signed))
    stored = Artifact.load(bentoml.models.get(tag).path)
    with pytest.raises(ArtifactError, match="not signed"):
        signing.check(stored, pair[1])
    signing.sign(signed, pair[0])
    signing.check(stored, pair[1])
