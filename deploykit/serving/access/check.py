"""Checks the key of a request against a key file; a running service notices when the file changes.

Tokens of an identity provider are checked in `jwt`; both checks return a `Client`, or a `Refusal`.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deploykit.serving.access.keys import Key, read_keys
from deploykit.serving.access.watched_file import WatchedFile
from deploykit.serving.call import LIMIT_NAMES, Client, Scope

KEY_PATTERN = re.compile(r"dk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")  # id and secret
POLL_S = 1.0  # seconds between two checks whether the file has changed, at least


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in: the HTTP status, the reason in the metrics, and the detail for the client."""

    status: Literal[401, 403]
    reason: str
    detail: str


class KeyChecker:
    """Checks keys against a key file.

    Args:
        path: the key file.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile("keys", path, _keys_by_id_and_hash)

    def __len__(self) -> int:
        """Returns the number of keys."""
        return len(self._file.content)

    @property
    def failures(self) -> int:
        """How often a changed key file could not be read."""
        return self._file.failures

    def check(self, text: str | None, scope: Scope) -> Client | Refusal:
        """Decides whether a key is valid and allows the scope that a route needs; `text` is what the client sent.

        A key is looked up by its id and the hash of its secret together, so that the time of a refusal does not tell
        whether the id exists. Before a key is refused as unknown, the file is read again if it has changed.
        """
        self._file.refresh(POLL_S)
        if not text:
            return Refusal(401, "auth_missing", "this route needs a key: send it as `Authorization: Bearer dk_...`")
        match = KEY_PATTERN.fullmatch(text)
        identity, secret = match.groups() if match else ("", "")
        id_and_hash = identity, hashlib.sha256(secret.encode()).hexdigest()
        if id_and_hash not in self._file.content:
            self._file.refresh(POLL_S, at_once=True)
        key = self._file.content.get(id_and_hash)
        if key is None:
            return Refusal(401, "auth_invalid", "the key is not one of this service's keys")
        now = datetime.now(UTC)
        if key.disabled:
            return Refusal(401, "auth_disabled", "the key is disabled; ask who gave it to you")
        if key.not_before is not None and now < key.not_before:
            return Refusal(401, "auth_early", f"the key is valid from {key.not_before:%Y-%m-%d %H:%M %Z} on")
        if key.expires is not None and key.expires <= now:
            detail = f"the key expired on {key.expires:%Y-%m-%d %H:%M %Z}; ask for a new one"
            return Refusal(401, "auth_expired", detail)
        if scope not in key.scopes:
            detail = f"the key lacks the scope {scope!r} that this route needs; it has {', '.join(key.scopes)}"
            return Refusal(403, "auth_scope", detail)
        return Client(key.client, key.id, **key.model_dump(include=set(LIMIT_NAMES)))

    def next_expiry(self) -> float | None:
        """Returns when the next key expires, in seconds since 1970; None if no key will."""
        now = datetime.now(UTC)
        expiries = [key.expires for key in self._file.content.values() if key.expires is not None and key.expires > now]
        return min(expiries).timestamp() if expiries else None


def _keys_by_id_and_hash(path: Path) -> dict[tuple[str, str], Key]:
    """Reads a key file; each key is found by its id and the SHA-256 of its secret."""
    return {(key.id, key.sha256): key for key in read_keys(path)}
