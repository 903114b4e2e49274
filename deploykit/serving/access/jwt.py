"""JSON Web Tokens of an identity provider, accepted beside keys.

A token is accepted if it is signed with RS256 or ES256 by a key of the provider's set (JWKS, from a file or a URL), was
issued by that provider for this service, and is valid now. Its scopes are those in its claim `scope` that this service
has, and its client is its subject. The limits of each subject are a setting, which the claim `deploykit_limits` may
lower. A set in a file is read again when it changes, as the key file is; one at a URL is fetched in the background.
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
from deploykit.serving.access.jwks import KeySet, RemoteKeySet
from deploykit.serving.access.watched_file import WatchedFile
from deploykit.serving.call import LIMIT_NAMES, SCOPES, Client, ClientLimits, Scope
from deploykit.serving.problems import Problem, retry_after_header

ALGORITHMS = ("RS256", "ES256")  # a token that names another one is refused
LEEWAY_S = 30  # by which the clocks of two machines may differ
LIMITS_CLAIM = "deploykit_limits"  # an object: names of `ClientLimits` and whole numbers
NO_LIMITS = ClientLimits()
UNSAFE_CHARACTER = re.compile(r"[^\w.@/|-]")  # replaced in the name of a client
MAX_NAME_CHARACTERS = 40  # of a subject, in the name of a client


class TokenChecker:
    """Checks the tokens of one identity provider.

    Args:
        jwks: the file or the URL of the provider's keys.
        issuer: value of the claim `iss`.
        audience: value in the claim `aud`.
        limits: of each subject; none by default.

    Raises:
        InputError: the file cannot be read or holds no usable key.
        MissingExtraError: PyJWT is not installed.
    """

    def __init__(self, jwks: str, issuer: str, audience: str, limits: ClientLimits = NO_LIMITS) -> None:
        try:
            import jwt
        except ImportError as error:
            raise missing_extra_error("a service with tokens", error.name, "jwt") from error
        self._jwt: Any = jwt
        self._source, self._issuer, self._audience, self._limits = jwks, issuer, audience, limits
        self._key_set: WatchedFile[KeySet] | RemoteKeySet
        if "://" in jwks:
            self._key_set = RemoteKeySet(jwks, self._parse)
        else:
            self._key_set = WatchedFile("keys for tokens", Path(jwks), self._read)

    @property
    def failures(self) -> int:
        """How often the keys could not be read or fetched."""
        return self._key_set.failures

    def start(self) -> None:
        """Starts to fetch the keys at a URL, in the running event loop."""
        if isinstance(self._key_set, RemoteKeySet):
            self._key_set.start()

    def close(self) -> None:
        """Stops to fetch keys."""
        if isinstance(self._key_set, RemoteKeySet):
            self._key_set.close()

    @staticmethod
    def is_token(text: str) -> bool:
        """Says whether a text has the form of a JSON Web Token; no key has it."""
        return text.startswith("ey") and text.count(".") == 2  # header, claims and signature

    def check(self, text: str, scope: Scope) -> Client | Refusal:
        """Decides whether a token is valid and allows the scope that a route needs.

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
            limits = self._token_limits(claims.get(LIMITS_CLAIM, {}))
        except ValidationError:
            names = ", ".join(LIMIT_NAMES)
            detail = f"the token's claim {LIMITS_CLAIM} must be an object of whole numbers from 1 on: {names}"
            return Refusal(401, "auth_invalid", detail)
        name = _client_name(str(claims["sub"]))
        return Client(name, name, **limits)

    def _verified_claims(self, text: str) -> dict[str, Any] | Refusal:
        """Returns the claims of a token, if it is signed by a trusted key, meant for this service, and valid now."""
        jwt = self._jwt
        try:
            header = jwt.get_unverified_header(text)
            key = self._find_key(str(header.get("kid", "")))
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

    def _find_key(self, key_id: str) -> Any:
        """Returns a key of the set by its id; None if there is none. Raises a problem (503) if the set is empty yet."""
        self._key_set.refresh(check.POLL_S)
        if key_id not in self._key_set.content:
            self._key_set.refresh(check.POLL_S, at_once=True)
        if not self._key_set.content:
            detail = "the identity provider's keys are not here yet; try again, or use a key of this service"
            raise Problem(503, "not_ready", detail, headers=retry_after_header(1))
        return self._key_set.content.get(key_id)

    def _token_limits(self, claim: Any) -> dict[str, int | None]:
        """Returns the limits of a token: for each name the lower one of the setting and the claim; None is no limit."""
        claimed = ClientLimits.model_validate(claim, strict=True)
        pairs = {name: (getattr(self._limits, name), getattr(claimed, name)) for name in LIMIT_NAMES}
        return {name: min(filter(None, pair), default=None) for name, pair in pairs.items()}

    def _read(self, path: Path) -> KeySet:
        """Reads a key set from a file."""
        try:
            return self._parse(path.read_bytes())
        except OSError as error:
            raise InputError(f"the keys for tokens {path} cannot be read: {error.strerror}") from error

    def _parse(self, content: bytes) -> KeySet:
        """Returns the usable keys of a key set in JSON; raises an `InputError` if there are none."""
        try:
            parsed = self._jwt.PyJWKSet.from_dict(json.loads(content)).keys
        except (ValueError, TypeError, AttributeError, self._jwt.PyJWTError) as error:
            raise InputError(f"{self._source} holds no set of keys (JWKS): {error}") from error
        keys = {str(key.key_id): key for key in parsed if key.key_id and key.algorithm_name in ALGORITHMS}
        if not keys:
            raise InputError(f"{self._source} has no key with an id for {' or '.join(ALGORITHMS)}")
        return keys


def _client_name(subject: str) -> str:
    """Returns the name of a client for the log and the metrics; no other subject and no client with a key has it."""
    name = UNSAFE_CHARACTER.sub("_", subject)[:MAX_NAME_CHARACTERS]
    return f"jwt:{name}" if name == subject else f"jwt:{name}:{hashlib.sha256(subject.encode()).hexdigest()[:12]}"
