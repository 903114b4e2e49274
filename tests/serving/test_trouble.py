"""What clients see when things fail: real processes that are killed, frozen, filled up, or told another time."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from test_check import ROUTES
from test_launch import ask, environ, launched

from deploykit import Client
from deploykit.artifact import ServeOptions
from deploykit.serving import launch
from deploykit.serving.telemetry.watchdog import EXIT_STATUS

BODY = {"texts": ["a great film"]}
FREEZE = """
import os, sys, threading, time

def wait_for_the_engine():
    while not hasattr(sys.modules.get("deploykit.engines.onnxruntime"), "load"):
        time.sleep(0.01)
    session = sys.modules["deploykit.engines.onnxruntime"].Session
    run = session.run

    def frozen(self, batch):
        while os.path.exists(os.environ["FROZEN"]):
            time.sleep(0.02)
        return run(self, batch)

    session.run = frozen

threading.Thread(target=wait_for_the_engine, daemon=True).start()
"""
STANDS_STILL = """
import asyncio, time
from deploykit.serving.telemetry.watchdog import Watchdog

async def main():
    Watchdog(asyncio.get_running_loop(), lambda: None, 0.5)
    await asyncio.sleep(1.5)  # it turns
    time.sleep(30)  # it does not

asyncio.run(main())
"""


LOG_STANDS_STILL = """
import logging, time

class Full(logging.Handler):
    def emit(self, record):
        time.sleep(60)  # as a pipe that nobody reads

logging.getLogger("deploykit.serving").addHandler(Full())
"""


def worker_of(url):
    """The process that answers: the child of the one that was started."""
    port = int(url.rpartition(":")[2])
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "_bentoml_impl.worker.service" in command and any(found.laddr.port == port for found in listening(process)):
            return process
    return None


def listening(process):
    try:
        return [found for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def ready(url, but=None, seconds=30, path="/readyz"):
    """Waits until another worker than `but` is ready; returns how long that took."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        found = worker_of(url)
        if found is not None and (but is None or found.pid != but.pid):
            try:
                if ask(f"{url}{path}", timeout=1)[0] == 200:
                    return time.monotonic() - start
            except OSError:
                pass
        time.sleep(0.05)
    raise AssertionError("no other worker became ready")


@contextmanager
def load(url, key, clients=4):
    """Asks all the time through clients that try again; yields the answers, and after the block also the failures."""
    found, ended = [], threading.Event()

    def work():
        with Client(url, key, timeout_s=20) as client:
            while not ended.is_set():
                try:
                    client.predict(BODY["texts"])
                    found.append(None)
                except Exception as error:
                    found.append(error)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(work) for _ in range(clients)]
        try:
            yield found
        finally:
            ended.set()
    for one in running:
        one.result()


def test_a_worker_that_is_killed_is_replaced_and_clients_that_try_again_see_nothing(package, key_file, alice, tmp_path):
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        first = worker_of(url)
        with load(url, alice) as found:
            time.sleep(0.5)
            before = len(found)
            first.send_signal(signal.SIGKILL)
            assert ready(url, but=first) < 20
            time.sleep(0.5)
        assert [error for error in found if error] == []
        assert len(found) > before > 0
        page = ask(f"{url}/metrics", alice)[1]
        assert "deploykit_ready 1.0" in page
        assert "deploykit_requests_in_flight 1.0" in page  # this one, and none of the worker that is gone


def test_a_worker_that_is_replaced_drains_on(package, key_file, alice, tmp_path):
    around = environ(tmp_path)
    with launch.running_service(package, key_file, environ=around) as url:
        first = worker_of(url)
        launch.drain(int(url.rpartition(":")[2]), environ=around)
        assert "deploykit_draining 1.0" in ask(f"{url}/metrics", alice)[1]  # before anybody has asked for /readyz
        first.kill()
        ready(url, but=first, path="/livez")
        assert ask(f"{url}/v1/predict", alice, BODY)[0] == 200
        assert ask(f"{url}/readyz", None)[0] == 503


def test_a_container_ends_with_its_worker(package, key_file, alice, tmp_path):
    """Who runs containers starts them anew, and sees that they end; nobody does that for processes inside."""
    with launched(package, key_file, tmp_path, BENTOML_CONTAINERIZED="true") as (process, url):
        worker_of(url).send_signal(signal.SIGKILL)
        assert process.wait(20) != 0


def test_an_engine_that_does_not_come_back_is_noticed_and_its_process_replaced(make_package, key_file, alice, tmp_path):
    package = make_package(tmp_path / "p", serve=ServeOptions(timeout_s=0.5, stuck_s=2)).path
    frozen = tmp_path / "frozen"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FREEZE)
    around = environ(tmp_path, PYTHONPATH=str(tmp_path / "site"), FROZEN=str(frozen))
    with launch.running_service(package, key_file, environ=around, log=tmp_path / "log") as url:
        assert ask(f"{url}/v1/predict", alice, BODY)[0] == 200
        first = worker_of(url)
        frozen.touch()
        status, text = ask(f"{url}/v1/predict", alice, BODY)
        assert (status, json.loads(text)["title"]) == (504, "Gateway Timeout")
        start = time.monotonic()
        psutil.wait_procs([first], timeout=15)  # its supervisor looks every few seconds
        assert not first.is_running()
        assert time.monotonic() - start < 12
        frozen.unlink()
        ready(url, but=first)
        assert ask(f"{url}/v1/predict", alice, BODY)[0] == 200
    assert "the engine has hung for 2 s: this process ends, to be started again" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("also", ["", LOG_STANDS_STILL], ids=["alone", "with the log"])
def test_an_event_loop_that_does_not_turn_ends_the_process(also):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", also + STANDS_STILL], timeout=20, check=False)
    assert done.returncode == EXIT_STATUS
    assert 2 < time.monotonic() - start < 10


def test_requests_under_load_are_answered_or_never_taken_when_a_service_is_stopped(package, key_file, alice, tmp_path):
    ended, seen = threading.Event(), []

    def work(url):
        while not ended.is_set():
            try:
                seen.append(ask(f"{url}/v1/predict", alice, BODY)[0])
            except OSError as error:
                seen.append(type(getattr(error, "reason", error)))
                return

    with launched(package, key_file, tmp_path) as (process, url), ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(work, url)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        ended.set()
    assert seen.count(200) > 20
    assert set(seen) <= {200, 503, ConnectionRefusedError, ConnectionResetError, BrokenPipeError}
    assert seen.count(ConnectionResetError) <= 4  # that were not taken yet when the socket was closed


def fill(file):
    """Writes until nothing more goes onto the disk."""
    with file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


def test_a_full_disk_does_not_stop_answers(package, key_file, alice, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        around = environ(tmp_path, BENTOML_HOME=str(disk / "bentoml"))
        with launch.running_service(package, key_file, environ=around, log=disk / "log") as url:
            assert ask(f"{url}/v1/predict", alice, BODY)[0] == 200
            first = worker_of(url)
            with pytest.raises(OSError, match="No space"):
                fill(disk / "rest")
            statuses = [ask(f"{url}/v1/predict", alice, BODY)[0] for _ in range(50)]
            statuses += [ask(f"{url}{path}", key)[0] for path in ("/nowhere", "/metrics") for key in (None, alice)]
            statuses += [ask(f"{url}/v1/predict", alice, {"texts": 7})[0], ask(f"{url}/v1/explain", None, BODY)[0]]
            assert statuses == [200] * 50 + [404, 404, 401, 200, 422, 401]
            for path in ROUTES:  # series that nobody has counted before need space, too
                assert ask(f"{url}{path}", "wrong")[0] < 500
                assert ask(f"{url}{path}", body={})[0] < 500
            assert worker_of(url).pid == first.pid
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_wall_clock_may_jump(package, key_file, alice, tmp_path):
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    around = environ(tmp_path, LD_PRELOAD=str(library), FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1")
    around["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
    with launch.running_service(package, key_file, environ=around) as url:
        first = worker_of(url)
        with load(url, alice, clients=2) as found:
            for jump in ("+3600", "-3600", "+86400", "+0"):
                clock.write_text(jump)
                end, enough = time.monotonic() + 20, len(found) + 5
                while len(found) < enough and time.monotonic() < end:
                    time.sleep(0.1)
                assert len(found) >= enough, jump
        assert [error for error in found if error] == []
        assert ask(f"{url}/readyz")[0] == ask(f"{url}/livez")[0] == 200
        assert worker_of(url).pid == first.pid


def test_an_idle_connection_is_still_there_when_the_proxy_uses_it_again(package, key_file, alice, tmp_path):
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        connection = HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=10)
        headers = {"x-api-key": alice, "content-type": "application/json"}
        for pause in (6, 0):  # the server's own default is 5 s
            connection.request("POST", "/v1/predict", json.dumps(BODY), headers)
            assert connection.getresponse().read()
            mine = connection.sock
            time.sleep(pause)
        assert connection.sock is mine
        connection.close()
