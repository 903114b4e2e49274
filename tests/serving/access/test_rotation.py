"""Keys of a service that answers meanwhile: they are rotated without a refusal, and their timing tells nothing."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from test_launch import ask, environ

from deploykit.serving import launch
from deploykit.serving.access import check, keys

TIMING = Path(__file__).parents[3] / "benchmarks" / "security" / "key_timing.py"
BODY = {"texts": ["a great film"]}
CLIENTS = 4


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "deploykit", "keys", *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


class Clients:
    """Threads that ask all the time, with the key that they are told, or with one of their own."""

    def __init__(self, url, key):
        self.url, self.key, self.statuses = url, key, []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self):
        while not self._done.is_set():
            self.statuses.append(ask(f"{self.url}/v1/predict", self.key, BODY)[0])

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()


def test_keys_are_rotated_under_load_without_a_refusal(package, key_file, alice, tmp_path):
    with launch.running_service(package, key_file, environ=environ(tmp_path)) as url:
        with Clients(url, alice) as slow, Clients(url, alice) as quick:
            time.sleep(0.5)
            new = command("rotate", alice[3:11], "--keys", str(key_file), "--hours", "1")
            quick.key = new  # at once, before the service has had time to look
            time.sleep(0.5)
            slow.key = new
            before = len(quick.statuses)
            time.sleep(0.2)  # for what is still on its way with the old key
            command("revoke", alice[3:11], "--keys", str(key_file))
            revoked = time.monotonic()
            while ask(f"{url}/v1/predict", alice, BODY)[0] == 200:
                assert time.monotonic() - revoked < check.POLL_S + 1
            time.sleep(0.5)
        assert ask(f"{url}/v1/predict", alice, BODY)[0] == 401
    for clients in (slow, quick):
        assert set(clients.statuses) == {200}
    assert min(before, len(quick.statuses) - before) > 20


def test_a_new_key_is_known_at_once_and_wrong_ones_do_not_read_the_file_again(key_file, alice, monkeypatch):
    found, reads = check.KeyChecker(key_file), []
    listing = keys.read_keys
    monkeypatch.setattr(check, "read_keys", lambda path: reads.append(path) or listing(path))
    bob = keys.add(key_file, "bob")
    reads.clear()
    assert found.check(bob, "predict").name == "bob"
    for _ in range(3):
        assert found.check(f"dk_{'0' * 8}_{'a' * 43}", "predict").reason == "auth_invalid"
    assert len(reads) == 1
    key_file.write_text("{ broken")
    for _ in range(3):
        assert found.check(f"dk_{'0' * 8}_{'a' * 43}", "predict").reason == "auth_invalid"
    assert len(reads) == 2
    assert found.check(bob, "predict").name == "bob"


def test_a_secret_belongs_to_its_id(key_file, alice):
    bob = keys.add(key_file, "bob")
    assert check.KeyChecker(key_file).check(f"dk_{bob[3:11]}_{alice[12:]}", "predict").reason == "auth_invalid"


def test_the_time_of_a_refusal_does_not_tell_which_ids_exist():
    ended = subprocess.run(
        [sys.executable, str(TIMING), "--calls", "20000"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)["in process"]
    assert set(found) == {"known", "disabled", "expired"}
