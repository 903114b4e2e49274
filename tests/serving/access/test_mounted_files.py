"""Files that Kubernetes mounts: each is a link through `..data`, and an update exchanges what `..data` names."""

import itertools
import os
import shutil
import time

import pytest
from test_jwt import AUDIENCE, ISSUER, private, public_set  # noqa: F401
from test_launch import ask, environ, launched

from deploykit.serving import launch
from deploykit.serving.access import check, keys
from deploykit.serving.access.check import KeyChecker
from deploykit.serving.access.jwt import TokenChecker
from deploykit.serving.call import Client

jwt = pytest.importorskip("jwt")
BODY = {"texts": ["a film"]}


@pytest.fixture
def mount(tmp_path):
    """`mount(name, content) -> path`: writes a file as the kubelet does; the directory before is deleted."""
    folder, numbers = tmp_path / "volume", itertools.count()

    def write(name, content):
        link, data = folder / name, folder / "..data"
        target = folder / f"..2026_01_01_{next(numbers)}"
        target.mkdir(parents=True)
        (target / name).write_text(content)
        before = data.readlink() if data.is_symlink() else None
        (folder / "..data_tmp").symlink_to(target.name)
        (folder / "..data_tmp").rename(data)
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
        if before is not None:
            shutil.rmtree(folder / before)
        return link

    return write


def key_files(folder, *clients):
    """Returns for each client a key, and the content of a key file that holds it alone."""
    made = []
    for client in clients:
        path = folder / f"{client}.json"
        made.append((keys.add(path, client), path.read_text()))
    return made


def test_a_served_key_file_is_followed_through_its_links(package, mount, tmp_path):
    (alice, before), (bob, after) = key_files(tmp_path, "alice", "bob")
    path = mount("keys.json", before)
    with launched(package, path, tmp_path) as (_, url):
        assert [ask(f"{url}/v1/predict", key, BODY)[0] for key in (alice, bob)] == [200, 401]
        mount("keys.json", after)
        end = time.monotonic() + check.POLL_S + 2
        while ask(f"{url}/v1/predict", alice, BODY)[0] == 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert [ask(f"{url}/v1/predict", key, BODY)[0] for key in (alice, bob)] == [401, 200]


@pytest.mark.parametrize("name", ["DEPLOYKIT_KEYS", "DEPLOYKIT_JWKS", "DEPLOYKIT_SIGNED_BY", "DEPLOYKIT_RECORDS"])
def test_a_worker_that_runs_elsewhere_gets_the_link_and_not_its_target(
    package, key_file, alice, mount, tmp_path, monkeypatch, name
):
    mount("named", "{}")
    monkeypatch.chdir(tmp_path / "volume")
    monkeypatch.setattr(launch, "require_startable", lambda _: None)
    monkeypatch.setattr(launch.signing, "check", lambda artifact, key: None)
    others = {"DEPLOYKIT_JWT_ISSUER": "i", "DEPLOYKIT_JWT_AUDIENCE": "a"} if name == "DEPLOYKIT_JWKS" else {}
    plan = launch.plan(package, port=launch.free_port(), environ=environ(tmp_path, **{name: "named"}, **others))
    assert plan.env[name] == str(tmp_path / "volume" / "named")


def test_a_drain_file_is_named_from_where_the_command_is_run(package, key_file, alice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    around = environ(tmp_path, DEPLOYKIT_DRAIN="drain")
    plan = launch.plan(package, keys=key_file, port=launch.free_port(), environ=around)
    assert plan.env["DEPLOYKIT_DRAIN"] == str(tmp_path / "drain")


def test_a_file_of_the_same_size_and_time_is_another_one(key_file, alice, monkeypatch):
    """As tools make them that copy times, on a file system that gives the number of a file again."""
    monkeypatch.setattr(check, "POLL_S", 0.0)
    found, before = KeyChecker(key_file), key_file.stat()
    content = key_file.read_text().replace('"disabled": false', '"disabled": true ')
    key_file.write_text(content)
    assert key_file.stat().st_size == before.st_size
    access_times = (before.st_atime_ns, before.st_mtime_ns)
    os.utime(key_file, ns=access_times)
    assert found.check(alice, "predict").reason == "auth_disabled"


def test_the_keys_of_a_provider_follow_their_file(private, mount, monkeypatch):  # noqa: F811
    def token(by):
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": time.time() + 60, "scope": "predict"}
        return jwt.encode(claims, private[by], algorithm="RS256", headers={"kid": by})

    path = mount("jwks.json", public_set(private, "rsa"))
    found = TokenChecker(str(path), ISSUER, AUDIENCE)
    assert isinstance(found.check(token("rsa"), "predict"), Client)
    mount("jwks.json", public_set(private, "stranger"))
    monkeypatch.setattr(check, "POLL_S", 0.0)
    assert found.check(token("rsa"), "predict").reason == "auth_invalid"  # withdrawn, and refused at once
    assert isinstance(found.check(token("stranger"), "predict"), Client)
    mount("jwks.json", "{ broken")
    assert isinstance(found.check(token("stranger"), "predict"), Client)
    assert found.failures == 1


def test_a_new_key_of_a_provider_in_a_file_is_known_at_once(private, mount):  # noqa: F811
    path = mount("jwks.json", public_set(private, "rsa"))
    found = TokenChecker(str(path), ISSUER, AUDIENCE)
    mount("jwks.json", public_set(private, "stranger"))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": time.time() + 60, "scope": "predict"}
    text = jwt.encode(claims, private["stranger"], algorithm="RS256", headers={"kid": "stranger"})
    assert isinstance(found.check(text, "predict"), Client)
