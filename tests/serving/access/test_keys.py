"""The key file and what changes it: refusals first."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from deploykit.errors import InputError
from deploykit.serving.access import check, keys
from deploykit.serving.access.check import KeyChecker
from deploykit.serving.call import LIMIT_NAMES, Client


def test_a_missing_file_says_how_to_make_one(key_file):
    with pytest.raises(InputError, match=r"keys\.json.*deploykit keys add NAME"):
        KeyChecker(key_file)


@pytest.mark.parametrize("content", ["{", "[]", '{"keys": [{"id": "x"}]}', '{"version": 2, "keys": []}'])
def test_a_damaged_file_is_named(key_file, content):
    key_file.write_text(content)
    with pytest.raises(InputError, match=r"keys\.json cannot be read"):
        keys.read_keys(key_file)


def test_an_unknown_scope_is_refused_with_the_nearest(key_file):
    with pytest.raises(InputError, match="did you mean 'predict'"):
        keys.add(key_file, "alice", ["predcit"])
    assert not key_file.exists()


def test_revoking_nobody_names_the_nearest(key_file, alice):
    with pytest.raises(InputError, match="did you mean 'alice'"):
        keys.revoke(key_file, "alcie")


def test_only_hashes_are_stored_and_only_the_owner_reads_them(key_file, alice):
    secret = alice.split("_", 2)[2]
    assert secret not in key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert secret not in repr(keys.read_keys(key_file))
    assert set(json.loads(key_file.read_text())["keys"][0]) == {
        *("id", "sha256", "client", "scopes", "created", "disabled", "rotated")
    }


def test_revoking_by_id_and_by_client(key_file):
    first, second, third = (keys.add(key_file, name) for name in ("alice", "alice", "bob"))
    (gone,) = keys.revoke(key_file, first.split("_")[1])
    assert gone.client == "alice"
    assert len(keys.revoke(key_file, "alice")) == 1
    assert [key.id for key in keys.read_keys(key_file)] == [third.split("_")[1]]
    assert second != third


def test_whoever_could_read_the_file_still_can_after_a_change(key_file, alice):
    """A container's user is not the one who revokes."""
    key_file.chmod(0o644)
    keys.revoke(key_file, "alice")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o644


def test_a_key_is_made_without_the_command_line(key_file, capsys):
    with pytest.raises(SystemExit, match="usage: python -m deploykit"):
        keys.main([])
    keys.main(["carol", str(key_file)])
    assert isinstance(KeyChecker(key_file).check(capsys.readouterr().out.strip(), "predict"), Client)


def test_a_key_that_would_end_before_it_begins_is_refused(key_file):
    now = datetime.now(UTC)
    with pytest.raises(InputError, match=r"expire .* before it is valid"):
        keys.add(key_file, "alice", not_before=now + timedelta(days=2), expires=now + timedelta(days=1))
    assert not key_file.exists()


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_a_limit_of_nothing_is_refused(key_file, name):
    with pytest.raises(InputError, match=f"{name} of the key: Input should be greater than or equal to 1"):
        keys.add(key_file, "alice", **{name: 0})


def test_a_rotated_key_allows_the_same_and_the_old_one_ends(key_file, monkeypatch):
    monkeypatch.setattr(check, "POLL_S", 0.0)
    given = dict(zip(LIMIT_NAMES, (10, 20, 30, 40), strict=True))
    old = keys.add(key_file, "alice", ["predict", "explain"], expires=datetime.now(UTC) + timedelta(days=30), **given)
    other = keys.add(key_file, "bob")
    found = KeyChecker(key_file)
    new = keys.rotate(key_file, old[3:11], timedelta(hours=1))
    assert found.check(new, "explain") == Client("alice", new[3:11], **given)
    assert found.check(old, "predict").name == "alice"  # both are valid for an hour
    before, _, after = keys.read_keys(key_file)
    assert (before.id, after.id) == (old[3:11], new[3:11])
    assert before.expires - datetime.now(UTC) < timedelta(hours=1)
    assert abs(after.expires - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert found.check(other, "predict").name == "bob"
    assert found.next_expiry() == before.expires.timestamp()


def test_a_key_that_is_not_valid_yet_is_not_by_being_rotated(key_file):
    now = datetime.now(UTC).replace(microsecond=0)
    begins, ends = now + timedelta(days=10), now + timedelta(days=40)
    old = keys.add(key_file, "alice", not_before=begins, expires=ends)
    new = keys.rotate(key_file, old[3:11], timedelta(days=20))
    assert KeyChecker(key_file).check(new, "predict").reason == "auth_early"
    assert (keys.read_keys(key_file)[1].not_before, keys.read_keys(key_file)[1].expires) == (begins, ends)


def test_a_link_to_a_key_file_stays_one(key_file, tmp_path):
    keys.add(key_file, "alice")
    link = tmp_path / "link.json"
    link.symlink_to(key_file)
    keys.add(link, "bob")
    assert link.is_symlink()
    assert [key.client for key in keys.read_keys(key_file)] == ["alice", "bob"]
    keys.revoke(link, "alice")
    assert [key.client for key in keys.read_keys(key_file)] == ["bob"]


def test_a_key_that_ends_sooner_anyway_does_not_live_longer_by_being_rotated(key_file):
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)
    old = keys.add(key_file, "alice", expires=soon)
    keys.rotate(key_file, old[3:11], timedelta(days=1))
    assert keys.read_keys(key_file)[0].expires == soon


def test_without_overlap_the_old_key_ends_at_once(key_file):
    old = keys.add(key_file, "alice")
    new = keys.rotate(key_file, old[3:11], timedelta(0))
    assert KeyChecker(key_file).check(old, "predict").reason == "auth_expired"
    assert KeyChecker(key_file).check(new, "predict").name == "alice"
    assert keys.read_keys(key_file)[1].expires is None


def test_a_key_that_was_rotated_leaves_its_place_to_the_one_that_followed(key_file):
    old = keys.add(key_file, "alice")
    new = keys.rotate(key_file, old[3:11])
    with pytest.raises(InputError, match=rf"the key {old[3:11]} was rotated before\. Rotate the one that followed it"):
        keys.rotate(key_file, old[3:11])  # or what follows would end as soon as the old one does
    keys.rotate(key_file, new[3:11])
    assert [key.expires is None for key in keys.read_keys(key_file)] == [False, False, True]


def test_keys_that_open_nothing_are_not_rotated(key_file):
    gone = keys.add(key_file, "a", expires=datetime.now(UTC) - timedelta(days=1))
    off = keys.add(key_file, "b")
    keys.set_disabled(key_file, "b", disabled=True)
    for text in (gone, off):
        with pytest.raises(InputError, match="is disabled or has expired"):
            keys.rotate(key_file, text[3:11])
    with pytest.raises(InputError, match="no key has the id 'nobody'"):
        keys.rotate(key_file, "nobody")
    assert len(keys.read_keys(key_file)) == 2
