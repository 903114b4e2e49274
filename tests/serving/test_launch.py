"""Real processes: what they refuse to start with, what they import, and how they end."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploykit.artifact import FLOAT_GRAPH, GRAPH, MANIFEST, sha256_of
from deploykit.artifact.execution import Execution
from deploykit.cli import demo
from deploykit.errors import ArtifactError, BusyError, InputError, StorageError
from deploykit.inference.predictor import Predictor
from deploykit.serving import launch, preflight
from deploykit.serving.access import keys
from deploykit.tasks import softmax

FORBIDDEN = (
    *("torch", "transformers", "datasets", "optimum", "sklearn", "accelerate", "peft", "pandas"),
    *("spacy", "presidio_analyzer", "model_signing"),  # of extras that nobody has asked for here
)
TELL_MODULES = """
import json, os, sys, threading, time

def tell():  # a worker ends by a signal, so it is too late to tell at exit
    while True:
        time.sleep(0.1)
        draft = os.path.join(os.environ["TOLD"], f".{os.getpid()}")
        with open(draft, "w") as stream:
            json.dump([sys.orig_argv, sorted(sys.modules)], stream)
        os.replace(draft, os.path.join(os.environ["TOLD"], f"{os.getpid()}.json"))

threading.Thread(target=tell, daemon=True).start()
"""


def environ(tmp_path, **changes):
    return {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml"), **changes}


@contextmanager
def launched(package, key_file, tmp_path, **changes):
    """Starts a service; yields its process and its url once it is ready."""
    plan = launch.plan(package, port=launch.free_port(), keys=key_file, environ=environ(tmp_path, **changes))
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            plan.argv, env=plan.env, cwd=tmp_path, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        launch.wait_ready(plan.url, process, log)
        yield process, plan.url
    finally:
        launch.stop(process)


def ask(url, key=None, body=None, timeout=20):
    """Returns (status, text) of a GET, or of a POST when there is a body."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = None
    if body is not None:
        data, headers["content-type"] = json.dumps(body).encode(), "application/json"
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_port_in_use(package, key_file, alice):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BusyError, match=rf"cannot listen on 127\.0\.0\.1:{port}.*--port"):
            launch.plan(package, port=port, keys=key_file)


def test_no_keys_no_package_no_address(package, key_file, alice, tmp_path):
    with pytest.raises(InputError, match="deploykit keys add NAME"):
        launch.plan(package, keys=tmp_path / "none.json")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        launch.plan(tmp_path, keys=key_file)
    with pytest.raises(InputError, match=r"must be an IP address, got 'example.org'"):
        launch.plan(package, keys=key_file, host="example.org")


def test_the_plan(package, key_file, alice):
    found = launch.plan(package, port=launch.free_port(), keys=key_file, host="localhost", environ={"HOME": "/home/me"})
    argv = " ".join(found.argv)
    assert f"bentoml serve {package.resolve()} --host 127.0.0.1" in argv
    assert argv.endswith("--timeout-graceful-shutdown 25")
    assert found.env["BENTOML_DO_NOT_TRACK"] == "True"
    assert found.env["HF_HUB_OFFLINE"] == "True"
    assert found.env["DEPLOYKIT_KEYS"] == str(key_file)
    other = launch.plan(package, port=launch.free_port(), keys=key_file, environ={"HOME": "/home/me"})
    assert found.env["BENTOML_HOME"] != other.env["BENTOML_HOME"]


def test_services_of_one_bentoml_home_have_directories_of_their_own(package, key_file, alice, tmp_path):
    one, other = (launch.plan(package, port=launch.free_port(), keys=key_file, environ=environ(tmp_path)) for _ in "ab")
    homes = [Path(found.env["BENTOML_HOME"]) for found in (one, other)]
    assert [home.parent for home in homes] == [tmp_path / "bentoml"] * 2
    assert homes[0] != homes[1]
    port = int(one.url.rpartition(":")[2])
    assert launch.drain(port, environ=environ(tmp_path)) == homes[0] / "drain"
    assert not (homes[1] / "drain").exists()


def test_a_home_that_cannot_be_written_is_named(package, key_file, alice, tmp_path, monkeypatch):
    def refused(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StorageError, match="BENTOML_HOME"):
        launch.plan(package, port=launch.free_port(), keys=key_file, environ=environ(tmp_path))


def test_what_bentoml_itself_serves_is_drained_by_its_home(tmp_path):
    (tmp_path / "bentoml").mkdir()
    assert launch.drain(4999, environ=environ(tmp_path)) == tmp_path / "bentoml" / "drain"


def test_bentoml_does_not_serve_without_keys(package, tmp_path):
    env = environ(tmp_path, DEPLOYKIT_KEYS=str(tmp_path / "none.json"))
    argv = [sys.executable, "-m", "bentoml", "serve", str(package), "--port", str(launch.free_port())]
    ended = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "access control is on" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout


def test_a_tampered_package_is_reported_at_once(copied, key_file, alice, tmp_path):
    content = bytearray((copied / GRAPH).read_bytes())
    content[-1] ^= 1
    (copied / GRAPH).write_bytes(content)
    with (
        pytest.raises(ArtifactError, match=r"model\.onnx was changed"),
        launch.running_service(copied, key_file, environ=environ(tmp_path)),
    ):
        pytest.fail("it became ready")


@pytest.fixture(scope="module")
def told(package, tmp_path_factory):
    """Serves once, and returns the answers and what the processes had imported when they ended."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "site").mkdir()
    (folder / "modules").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(TELL_MODULES)
    changes = {"PYTHONPATH": str(folder / "site"), "TOLD": str(folder / "modules")}
    key_file = folder / "keys.json"
    key = keys.add(key_file, "alice")
    body = {"texts": ["a great film"]}
    with launch.running_service(package, key_file, environ=environ(folder, **changes), log=folder / "log") as url:
        answers = {
            "with": ask(f"{url}/v1/predict", key, body),
            "without": ask(f"{url}/v1/predict", None, body),
            "metrics": ask(f"{url}/metrics", key),
        }
        time.sleep(0.3)
    told = [json.loads(file.read_text()) for file in (folder / "modules").glob("*.json")]
    modules = {"worker" if "_bentoml_impl.worker.service" in argv else "supervisor": set(found) for argv, found in told}
    return answers, modules, (folder / "log").read_text()


def test_a_real_process_answers_who_has_a_key(told):
    answers, _, _ = told
    assert answers["without"][0] == 401
    status, text = answers["with"]
    assert status == 200
    assert json.loads(text)["predictions"][0]["label"] in ("negative", "positive")


def test_the_metrics_of_a_real_process_are_joined(told):
    status, page = told[0]["metrics"]
    assert status == 200
    assert 'deploykit_requests_total{route="/v1/predict",status="401"} 1.0' in page
    assert "deploykit_ready 1.0" in page
    assert "deploykit_fallback 0.0" in page
    assert "deploykit_queue_items 0.0" in page
    assert "pid=" not in page


def test_a_serving_process_imports_nothing_of_training(told):
    _, modules, _ = told
    assert set(modules) == {"worker", "supervisor"}
    worker = modules["worker"]
    assert {"onnxruntime", "tokenizers", "deploykit.serving.http.guard"} <= worker
    for process, found in modules.items():
        assert not {name.partition(".")[0] for name in found} & set(FORBIDDEN), process
    ours = {name for name in worker if name.startswith("deploykit.")}
    needed = {"errors", "no_telemetry", "methods", "hardware", "tokenizer"}
    folders = {"artifact", "images", "tasks", "engines", "inference", "serving"}
    assert {name.split(".")[1] for name in ours} <= needed | folders


def test_a_real_process_logs_no_traceback(told):
    assert "Traceback" not in told[2]


def test_a_real_process_on_a_cpu_that_lacks_what_was_chosen_for(make_package, key_file, alice, tmp_path):
    made = make_package(tmp_path / "p", float_seed=7, execution=Execution(features=("avx1024",)))  # no CPU has it
    log, text = tmp_path / "log", "a great film"
    with launch.running_service(made.path, key_file, environ=environ(tmp_path), log=log) as url:
        answer = json.loads(ask(f"{url}/v1/predict", alice, {"texts": [text]})[1])["predictions"][0]
        page = ask(f"{url}/metrics", alice)[1]
    scores = Predictor.load(made, 1, Execution(), FLOAT_GRAPH).predict([text])[0]
    assert answer["score"] == pytest.approx(float(softmax(scores).max()), abs=1e-6)
    assert "deploykit_fallback 1.0" in page
    assert f'graph="{FLOAT_GRAPH}"' in page
    (line,) = [line for line in log.read_text().splitlines() if '"level": "warning"' in line]
    assert all(word in line for word in ("avx1024", FLOAT_GRAPH, f"deploykit retune {made.path}"))


def slowed(package):
    """Makes the engine of a package take a second for a batch, and seals it anew."""
    name = "deploykit/engines/onnxruntime.py"
    engine, manifest = package / name, json.loads((package / MANIFEST).read_text())
    run = "        arrays = self._session.run("
    assert run in engine.read_text()
    engine.write_text(engine.read_text().replace(run, f"        __import__('time').sleep(1)\n{run}"))
    manifest["files"][name] = {"sha256": sha256_of(engine), "bytes": engine.stat().st_size}
    (package / MANIFEST).write_text(json.dumps(manifest))
    return package


def test_a_service_that_drains_leaves_the_balancer_and_answers_until_it_is_stopped(package, key_file, alice, tmp_path):
    around = environ(tmp_path)
    with launch.running_service(package, key_file, environ=around) as url:
        port = int(url.rpartition(":")[2])
        assert ask(f"{url}/readyz", None)[0] == 200
        start = time.monotonic()
        file = launch.drain(port, 0.2, around)
        assert time.monotonic() - start >= 0.2
        assert ask(f"{url}/readyz", None)[0] == 503
        assert ask(f"{url}/livez", None)[0] == 200  # or it would be restarted
        assert ask(f"{url}/v1/predict", alice, {"texts": ["a film"]})[0] == 200
        assert "deploykit_draining 1.0" in ask(f"{url}/metrics", alice)[1]
    assert file.exists()
    with launch.running_service(
        package, key_file, port, environ=around
    ) as url:  # of the process before, and not of this one
        assert ask(f"{url}/readyz", None)[0] == 200
        assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DEPLOYKIT_REDIS": "redis://127.0.0.1:abc"}, "address of the Redis server cannot be used"),
        ({"DEPLOYKIT_JWKS": "/nowhere.json"}, "the keys for tokens /nowhere.json cannot be read"),
    ],
)
def test_what_only_the_worker_reads_is_looked_at_before(package, key_file, alice, tmp_path, changes, message):
    others = {"DEPLOYKIT_JWT_ISSUER": "i", "DEPLOYKIT_JWT_AUDIENCE": "a"} if "DEPLOYKIT_JWKS" in changes else {}
    with pytest.raises(InputError, match=message):
        launch.plan(package, port=launch.free_port(), keys=key_file, environ=environ(tmp_path, **changes, **others))


def test_keys_for_tokens_are_named_from_where_the_command_is_run(package, key_file, alice, tmp_path, monkeypatch):
    (tmp_path / "jwks.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "TokenChecker", lambda *jwt: None)
    named = {"DEPLOYKIT_JWKS": "jwks.json", "DEPLOYKIT_JWT_ISSUER": "i", "DEPLOYKIT_JWT_AUDIENCE": "a"}
    plan = launch.plan(package, port=launch.free_port(), keys=key_file, environ=environ(tmp_path, **named))
    assert plan.env["DEPLOYKIT_JWKS"] == str(tmp_path / "jwks.json")


def test_no_proxy_is_asked_for_what_the_demo_serves(package, key_file, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text('{"text": "a great film", "label": "positive"}\n' * 3)
    lines = list(demo.query_service(package, key_file, reviews))
    assert lines[4].startswith("  200: ")
    assert lines[5].startswith("  401 without a key")


def test_only_what_was_started_can_be_drained(tmp_path):
    with pytest.raises(InputError, match=r"no service was started on port 4999"):
        launch.drain(4999, environ={"XDG_CACHE_HOME": str(tmp_path)})
    assert launch.drain(1, environ={"DEPLOYKIT_DRAIN": str(tmp_path / "mine")}) == tmp_path / "mine"
    assert (tmp_path / "mine").exists()


def test_requests_in_flight_finish_after_sigterm(copied, key_file, alice, tmp_path):
    with launched(slowed(copied), key_file, tmp_path) as (process, url):
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(ask, f"{url}/v1/predict", alice, {"texts": ["a film"]}) for _ in range(2)]
            time.sleep(0.5)
            assert not any(answer.done() for answer in answers)
            process.send_signal(signal.SIGTERM)
            assert [answer.result(20)[0] for answer in answers] == [200, 200]
        assert process.wait(20) == 0


def test_a_free_port_is_none_that_linux_gives_to_connections():
    """Otherwise the sockets of another process could take it before the service listens."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 <= launch.free_port() < first for _ in range(20))
