"""Who gets in: the check that every request passes, against the keys of a file that a running service follows.

Also what is known of who was let in, and why somebody was not, for whatever checks: tokens are checked in `tokens`.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deploykit.serving.access.keys import LIMITS, Scope, listing
from deploykit.serving.access.watched_file import WatchedFile

KEY = re.compile(r"dk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
POLL_S = 1.0  # how often a running service looks whether the file has changed


@dataclass(frozen=True)
class Client:
    """Who asks, as the key file knows them; the name is safe to log and to count by."""

    name: str
    key: str = ""
    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in: its status, the reason that is counted, and what the client reads."""

    status: Literal[401, 403]
    reason: str
    detail: str


class Keys:
    """The keys of a running service, which follow their file."""

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile("keys", path, lambda path: {(key.id, key.sha256): key for key in listing(path)})

    def __len__(self) -> int:
        return len(self._file.content)

    @property
    def failures(self) -> int:
        """How often a changed key file could not be read."""
        return self._file.failures

    def check(self, text: str | None, scope: Scope) -> Client | Refusal:
        """Decides whether a key opens a scope.

        A record is found by the id and the hash together: a wrong secret finds nothing, whether or not the id
        exists, so that the time it takes does not tell which ids there are. What is not found may be a key that
        was made a moment ago.

        Args:
            text: the key as the client sent it; None when it sent none.
            scope: what the route needs.
        """
        self._file.look(POLL_S)
        if not text:
            return Refusal(401, "auth_missing", "this route needs a key: send it as `Authorization: Bearer dk_...`")
        match = KEY.fullmatch(text)
        identity, secret = match.groups() if match else ("", "")
        mark = identity, hashlib.sha256(secret.encode()).hexdigest()
        if mark not in self._file.content:
            self._file.look(POLL_S, at_once=True)
        key = self._file.content.get(mark)
        if key is None:
            return Refusal(401, "auth_invalid", "the key is not one of this service's keys")
        now = datetime.now(UTC)
        if key.disabled:
            return Refusal(401, "auth_disabled", "the key is disabled; ask who gave it to you")
        if key.not_before is not None and now < key.not_before:
            return Refusal(401, "auth_early", f"the key is valid from {key.not_before:%Y-%m-%d %H:%M %Z} on")
        if key.expires is not None and key.expires <= now:
            return Refusal(
                401, "auth_expired", f"the key expired on {key.expires:%Y-%m-%d %H:%M %Z}; ask for a new one"
            )
        if scope not in key.scopes:
            opens = ", ".join(key.scopes)
            return Refusal(
                403, "auth_scope", f"the key lacks the scope {scope!r} that this route needs; it has {opens}"
            )
        limits = {name: getattr(key, name) for name in LIMITS}
        return Client(key.client, key.id, **limits)

    def next_expiry(self) -> float | None:
        """Returns the time, in seconds since 1970, at which the next key expires; None where none does."""
        now = datetime.now(UTC)
        ends = [key.expires for key in self._file.content.values() if key.expires is not None and key.expires > now]
        return min(ends).timestamp() if ends else None
