"""API keys: the key file, and the functions that change it. `check` checks requests against it.

A key has the form `dk_ID_SECRET`. The id is that of its record in the key file, which is JSON. The secret is 256 random
bits, and the file holds only their SHA-256: a fast hash is enough for a secret that nobody can guess. The file is
replaced as a whole, so that a reader never sees half of one.
"""

import fcntl
import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from deploykit.artifact import atomic
from deploykit.errors import InputError, storage_errors
from deploykit.methods import Frozen, did_you_mean
from deploykit.serving.call import SCOPES, ClientLimits, Scope
from deploykit.serving.settings import KEYS_VARIABLE
from deploykit.serving.settings import default_key_file as default_key_file

ROTATION_OVERLAP = timedelta(days=1)  # how long an old key and its successor are both valid


class Key(ClientLimits):
    """The record of a key in the key file, without its secret; `rotated` says that it has a successor."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    client: str = Field(min_length=1, max_length=64)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created: AwareDatetime
    not_before: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    disabled: bool = False
    rotated: bool = False


class KeyFile(Frozen):
    """The content of a key file."""

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def add(
    path: Path,
    client: str,
    scopes: Sequence[str] = ("predict", "metrics"),
    *,
    not_before: datetime | None = None,
    expires: datetime | None = None,
    **limits: int | None,
) -> str:
    """Makes a key and stores its hash.

    Args:
        path: the key file; made if there is none.
        client: the name to log and to count by; one client may have several keys.
        scopes: what the key allows, some of `SCOPES`.
        not_before: from when it is valid; needs a time zone.
        expires: until when it is valid; needs a time zone.
        limits: any of `ClientLimits`; none by default.

    Returns:
        The key. It cannot be shown again.

    Raises:
        InputError: an unknown scope, an empty name, a limit below 1, or a damaged file.
        StorageError: the file cannot be written.

    Example:
        >>> add(Path("keys.json"), "alice", ["predict"], requests_per_minute=60)  # doctest: +SKIP
        'dk_1f0c22ab_Yk…'
    """
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        near = did_you_mean(unknown[0], SCOPES)
        raise InputError(f"no scope is called {unknown[0]!r}{near}. There are: {', '.join(SCOPES)}.")
    if expires and not_before and expires <= not_before:
        raise InputError(f"the key would expire ({expires}) before it is valid ({not_before}). Let it expire later.")
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    try:
        text, key = _new_key(client=client, scopes=ordered, not_before=not_before, expires=expires, **limits)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))} of the key: {first['msg']}") from error
    with _locked(path):
        _write(path, [*(read_keys(path) if path.exists() else ()), key])
    return text


def rotate(path: Path, identity: str, overlap: timedelta = ROTATION_OVERLAP) -> str:
    """Makes a successor of a key, with the same scopes and limits; the old key expires after an overlap.

    Args:
        path: the key file.
        identity: the id of the old key.
        overlap: how long both keys are valid; zero ends the old one at once.

    Returns:
        The new key. It cannot be shown again.

    Raises:
        InputError: there is no such id, the key is disabled, has expired or was rotated before, or the file cannot be
            read.
        StorageError: the file cannot be written.
    """
    with _locked(path):
        keys, now = read_keys(path), datetime.now(UTC).replace(microsecond=0)
        old = next((key for key in keys if key.id == identity), None)
        if old is None:
            near = did_you_mean(identity, [key.id for key in keys])
            raise InputError(f"no key has the id {identity!r}{near}. See: deploykit keys list")
        if old.disabled or (old.expires is not None and old.expires <= now):
            raise InputError(f"the key {identity} is disabled or has expired. Make a new one with: deploykit keys add")
        if old.rotated:  # its `expires` is the end of the overlap, so that its lifetime is not known any more
            raise InputError(
                f"the key {identity} was rotated before. Rotate the one that followed it; see: deploykit keys list"
            )
        text, successor = _successor(old, now)
        end = min(now + overlap, old.expires) if old.expires else now + overlap
        ended = old.model_copy(update={"expires": end, "rotated": True})
        _write(path, [*(ended if key is old else key for key in keys), successor])
    return text


def _successor(old: Key, now: datetime) -> tuple[str, Key]:
    """Makes a key with the scopes, limits and lifetime of an old one."""
    kept_fields = old.model_dump(exclude={"id", "sha256", "created", "not_before", "expires", "rotated"})
    not_before = old.not_before if old.not_before is not None and old.not_before > now else None
    expires = old.expires and (not_before or now) + (old.expires - (old.not_before or old.created))
    return _new_key(**kept_fields, not_before=not_before, expires=expires)


def _new_key(**fields: Any) -> tuple[str, Key]:
    """Makes a key; returns the text that its client gets, and its record with these fields."""
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    sha256, created = hashlib.sha256(secret.encode()).hexdigest(), datetime.now(UTC).replace(microsecond=0)
    return f"dk_{identity}_{secret}", Key(id=identity, sha256=sha256, created=created, **fields)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Reads the keys of a file, the oldest first.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        raise InputError(f"there is no key file {path}. Make one with: deploykit keys add NAME") from None
    except (OSError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
        raise InputError(
            f"the key file {path} cannot be read: {reason}. Restore it, or delete it and add the keys anew."
        ) from error


def revoke(path: Path, id_or_client: str) -> tuple[Key, ...]:
    """Removes the key of an id, or all keys of a client, and returns them; services follow within a second.

    Raises:
        InputError: there is no such id or client, or the file cannot be read.
        StorageError: the file cannot be written.
    """
    with _locked(path):
        keys = read_keys(path)
        removed = _select(keys, id_or_client)
        _write(path, (key for key in keys if key not in removed))
    return removed


def set_disabled(path: Path, id_or_client: str, *, disabled: bool) -> tuple[Key, ...]:
    """Disables or enables the key of an id, or all keys of a client, and returns them as they are now.

    Raises:
        InputError: there is no such id or client, or the file cannot be read.
        StorageError: the file cannot be written.
    """
    with _locked(path):
        keys = read_keys(path)
        changed = {key.id: key.model_copy(update={"disabled": disabled}) for key in _select(keys, id_or_client)}
        _write(path, (changed.get(key.id, key) for key in keys))
    return tuple(changed.values())


def _select(keys: Sequence[Key], id_or_client: str) -> tuple[Key, ...]:
    """Returns the key of an id, or all keys of a client; raises an `InputError` if there is none."""
    selected = tuple(key for key in keys if id_or_client in (key.id, key.client))
    if not selected:
        names = sorted({name for key in keys for name in (key.id, key.client)})
        near = did_you_mean(id_or_client, names)
        raise InputError(f"no key has the id or the client {id_or_client!r}{near}. See: deploykit keys list")
    return selected


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes of this machine from changing a key file while the block lasts."""
    with storage_errors(path, "`--keys`, or DEPLOYKIT_KEYS"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = path.resolve()
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _write(path: Path, keys: Iterable[Key]) -> None:
    """Replaces a key file; the new one has the permissions of the old one, and those of a private file if it is new."""
    path = path.resolve()  # replaces the target of a symbolic link, not the link
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(KeyFile(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True) + "\n")
        if path.exists():  # the same users may read it: the user of a container is not the one who adds keys
            status = path.stat()
            draft.chmod(status.st_mode & 0o777)
            with suppress(PermissionError):
                os.chown(draft, status.st_uid, status.st_gid)
        atomic.move(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Adds a key where only the serving part is installed: `python -m deploykit.serving.keys NAME [FILE]`."""
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python -m deploykit.serving.keys NAME [FILE]")
    file = arguments[1] if len(arguments) == 2 else os.environ.get(KEYS_VARIABLE)
    sys.stdout.write(add(Path(file) if file else default_key_file(), arguments[0]) + "\n")
