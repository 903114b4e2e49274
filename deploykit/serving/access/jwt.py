"""JSON Web Tokens of an identity provider, accepted beside keys.

A token is accepted if it is signed with RS256 or ES256 by a key of the provider's set (JWKS, from a file or a URL), was
issued by that provider for this service, and is valid now. Its scopes are those in its claim `scope` that this service
has, and its client is its subject. The limits of each subject are a setting, which the claim `deploykit_limits` may
lower. A set in a file is followed as the key file is; one at a URL is fetched in the background.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploykit.errors import InputError, missing_extra_error
from deploykit.serving.access import check
from deploykit.serving.access.check import Refusal
from deploykit.serving.access.jwks import KeySet, RemoteKeys
from deploykit.serving.access.watched_file import WatchedFile
from deploykit.serving.call import LIMITS, SCOPES, Client, ClientLimits, Scope
from deploykit.serving.problems import Problem, retry_after

ALGORITHMS = ("RS256", "ES256")  # never the one that the token itself names
LEEWAY_S = 30  # clocks of two machines may differ
LIMITS_CLAIM = "deploykit_limits"
NO_LIMITS = ClientLimits()
UNSAFE_CHARACTER = re.compile(r"[^\w.@/|-]")  # replaced in the logged name of a subject
MAX_NAME_LENGTH = 40


class Tokens:
    """The check of tokens of one provider.

    Args:
        jwks: a file or a URL of the provider's keys.
        issuer: value of the claim `iss`.
        audience: value in the claim `aud`.
        limits: of each subject; none by default.

    Raises:
        InputError: the file cannot be read or holds no usable key.
        MissingExtraError: the library is not installed.
    """

    def __init__(self, jwks: str, issuer: str, audience: str, limits: ClientLimits = NO_LIMITS) -> None:
        try:
            import jwt
        except ImportError as error:
            raise missing_extra_error("a service with tokens", error.name, "jwt") from error
        self._jwt: Any = jwt
        self._source, self._issuer, self._audience, self._limits = jwks, issuer, audience, limits
        self._set: WatchedFile[KeySet] | RemoteKeys
        if "://" in jwks:
            self._set = RemoteKeys(jwks, self._parse)
        else:
            self._set = WatchedFile("keys for tokens", Path(jwks), self._read)

    @property
    def failures(self) -> int:
        """How often the keys could not be read or fetched."""
        return self._set.failures

    def start(self) -> None:
        """Starts to fetch the keys at a URL, in the running event loop."""
        if isinstance(self._set, RemoteKeys):
            self._set.start()

    def close(self) -> None:
        """Stops to fetch keys."""
        if isinstance(self._set, RemoteKeys):
            self._set.close()

    @staticmethod
    def is_one(text: str) -> bool:
        """Says whether a text has the form of a token, which no key has."""
        return text.startswith("ey") and text.count(".") == 2  # header, claims and signature

    def check(self, text: str, scope: Scope) -> Client | Refusal:
        """Decides whether a token allows the scope that a route needs.

        Raises:
            Problem: 503, the provider's keys were not fetched yet.
        """
        claims = self._verified_claims(text)
        if isinstance(claims, Refusal):
            return claims
        scopes = claims.get("scope", "")
        scopes = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
        if scope not in scopes:
            allowed = ", ".join(name for name in SCOPES if name in scopes) or "nothing"
            detail = f"the token lacks the scope {scope!r} that this route needs; it opens {allowed}"
            return Refusal(403, "auth_scope", detail)
        try:
            limits = self._lowered(claims.get(LIMITS_CLAIM, {}))
        except ValidationError:
            names = ", ".join(LIMITS)
            detail = f"the token's claim {LIMITS_CLAIM} must be an object of whole numbers from 1 on: {names}"
            return Refusal(401, "auth_invalid", detail)
        name = _client_name(str(claims["sub"]))
        return Client(name, name, **limits)

    def _verified_claims(self, text: str) -> dict[str, Any] | Refusal:
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(text)
            key = self._key(str(header.get("kid", "")))
            if key is None or header.get("alg") not in ALGORITHMS:
                return Refusal(401, "auth_invalid", "the token is not signed by a key that this service trusts")
            claims: dict[str, Any] = jwt.decode(
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
        return claims

    def _key(self, identity: str) -> Any:
        """Returns the key of an id; None if the set has no such key."""
        self._set.refresh(check.POLL_S)
        if identity not in self._set.content:
            self._set.refresh(check.POLL_S, at_once=True)
        if not self._set.content:
            detail = "the identity provider's keys are not here yet; try again, or use a key of this service"
            raise Problem(503, "not_ready", detail, headers=retry_after(1))
        return self._set.content.get(identity)

    def _lowered(self, claim: Any) -> dict[str, int | None]:
        """Returns the limits of a token: of each kind the lower one of the setting and the claim."""
        claimed = ClientLimits.model_validate(claim, strict=True)
        pairs = {name: (getattr(self._limits, name), getattr(claimed, name)) for name in LIMITS}
        return {name: min(filter(None, pair), default=None) for name, pair in pairs.items()}

    def _read(self, path: Path) -> KeySet:
        try:
            return self._parse(path.read_bytes())
        except OSError as error:
            raise InputError(f"the keys for tokens {path} cannot be read: {error.strerror}") from error

    def _parse(self, content: bytes) -> KeySet:
        try:
            parsed = self._jwt.PyJWKSet.from_dict(json.loads(content)).keys
        except (ValueError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
            raise InputError(f"{self._source} holds no set of keys (JWKS): {error}") from error
        keys = {str(key.key_id): key for key in parsed if key.key_id and key.algorithm_name in ALGORITHMS}
        if not keys:
            raise InputError(f"{self._source} has no key with an id for {' or '.join(ALGORITHMS)}")
        return keys


def _client_name(subject: str) -> str:
    """Returns a name that no other subject, and no client with a key, has."""
    name = UNSAFE_CHARACTER.sub("_", subject)[:MAX_NAME_LENGTH]
    return f"jwt:{name}" if name == subject else f"jwt:{name}:{hashlib.sha256(subject.encode()).hexdigest()[:12]}"
