"""API keys: a small JSON file of hashes, and the commands that change it; `access` checks requests against it.

A key reads `dk_<id>_<secret>`: the id finds its record, the secret is 256 random bits, of which the file
holds the sha256 only; a fast hash is right for a secret that nobody can guess. Files are replaced as a
whole, so that a reader never sees half of one.
"""

import fcntl
import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from deploykit.errors import InputError, storage_errors
from deploykit.methods import did_you_mean

Scope = Literal["predict", "explain", "metrics", "docs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
OVERLAP = timedelta(days=1)  # how long an old key and its successor are both valid


class ClientLimits(BaseModel):
    """How much a client may ask for; None is no limit. `concurrency` is of each replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrency: int | None = Field(default=None, ge=1)


LIMITS = tuple(ClientLimits.model_fields)


class Key(ClientLimits):
    """What is kept of a key: never the secret."""

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    client: str = Field(min_length=1, max_length=64)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created: AwareDatetime
    not_before: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    disabled: bool = False
    rotated: bool = False


class KeyFile(BaseModel):
    """The file as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def default_path() -> Path:
    """Returns where keys are kept when nobody says otherwise."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "deploykit" / "keys.json"


def add(
    path: Path,
    client: str,
    scopes: Sequence[str] = ("predict", "metrics"),
    *,
    not_before: datetime | None = None,
    expires: datetime | None = None,
    requests_per_minute: int | None = None,
    requests_per_day: int | None = None,
    tokens_per_minute: int | None = None,
    concurrency: int | None = None,
) -> str:
    """Makes a key and stores its hash.

    Args:
        path: the key file; made if it is not there.
        client: the name to log and count by; one client may hold several keys.
        scopes: what the key opens, some of `SCOPES`.
        not_before: until when it is refused; needs a time zone.
        expires: from when on it is refused; needs a time zone.
        requests_per_minute: the most that it may send; no limit by default, and so for the others.
        requests_per_day: the most that it may send.
        tokens_per_minute: the most that its texts may have.
        concurrency: requests that may be in progress at the same time, in each replica.

    Returns:
        The key. It cannot be shown again.

    Raises:
        InputError: an unknown scope, an empty name, a file that is damaged.
        StorageError: the file cannot be written.

    Example:
        >>> add(Path("keys.json"), "alice", ["predict"])  # doctest: +SKIP
        'dk_1f0c22ab_Yk…'
    """
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        near = did_you_mean(unknown[0], SCOPES)
        raise InputError(f"no scope is called {unknown[0]!r}{near}. There are: {', '.join(SCOPES)}.")
    if expires and not_before and expires <= not_before:
        raise InputError(f"the key would expire ({expires}) before it is valid ({not_before}). Let it expire later.")
    try:
        text, key = _made(
            client=client,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            not_before=not_before,
            expires=expires,
            requests_per_minute=requests_per_minute,
            requests_per_day=requests_per_day,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))} of the key: {first['msg']}") from error
    with _changing(path):
        _write(path, [*(listing(path) if path.exists() else ()), key])
    return text


def rotate(path: Path, identity: str, overlap: timedelta = OVERLAP) -> str:
    """Makes a key that allows what another one does, which expires once its holder has had time to change.

    Args:
        path: the key file.
        identity: the id of the old key.
        overlap: how long both are valid; zero ends the old one at once.

    Returns:
        The new key. It cannot be shown again.

    Raises:
        InputError: nobody has that id, the key is disabled, has expired or was rotated before, or the file cannot be
            read.
        StorageError: the file cannot be written.
    """
    with _changing(path):
        keys, now = listing(path), datetime.now(UTC).replace(microsecond=0)
        old = next((key for key in keys if key.id == identity), None)
        if old is None:
            near = did_you_mean(identity, [key.id for key in keys])
            raise InputError(f"no key has the id {identity!r}{near}. See: deploykit keys list")
        if old.disabled or (old.expires is not None and old.expires <= now):
            raise InputError(f"the key {identity} is disabled or has expired. Make a new one with: deploykit keys add")
        if old.rotated:  # it ends soon, and how long its kind lasts is not known of it any more
            raise InputError(
                f"the key {identity} was rotated before. Rotate the one that followed it; see: deploykit keys list"
            )
        kept = old.model_dump(exclude={"id", "sha256", "created", "not_before", "expires", "rotated"})
        begins = old.not_before if old.not_before is not None and old.not_before > now else None
        lasts = old.expires and (begins or now) + (old.expires - (old.not_before or old.created))
        text, fresh = _made(**kept, not_before=begins, expires=lasts)
        end = min(now + overlap, old.expires) if old.expires else now + overlap
        ended = old.model_copy(update={"expires": end, "rotated": True})
        _write(path, [*(ended if key is old else key for key in keys), fresh])
    return text


def _made(**facts: Any) -> tuple[str, Key]:
    """Returns a new key as its holder sees it, and what is kept of it."""
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    hashed, now = hashlib.sha256(secret.encode()).hexdigest(), datetime.now(UTC).replace(microsecond=0)
    return f"dk_{identity}_{secret}", Key(id=identity, sha256=hashed, created=now, **facts)


def listing(path: Path) -> tuple[Key, ...]:
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
    """Removes one key by its id, or all keys of a client; running services follow within a second.

    Returns:
        The keys that were removed.

    Raises:
        InputError: nobody has that id or name, or the file cannot be read.
        StorageError: the file cannot be written.
    """
    with _changing(path):
        keys = listing(path)
        gone = _named(keys, id_or_client)
        _write(path, [key for key in keys if key not in gone])
    return gone


def switch(path: Path, id_or_client: str, *, disabled: bool) -> tuple[Key, ...]:
    """Disables or enables one key by its id, or all keys of a client; running services follow within a second.

    Returns:
        The keys as they are now.

    Raises:
        InputError: nobody has that id or name, or the file cannot be read.
        StorageError: the file cannot be written.
    """
    with _changing(path):
        keys = listing(path)
        meant = _named(keys, id_or_client)
        changed = {key.id: key.model_copy(update={"disabled": disabled}) for key in meant}
        _write(path, [changed.get(key.id, key) for key in keys])
    return tuple(changed.values())


def _named(keys: Sequence[Key], id_or_client: str) -> tuple[Key, ...]:
    found = tuple(key for key in keys if id_or_client in (key.id, key.client))
    if not found:
        names = sorted({name for key in keys for name in (key.id, key.client)})
        near = did_you_mean(id_or_client, names)
        raise InputError(f"no key has the id or the client {id_or_client!r}{near}. See: deploykit keys list")
    return found


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Holds off others who change the same file, on this machine."""
    with storage_errors(path, "`--keys`, or DEPLOYKIT_KEYS"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = path.resolve()
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _write(path: Path, keys: Iterable[Key]) -> None:
    path = path.resolve()  # the file that a link names, and not the link
    content = KeyFile(keys=tuple(keys)).model_dump(mode="json", exclude_none=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():  # who may read it stays as it was: a container's user is not the one who adds keys
            before = path.stat()
            draft.chmod(before.st_mode & 0o777)
            with suppress(PermissionError):
                os.chown(draft, before.st_uid, before.st_gid)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: Sequence[str] = sys.argv[1:]) -> None:
    """Adds a key where only the serving part is installed: `python -m deploykit.serving.keys NAME [FILE]`."""
    if not 1 <= len(arguments) <= 2:
        sys.exit("usage: python -m deploykit.serving.keys NAME [FILE]")
    path = Path(arguments[1]) if len(arguments) == 2 else Path(os.environ.get("DEPLOYKIT_KEYS") or default_path())
    sys.stdout.write(add(path, arguments[0]) + "\n")


if __name__ == "__main__":
    main()
