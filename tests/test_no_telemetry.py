"""Nothing that the project starts speaks to anybody else, and what it leaves in a home directory is known."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import recorded_network

from deploykit import no_telemetry

SETTINGS = ("TELEMETRY", "DO_NOT_TRACK", "OFFLINE", "DEPLOYKIT_", "XDG_", "HF_", "BENTOML_")
ISOLATED = ("unshare", "--map-root-user", "--net", "--mount")
DOCUMENTED = (  # in a home directory, by what makes them
    ".cache/deploykit",  # measurements
    ".cache/huggingface",  # models and data from the hub
    ".cache/matplotlib",
    ".config/matplotlib",
    "bentoml",  # the model store
)
SERVE = """
import http.client, json, os, sys, time, urllib.request
from pathlib import Path
from deploykit.serving import launch
from deploykit.serving.access import keys
package, home, how = sys.argv[1:]
key = keys.add(Path(home) / "keys.json", "alice")
if how == "bentoml":
    plan = launch.plan
    def plain(*arguments, environ, **named):
        made = plan(*arguments, environ=environ, **named)
        known = {name: made.env[name] for name in ("DEPLOYKIT_KEYS", "BENTOML_HOME")}
        return launch.Launch(made.argv, {**environ, **known}, made.url)
    launch.plan = plain
with launch.running_service(Path(package), Path(home) / "keys.json", environ=dict(os.environ)) as url:
    for _ in range(3):
        request = urllib.request.Request(url + "/v1/predict", json.dumps({"texts": ["a great film"]}).encode())
        request.add_header("x-api-key", key)
        request.add_header("content-type", "application/json")
        assert urllib.request.urlopen(request).status == 200
    time.sleep(float(os.environ.get("WAIT", 2)))
"""


@pytest.fixture(scope="module")
def recorded():
    """`recorded(home, *command) -> record` of lookups and connections of a command started in a bare environment."""
    probe = [*ISOLATED, "sh", "-c", "ip link set lo up && ip route add local default dev lo"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine gives nobody a network of their own")

    def run(home, *command):
        home.mkdir(exist_ok=True)
        bare = {name: value for name, value in os.environ.items() if not any(part in name for part in SETTINGS)}
        for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # in which some libraries send nothing
            bare.pop(name, None)
        record = home.parent / "record.json"
        script = [sys.executable, recorded_network.__file__, str(record)]
        ended = subprocess.run(
            [*ISOLATED, *script, *map(str, command)],
            env={**bare, "HOME": str(home), "OMP_NUM_THREADS": "1"},
            cwd=home.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        content = json.loads(record.read_text())
        assert content.pop("status") == 0, ended.stdout + ended.stderr
        return content

    return run


def left_in(home):
    """Returns the files below a home directory that no document speaks of."""
    files = [file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()]
    return [name for name in files if not name.startswith(DOCUMENTED)]


def test_what_the_user_has_set_stays():
    environ = {"ORT_DISABLE_TELEMETRY": "0"}
    no_telemetry.switch_off(environ)
    assert environ == {**no_telemetry.VARIABLES, "ORT_DISABLE_TELEMETRY": "0"}


@pytest.mark.parametrize("answered", [True, False])
def test_consent_that_the_user_gave_to_openvino_stays(answered, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, no_telemetry.OPENVINO_TELEMETRY, raising=False)
    if answered:
        (tmp_path / "intel").mkdir()
        (tmp_path / "intel" / no_telemetry.OPENVINO_TELEMETRY).write_text("1")
    no_telemetry.switch_off({})
    assert (no_telemetry.OPENVINO_TELEMETRY in sys.modules) is not answered
    monkeypatch.setitem(sys.modules, no_telemetry.OPENVINO_TELEMETRY, None)  # so that undoing puts back what was there


STRANGER = """
import os, sys
from deploykit import no_telemetry
os.setgid(54321)
os.setuid(54321)
del sys.modules[no_telemetry.OPENVINO_TELEMETRY]
no_telemetry.switch_off()
print(no_telemetry.OPENVINO_TELEMETRY in sys.modules)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody whom the system does not know")
@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/1/root"}])  # none at all, and one that others may not read
def test_a_process_without_a_home_sends_nothing_and_fails_at_nothing(home):
    env = {**{name: value for name, value in os.environ.items() if name != "HOME"}, **home}
    ended = subprocess.run([sys.executable, "-c", STRANGER], env=env, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


QUIET = {"lookups": [], "connections": []}


def test_the_recorder_sees_who_speaks(recorded, tmp_path):
    code = "import urllib.request as r; r.urlopen('http://telemetry.example/', timeout=2)"
    found = recorded(tmp_path / "home", "sh", "-c", f'{sys.executable} -c "{code}"; true')
    assert "telemetry.example" in found["lookups"]
    assert found["connections"] == ["192.0.2.1:80"]


@pytest.fixture(scope="module")
def ran(recorded, tiny_recipe, tmp_path_factory):
    """What a whole run recorded, its home and its package."""
    folder = tmp_path_factory.mktemp("recorded")
    quick = {"method": "auto", "minutes": 0.1, "quantizers": ["none"], "graphs": ["exported"], "fallback": False}
    recipe = tiny_recipe(folder, train={"method": "full", "epochs": 1}, prune=None, quantize=quick)
    home = folder / "home"
    found = recorded(home, sys.executable, "-m", "deploykit", "run", recipe)
    return found, home, folder / "runs" / "tiny" / "package"


def test_a_run_speaks_to_nobody(ran):
    found, home, package = ran
    assert package.is_dir()
    assert found == QUIET
    assert left_in(home) == []


@pytest.mark.parametrize("how", ["deploykit", "bentoml"])
def test_a_service_speaks_to_nobody(how, recorded, ran, tmp_path):
    home = tmp_path / "home"
    assert recorded(home, sys.executable, "-c", SERVE, ran[2], tmp_path, how) == QUIET
    assert left_in(home) == []


def test_engines_alone_speak_to_nobody(recorded, tmp_path):
    code = "from deploykit.engines import onnxruntime, openvino; import time; time.sleep(3)"
    home = tmp_path / "home"
    assert recorded(home, sys.executable, "-c", code) == QUIET
    assert left_in(home) == []
