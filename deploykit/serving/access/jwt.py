"""JSON Web Tokens beside keys: who an identity provider has let in, comes in here too.

A token is taken when it is signed by RS256 or ES256 with a key of the provider's set (JWKS, from a file or a URL), was
issued by that provider for this service, and is valid now. Its scopes are those of ours that its claim `scope` names,
and its client is its subject. The set is fetched in the background and kept when the provider is away: a request
never waits for it.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, extra_missing
from deploykit.serving.access.check import Client, Refusal
from deploykit.serving.access.keys import SCOPES, Scope
from deploykit.serving.settings import SECURE

ALGORITHMS = ("RS256", "ES256")  # never what the token itself asks for
REFRESH_S = 300.0
AGAIN_S = 10.0  # at the earliest, where a token names a key that nobody knows
FETCH_S, MOST_BYTES = 5.0, 1_000_000
LEEWAY_S = 30  # clocks of two machines may differ
CLIENT = re.compile(r"[^\w.@/|-]")  # what is not logged of a subject
SHOWN = 40  # characters of it
AWAY = (OSError, ValueError, HTTPException, InputError)  # what a provider may do to those who ask for its keys

logger = logging.getLogger("deploykit.serving")


class Tokens:
    """The tokens of one provider.

    Args:
        jwks: a file, or a URL, of the provider's keys.
        issuer: what the claim `iss` must be.
        audience: what the claim `aud` must hold.

    Raises:
        InputError: the file cannot be read or holds no such key.
        MissingExtraError: the library is not installed.
    """

    def __init__(self, jwks: str, issuer: str, audience: str) -> None:
        self.failures = 0
        self._jwt = _library()
        self._source, self._issuer, self._audience = jwks, issuer, audience
        self._keys: Mapping[str, Any] = {}
        self._looked = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        try:
            self._look()
        except AWAY as error:  # it is asked again later
            if not self._remote:
                raise
            self._failed(error)

    @staticmethod
    def is_one(text: str) -> bool:
        """Says whether what a client sent looks like a token, and not like a key."""
        return text.startswith("ey") and text.count(".") == 2  # header, claims and signature

    def check(self, text: str, scope: Scope) -> Client | Refusal:
        """Decides whether a token opens a scope.

        Args:
            text: the token as the client sent it.
            scope: what the route needs.
        """
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(text)
            key = self._keys.get(str(header.get("kid", "")))
            self._follow(known=key is not None)
            if key is None or header.get("alg") not in ALGORITHMS:
                return Refusal(401, "auth_invalid", "the token is not signed by a key that this service trusts")
            claims = jwt.decode(
                text,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            return Refusal(401, "auth_expired", "the token has expired; ask for a new one")
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            return Refusal(401, "auth_early", "the token is not valid yet")
        except (jwt.PyJWTError, ValueError, TypeError):
            return Refusal(401, "auth_invalid", "the token is not for this service, or was changed")
        given = claims.get("scope", "")
        granted = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        if scope not in granted:
            opens = ", ".join(name for name in SCOPES if name in granted) or "nothing"
            detail = f"the token lacks the scope {scope!r} that this route needs; it opens {opens}"
            return Refusal(403, "auth_scope", detail)
        name = _name(str(claims["sub"]))
        return Client(name, name)

    def _follow(self, *, known: bool) -> None:
        """Fetches the keys anew when it is time, or when somebody names one that is not there, but not all the time."""
        since = time.monotonic() - self._looked
        if since >= (REFRESH_S if known else AGAIN_S) and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._look)
        except AWAY as error:
            self._failed(error)

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._keys = self._parsed(_fetch(self._source) if self._remote else _read(self._source))

    @property
    def _remote(self) -> bool:
        return "://" in self._source

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        logger.error("keys for tokens stay as they were: %s", error)

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            found = self._jwt.PyJWKSet.from_dict(json.loads(content)).keys
        except (ValueError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
            raise InputError(f"{self._source} holds no set of keys (JWKS): {error}") from error
        keys = {str(key.key_id): key for key in found if key.key_id and key.algorithm_name in ALGORITHMS}
        if not keys:
            raise InputError(f"{self._source} has no key with an id for {' or '.join(ALGORITHMS)}")
        return keys


def require_provider(jwt: tuple[str, str, str] | None) -> None:
    """Makes sure that tokens could be checked where they are taken; a provider at a URL may be away.

    Raises:
        InputError: the file cannot be read or holds no such key.
        MissingExtraError: the library is not installed.
    """
    if jwt is not None:
        _library() if "://" in jwt[0] else Tokens(*jwt)


def _library() -> Any:
    try:
        import jwt
    except ImportError as error:
        raise extra_missing("a service with tokens", error.name, "jwt") from error
    return jwt


def _name(subject: str) -> str:
    """Names a client so that no other subject, and no holder of a key, has that name."""
    found = CLIENT.sub("_", subject)[:SHOWN]
    return f"jwt:{found}" if found == subject else f"jwt:{found}:{hashlib.sha256(subject.encode()).hexdigest()[:12]}"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"the keys for tokens {path} cannot be read: {error.strerror}") from error


class _Secure(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where keys cannot be changed on their way."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        """Refuses other targets."""
        if not newurl.startswith(SECURE):
            raise OSError(f"{req.full_url} redirects to {newurl}, which is neither https nor this machine")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310  https only
    with urllib.request.build_opener(_Secure).open(request, timeout=FETCH_S) as response:
        content: bytes = response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{url} answers with more than {MOST_BYTES} bytes")
    return content
