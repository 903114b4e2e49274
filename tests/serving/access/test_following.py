"""The check of a running service: refusals first, and how it follows its file."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from deploykit.errors import InputError
from deploykit.serving.access import check, keys
from deploykit.serving.access.check import KeyChecker, Refusal
from deploykit.serving.call import LIMIT_NAMES, Client


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dk_",
        "alice",
        "dk_00000000_" + "a" * 43,
        "dk_00000000_" + "a" * 42,
        "Dk_00000000_" + "a" * 43,
        "dk_é_" + "a" * 43,
    ],
)
def test_texts_that_are_no_keys(key_file, alice, text):
    refusal = KeyChecker(key_file).check(text, "predict")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401


def test_the_right_id_with_a_wrong_secret(key_file, alice):
    wrong = alice[:-1] + ("a" if alice[-1] != "a" else "b")
    assert KeyChecker(key_file).check(wrong, "predict").reason == "auth_invalid"


def test_an_expired_key_is_refused_and_one_that_will_expire_is_not(key_file):
    now = datetime.now(UTC)
    old = keys.add(key_file, "old", expires=now - timedelta(seconds=1))
    new = keys.add(key_file, "new", expires=now + timedelta(hours=1))
    found = KeyChecker(key_file)
    assert found.check(old, "predict").reason == "auth_expired"
    assert isinstance(found.check(new, "predict"), Client)


def test_a_scope_that_the_key_lacks_is_403(key_file):
    key = keys.add(key_file, "alice", ["predict"])
    refusal = KeyChecker(key_file).check(key, "metrics")
    assert (refusal.status, refusal.reason) == (403, "auth_scope")


def test_a_key_opens_its_scopes_and_names_its_client(key_file):
    key = keys.add(key_file, "alice", ["predict", "docs"], requests_per_minute=7)
    client = KeyChecker(key_file).check(key, "docs")
    assert (client.name, client.requests_per_minute) == ("alice", 7)


def test_a_running_service_follows_the_file_and_outlives_a_broken_one(key_file, alice, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    found = KeyChecker(key_file)
    bob = keys.add(key_file, "bob")
    assert isinstance(found.check(bob, "predict"), Client)

    good = key_file.read_text()
    key_file.write_text("{ broken")
    assert isinstance(found.check(bob, "predict"), Client)
    assert found.failures == 1
    key_file.unlink()
    assert isinstance(found.check(bob, "predict"), Client)

    key_file.write_text(good)
    os.utime(key_file, (1, 1))
    keys.revoke(key_file, "bob")
    assert found.check(bob, "predict").reason == "auth_invalid"
    assert isinstance(found.check(alice, "predict"), Client)


def test_a_file_that_becomes_readable_again_is_read(key_file, alice, monkeypatch, caplog):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    found = KeyChecker(key_file)
    keys.revoke(key_file, "alice")
    with monkeypatch.context() as patch:
        patch.setattr(check, "read_keys", lambda path: (_ for _ in ()).throw(InputError("no permission")))
        for _ in range(3):
            assert isinstance(found.check(alice, "predict"), Client)
    assert found.failures == 3
    assert caplog.text.count("keys stay as they were") == 1
    assert found.check(alice, "predict").reason == "auth_invalid"


def test_a_key_is_not_valid_before_its_time(key_file):
    now = datetime.now(UTC)
    early = keys.add(key_file, "early", not_before=now + timedelta(minutes=5))
    begun = keys.add(key_file, "begun", not_before=now - timedelta(seconds=5))
    found = KeyChecker(key_file)
    refusal = found.check(early, "predict")
    assert (refusal.status, refusal.reason) == (401, "auth_early")
    assert f"{now + timedelta(minutes=5):%H:%M} UTC" in refusal.detail
    assert found.check(begun, "predict").name == "begun"


def test_limits_go_with_the_client(key_file):
    given = dict(zip(LIMIT_NAMES, (10, 20, 30, 40), strict=True))
    text = keys.add(key_file, "alice", **given)
    assert KeyChecker(key_file).check(text, "predict") == Client("alice", text[3:11], **given)


def test_disabled_keys_are_refused_until_they_are_enabled(key_file, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    one, two, other = (keys.add(key_file, name) for name in ("alice", "alice", "bob"))
    found = KeyChecker(key_file)
    assert [key.client for key in keys.set_disabled(key_file, "alice", disabled=True)] == ["alice", "alice"]
    assert [found.check(text, "predict").reason for text in (one, two)] == ["auth_disabled"] * 2
    assert found.check(other, "predict").name == "bob"
    keys.set_disabled(key_file, one[3:11], disabled=False)
    assert found.check(one, "predict").name == "alice"
    assert found.check(two, "predict").reason == "auth_disabled"
    with pytest.raises(InputError, match="did you mean 'alice'"):
        keys.set_disabled(key_file, "alcie", disabled=True)


def test_the_next_key_to_expire_is_known(key_file):
    assert not key_file.exists()
    keys.add(key_file, "never")
    assert KeyChecker(key_file).next_expiry() is None
    past, near, far = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1, 9))
    for when in (past, far, near):
        keys.add(key_file, "a", expires=when)
    assert KeyChecker(key_file).next_expiry() == pytest.approx(near.timestamp(), abs=1)
