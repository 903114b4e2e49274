"""`deploykit.serve` in a program of one's own, a notebook for example: the program goes on, the service is a child."""

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from test_launch import environ

import deploykit
from deploykit.errors import ArtifactError
from deploykit.serving import launch

PROGRAM = """
import os, sys
import deploykit
service = deploykit.serve(sys.argv[1], port=int(sys.argv[2]), auth=False)
print(service.url, os.getpid(), flush=True)
if sys.argv[3] == "stop":
    with service:
        pass
    service.stop()
    print("still here", flush=True)
"""


def run(package, tmp_path, ending):
    port = launch.free_port()
    command = [sys.executable, "-c", PROGRAM, str(package), str(port), ending]
    process = subprocess.Popen(command, env=environ(tmp_path), stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return process.pid, port, output


def answers(url):
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/livez", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.parametrize("ending", ["stop", "exit"])
def test_the_program_goes_on_and_the_service_ends_with_it(package, tmp_path, ending):
    pid, port, output = run(package, tmp_path, ending)
    url = f"http://127.0.0.1:{port}"
    assert output == f"{url} {pid}\n" + ("still here\n" if ending == "stop" else "")
    assert not answers(url)


def test_a_service_answers_until_its_block_ends(package, key_file, alice, tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    before = dict(os.environ)
    with deploykit.serve(package, port=0, keys=key_file) as service:
        assert answers(service.url)
        with deploykit.Client(service.url, key=alice) as client:
            assert client.predict(["the film is great"])
        assert launch.drain(int(service.url.rpartition(":")[2])).exists()
    assert not answers(service.url)
    service.stop()  # once more changes nothing
    assert dict(os.environ) == before


def test_what_cannot_be_served_is_said_at_once_and_leaves_no_process(copied, key_file, alice, tmp_path, monkeypatch):
    with pytest.raises(ArtifactError, match="has no manifest"):
        deploykit.serve(tmp_path, port=0, keys=key_file)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    (copied / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="will not be ready"):
        deploykit.serve(copied, port=0, keys=key_file)
