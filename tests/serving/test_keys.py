"""The key file and the check: refusals first."""

import json
import os
import stat
from datetime import UTC, datetime, timedelta

import pytest

from deploykit.errors import InputError
from deploykit.serving import keys
from deploykit.serving.keys import Client, Keys, Refusal


def test_a_missing_file_says_how_to_make_one(key_file):
    with pytest.raises(InputError, match=r"keys\.json.*deploykit keys add NAME"):
        Keys(key_file)


@pytest.mark.parametrize("content", ["{", "[]", '{"keys": [{"id": "x"}]}', '{"version": 2, "keys": []}'])
def test_a_damaged_file_is_named(key_file, content):
    key_file.write_text(content)
    with pytest.raises(InputError, match=r"keys\.json cannot be read"):
        keys.listing(key_file)


def test_an_unknown_scope_is_refused_with_the_nearest(key_file):
    with pytest.raises(InputError, match="did you mean 'predict'"):
        keys.add(key_file, "alice", ["predcit"])
    assert not key_file.exists()


def test_revoking_nobody_names_the_nearest(key_file, alice):
    with pytest.raises(InputError, match="did you mean 'alice'"):
        keys.revoke(key_file, "alcie")


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
    refusal = Keys(key_file).check(text, "predict")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401


def test_the_right_id_with_a_wrong_secret(key_file, alice):
    wrong = alice[:-1] + ("a" if alice[-1] != "a" else "b")
    assert Keys(key_file).check(wrong, "predict").reason == "auth_invalid"


def test_an_expired_key_is_refused_and_one_that_will_expire_is_not(key_file):
    now = datetime.now(UTC)
    old = keys.add(key_file, "old", expires=now - timedelta(seconds=1))
    new = keys.add(key_file, "new", expires=now + timedelta(hours=1))
    found = Keys(key_file)
    assert found.check(old, "predict").reason == "auth_expired"
    assert isinstance(found.check(new, "predict"), Client)


def test_a_scope_that_the_key_lacks_is_403(key_file):
    key = keys.add(key_file, "alice", ["predict"])
    refusal = Keys(key_file).check(key, "metrics")
    assert (refusal.status, refusal.reason) == (403, "auth_scope")


def test_a_key_opens_its_scopes_and_names_its_client(key_file):
    key = keys.add(key_file, "alice", ["predict", "docs"], requests_per_minute=7)
    client = Keys(key_file).check(key, "docs")
    assert (client.name, client.requests_per_minute) == ("alice", 7)


def test_an_unknown_id_costs_a_hash_and_a_comparison_too(key_file, alice, monkeypatch):
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    found = Keys(key_file)
    found.check("dk_00000000_" + "a" * 43, "predict")
    found.check(alice, "predict")
    assert [len(part) for pair in compared for part in pair] == [64] * 4


def test_only_hashes_are_stored_and_only_the_owner_reads_them(key_file, alice):
    secret = alice.split("_", 2)[2]
    assert secret not in key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert secret not in repr(keys.listing(key_file))
    assert set(json.loads(key_file.read_text())["keys"][0]) == {
        *("id", "sha256", "client", "scopes", "created", "disabled")
    }


def test_revoking_by_id_and_by_client(key_file):
    first, second, third = (keys.add(key_file, name) for name in ("alice", "alice", "bob"))
    (gone,) = keys.revoke(key_file, first.split("_")[1])
    assert gone.client == "alice"
    assert len(keys.revoke(key_file, "alice")) == 1
    assert [key.id for key in keys.listing(key_file)] == [third.split("_")[1]]
    assert second != third


def test_a_running_service_follows_the_file_and_outlives_a_broken_one(key_file, alice, monkeypatch):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    found = Keys(key_file)
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


def test_whoever_could_read_the_file_still_can_after_a_change(key_file, alice):
    """A container's user is not the one who revokes."""
    key_file.chmod(0o644)
    keys.revoke(key_file, "alice")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o644


def test_a_file_that_becomes_readable_again_is_read(key_file, alice, monkeypatch, caplog):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    found = Keys(key_file)
    keys.revoke(key_file, "alice")
    with monkeypatch.context() as patch:
        patch.setattr(keys, "listing", lambda path: (_ for _ in ()).throw(InputError("no permission")))
        for _ in range(3):
            assert isinstance(found.check(alice, "predict"), Client)
    assert found.failures == 3
    assert caplog.text.count("keys stay as they were") == 1
    assert found.check(alice, "predict").reason == "auth_invalid"


def test_a_key_is_made_without_the_command_line(key_file, capsys):
    with pytest.raises(SystemExit, match="usage: python -m deploykit"):
        keys.main([])
    keys.main(["carol", str(key_file)])
    assert isinstance(Keys(key_file).check(capsys.readouterr().out.strip(), "predict"), Client)


# what a key may be told


def test_a_key_is_not_valid_before_its_time(key_file):
    now = datetime.now(UTC)
    early = keys.add(key_file, "early", not_before=now + timedelta(minutes=5))
    begun = keys.add(key_file, "begun", not_before=now - timedelta(seconds=5))
    found = Keys(key_file)
    refusal = found.check(early, "predict")
    assert (refusal.status, refusal.reason) == (401, "auth_early")
    assert f"{now + timedelta(minutes=5):%H:%M} UTC" in refusal.detail
    assert found.check(begun, "predict").name == "begun"


def test_a_key_that_would_end_before_it_begins_is_refused(key_file):
    now = datetime.now(UTC)
    with pytest.raises(InputError, match=r"expire .* before it is valid"):
        keys.add(key_file, "alice", not_before=now + timedelta(days=2), expires=now + timedelta(days=1))
    assert not key_file.exists()


@pytest.mark.parametrize("name", keys.LIMITS)
def test_a_limit_of_nothing_is_refused(key_file, name):
    with pytest.raises(InputError, match=f"{name} of the key: Input should be greater than or equal to 1"):
        keys.add(key_file, "alice", **{name: 0})


def test_limits_go_with_the_client(key_file):
    given = dict(zip(keys.LIMITS, (10, 20, 30, 40), strict=True))
    text = keys.add(key_file, "alice", **given)
    assert Keys(key_file).check(text, "predict") == Client("alice", text[3:11], **given)


def test_disabled_keys_are_refused_until_they_are_enabled(key_file, monkeypatch):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    one, two, other = (keys.add(key_file, name) for name in ("alice", "alice", "bob"))
    found = Keys(key_file)
    assert [key.client for key in keys.switch(key_file, "alice", disabled=True)] == ["alice", "alice"]
    assert [found.check(text, "predict").reason for text in (one, two)] == ["auth_disabled"] * 2
    assert found.check(other, "predict").name == "bob"
    keys.switch(key_file, one[3:11], disabled=False)
    assert found.check(one, "predict").name == "alice"
    assert found.check(two, "predict").reason == "auth_disabled"
    with pytest.raises(InputError, match="did you mean 'alice'"):
        keys.switch(key_file, "alcie", disabled=True)


def test_a_rotated_key_allows_the_same_and_the_old_one_ends(key_file, monkeypatch):
    monkeypatch.setattr(keys, "POLL_S", 0.0)
    given = dict(zip(keys.LIMITS, (10, 20, 30, 40), strict=True))
    old = keys.add(key_file, "alice", ["predict", "explain"], expires=datetime.now(UTC) + timedelta(days=30), **given)
    other = keys.add(key_file, "bob")
    found = Keys(key_file)
    new = keys.rotate(key_file, old[3:11], timedelta(hours=1))
    assert found.check(new, "explain") == Client("alice", new[3:11], **given)
    assert found.check(old, "predict").name == "alice"  # both are valid for an hour
    before, _, after = keys.listing(key_file)
    assert (before.id, after.id) == (old[3:11], new[3:11])
    assert before.expires - datetime.now(UTC) < timedelta(hours=1)
    assert abs(after.expires - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert found.check(other, "predict").name == "bob"
    assert found.next_expiry() == before.expires.timestamp()


def test_a_key_that_ends_sooner_anyway_does_not_live_longer_by_being_rotated(key_file):
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    old = keys.add(key_file, "alice", expires=soon)
    keys.rotate(key_file, old[3:11], timedelta(days=1))
    assert keys.listing(key_file)[0].expires == soon


def test_without_overlap_the_old_key_ends_at_once(key_file):
    old = keys.add(key_file, "alice")
    new = keys.rotate(key_file, old[3:11], timedelta(0))
    assert Keys(key_file).check(old, "predict").reason == "auth_expired"
    assert Keys(key_file).check(new, "predict").name == "alice"
    assert keys.listing(key_file)[1].expires is None


def test_keys_that_open_nothing_are_not_rotated(key_file):
    gone = keys.add(key_file, "a", expires=datetime.now(UTC) - timedelta(days=1))
    off = keys.add(key_file, "b")
    keys.switch(key_file, "b", disabled=True)
    for text in (gone, off):
        with pytest.raises(InputError, match="is disabled or has expired"):
            keys.rotate(key_file, text[3:11])
    with pytest.raises(InputError, match="no key has the id 'nobody'"):
        keys.rotate(key_file, "nobody")
    assert len(keys.listing(key_file)) == 2


def test_the_next_key_to_expire_is_known(key_file):
    assert not key_file.exists()
    keys.add(key_file, "never")
    assert Keys(key_file).next_expiry() is None
    past, near, far = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1, 9))
    for when in (past, far, near):
        keys.add(key_file, "a", expires=when)
    assert Keys(key_file).next_expiry() == pytest.approx(near.timestamp(), abs=1)
