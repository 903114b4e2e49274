"""Signatures: what does not hold is refused first, with real keys and the library's own tool."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from forging import BREAKS, compile_code, flip, forge, write_pair

from deploykit.artifact import GRAPH, MANIFEST, SIGNATURE, STORE_RECORD, Artifact, signing
from deploykit.errors import ArtifactError, InputError, MissingExtraError
from deploykit.inference.golden import verify


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("keys") / "own", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def made(tiny_artifact, tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("signed") / "artifact"
    tiny_artifact(folder)
    signing.sign(folder, keys[0])
    return folder


@pytest.fixture
def signed(made, tmp_path):
    """A signed artifact of one's own."""
    return Path(shutil.copytree(made, tmp_path / "signed"))


def tool(*argv):
    return subprocess.run([sys.executable, "-m", "model_signing", *map(str, argv)], capture_output=True, text=True)


def test_a_signed_artifact_holds_wherever_it_lies(signed, keys):
    assert verify(signed, keys[1]).path == signed
    (signed / STORE_RECORD).write_text("name: tiny\n")  # as BentoML's model store does
    verify(signed, keys[1])


def test_a_directory_may_be_named_by_a_link(signed, keys, tmp_path):
    (tmp_path / "link").symlink_to(signed)  # as a run does with its newest package
    (signed / SIGNATURE).unlink()
    signing.sign(tmp_path / "link", keys[0])
    verify(tmp_path / "link", keys[1])
    verify(signed, keys[1])


def test_a_file_may_be_no_link(signed, keys, tmp_path):
    elsewhere = shutil.move(signed / GRAPH, tmp_path / "elsewhere")
    (signed / GRAPH).symlink_to(elsewhere)
    for act in (lambda: verify(signed, keys[1]), lambda: signing.sign(signed, keys[0])):
        with pytest.raises(ArtifactError, match="it is a symlink"):
            act()


def test_without_a_key_no_signature_is_asked_for(signed):
    (signed / SIGNATURE).unlink()
    verify(signed)


@pytest.mark.parametrize("how", BREAKS)
def test_what_is_not_as_it_was_signed(signed, keys, how):
    change, message = BREAKS[how]
    change(signed, keys)
    with pytest.raises(ArtifactError, match=message):
        verify(signed, keys[1])


def test_only_the_file_that_a_model_store_adds_goes_without(signed, keys):
    (signed / STORE_RECORD).mkdir()
    (signed / STORE_RECORD / "more.py").write_text("x")
    with pytest.raises(ArtifactError, match=r"model\.yaml/more\.py"):
        verify(signed)
    with pytest.raises(ArtifactError, match="not as the owner"):
        signing.check(Artifact.load(signed), keys[1])


def test_a_damaged_artifact_is_not_signed(signed, keys):
    flip(signed / GRAPH)
    with pytest.raises(ArtifactError, match="was changed"):
        signing.sign(signed, keys[0])


def test_code_that_was_compiled_is_not_signed(signed, keys):
    compile_code(signed, keys)
    with pytest.raises(ArtifactError, match="PYTHONDONTWRITEBYTECODE=1"):
        signing.sign(signed, keys[0])


@pytest.mark.parametrize("kind", ["none", "text", "rsa", "curve", "locked", "wrong half"])
def test_keys_that_cannot_be_used(signed, tmp_path, keys, kind):
    made = {
        "rsa": lambda: write_pair(tmp_path / "k", rsa.generate_private_key(65537, 2048)),
        "curve": lambda: write_pair(tmp_path / "k", ec.generate_private_key(ec.SECP256K1())),
        "locked": lambda: write_pair(tmp_path / "k", ec.generate_private_key(ec.SECP256R1()), b"secret"),
        "wrong half": lambda: keys[::-1],
        "none": lambda: (tmp_path / "none.pem",) * 2,
        "text": lambda: (signed / MANIFEST,) * 2,
    }
    private, public = made[kind]()
    with pytest.raises(InputError, match=r"private key .* cannot be used \(.+\).*P-256"):
        signing.sign(signed, private)
    if kind != "locked":  # its public half is in the open
        with pytest.raises(InputError, match=r"public key .* cannot be used"):
            signing.check(Artifact.load(signed), public)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_and_a_locked_key(signed, tmp_path, curve):
    private, public = write_pair(tmp_path / "k", ec.generate_private_key(curve()), b"secret")
    signing.sign(signed, private, "secret")
    verify(signed, public)


def test_the_tool_of_the_library_agrees(signed, keys):
    argv = ("verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", keys[1])
    assert "succeeded" in tool(*argv).stdout
    forge(signed, keys)
    assert tool(*argv).returncode != 0


def test_what_the_tool_signs_is_taken(signed, keys):
    (signed / SIGNATURE).unlink()
    done = tool("sign", "key", signed, "--signature", signed / SIGNATURE, "--private_key", keys[0])
    assert done.returncode == 0, done.stderr
    verify(signed, keys[1])


def test_without_the_library_nothing_holds(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for act in (lambda: verify(signed, keys[1]), lambda: signing.sign(signed, keys[0])):
        with pytest.raises(MissingExtraError, match=r"pip install '\.\[sign\]'"):
            act()
