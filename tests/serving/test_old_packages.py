"""Packages of formats past: each is checked, served and chosen for again by this version.

`tests/fixtures/format-N/package.tar.xz` are packages of a BERT of two layers, with int8 and float graphs. That of
format 3 has the option `serve.max_windows: 4`, which is one of the task now.
"""

import json
import tarfile
from pathlib import Path

import pytest
from test_launch import ask, environ

from deploykit.artifact import FORMAT_VERSION, LIBRARY, Artifact
from deploykit.artifact.files import OLDEST_FORMAT_VERSION
from deploykit.inference import golden
from deploykit.quantizers import auto
from deploykit.serving import launch
from deploykit.stages import retuning

FIXTURES = Path(__file__).parent.parent / "fixtures"
PAST = sorted(folder.name for folder in FIXTURES.glob("format-*"))
TEXTS = {"texts": ["the film is great", "this story was so boring"]}


@pytest.fixture(params=PAST)
def old(request, tmp_path):
    """The directory of a package, as the version of its time wrote it."""
    with tarfile.open(FIXTURES / request.param / "package.tar.xz") as archive:
        archive.extractall(tmp_path / "package", filter="data")
    content = json.loads((tmp_path / "package" / "manifest.json").read_text())
    assert request.param == f"format-{content['format_version']}"
    return tmp_path / "package"


def labels(answer):
    status, text = answer
    assert status == 200
    return [prediction["label"] for prediction in json.loads(text)["predictions"]]


def test_there_are_past_formats():
    assert [f"format-{version}" for version in range(OLDEST_FORMAT_VERSION, FORMAT_VERSION)] == PAST


def test_it_is_as_it_was_made_and_answers_as_it_did(old):
    found = golden.verify(old)
    assert found.manifest.weights_precision == "int8"


def test_it_serves_in_this_version(old, serve, request):
    client = serve(old)
    answer = client.post("/v1/predict", json_body=TEXTS)
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == ["positive", "negative"]
    windows = {"format-2": 16, "format-3": 4}[request.node.callspec.params["old"]]
    (long,) = client.post("/v1/predict", json_body={"texts": ["great " * 1000]}).json()["predictions"]
    assert (long["windows"], long["truncated"]) == (windows, True)
    assert client.get("/v1/model").json()["max_windows"] == windows


def test_its_own_copy_of_the_library_serves_it(old, key_file, alice, tmp_path):
    with launch.running_service(old, key_file, environ=environ(tmp_path, PYTHONPATH=str(old))) as url:
        assert labels(ask(f"{url}/v1/predict", alice, TEXTS)) == ["positive", "negative"]


@pytest.mark.usefixtures("one_thread")
def test_it_can_be_chosen_for_again(old):
    found = retuning.retune(old, options=auto.Options(minutes=0.2, objective="size", engines=("onnxruntime",)))
    assert found.manifest.format_version == FORMAT_VERSION
    assert (found.file(LIBRARY) / "artifact/atomic.py").is_file()  # the code of this version
    golden.verify(found.path)
    (kept,) = (candidate for candidate in found.manifest.details["retune"]["candidates"] if candidate["kept"])
    assert Artifact.load(found.path).manifest.weights_precision == kept["precision"]
