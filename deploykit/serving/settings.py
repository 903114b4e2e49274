"""What one service process is told: the package's manifest and a few environment variables.

How a model is served belongs to the recipe and travels in the manifest; where its keys are and who may
read the metrics belongs to the machine, and comes from the environment:

    DEPLOYKIT_PACKAGE         the package's directory; default: the one of the service.py that is served
    DEPLOYKIT_KEYS            the key file; default: keys.json below ~/.config/deploykit
    DEPLOYKIT_AUTH            `off` lets everybody in; default `on`
    DEPLOYKIT_REDIS           redis://HOST:PORT of what replicas count limits in; default: each counts for itself
    DEPLOYKIT_JWKS            a file, or an https URL, of an identity provider's keys: its tokens are taken, too,
                              with DEPLOYKIT_JWT_ISSUER and DEPLOYKIT_JWT_AUDIENCE, which must be set with it
    DEPLOYKIT_JWT_LIMITS      what each subject of such a token may ask for, as NAME=NUMBER separated by commas, of
                              requests_per_minute, requests_per_day, tokens_per_minute and concurrency; default: no
                              limits, as for keys
    DEPLOYKIT_CORS_ORIGINS    origins of the web pages that may ask from a browser, separated by commas; default: none
    DEPLOYKIT_DRAIN           a file: while it is there, the service says that it is not ready, and answers on;
                              default: `drain` below BENTOML_HOME
    DEPLOYKIT_METRICS_PUBLIC  `on` opens /metrics to everybody; default `off`
    DEPLOYKIT_RECORDS         a directory for the records that a recipe asks for; default: none are kept, since texts
                              must not come to lie on a machine whose owner does not know of it
    DEPLOYKIT_SIGNED_BY       a public key in PEM: a package that is not signed by it is not served; default: none is
                              asked for
    DEPLOYKIT_THREADS         cores for the engine: threads of one call, or calls at a time, as the selection
                              chose; default: those of the manifest, else all that the cgroup allows
    OTEL_EXPORTER_OTLP_ENDPOINT and OpenTelemetry's other standard variables: where traces are sent; default: nowhere
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from deploykit.artifact import Artifact, ServeOptions, signing
from deploykit.errors import ArtifactError, InputError
from deploykit.hardware import cpu_limit
from deploykit.methods import did_you_mean
from deploykit.serving.access.keys import LIMITS, ClientLimits, default_path, listing
from deploykit.serving.http import cors
from deploykit.serving.telemetry import traces

PREFIX = "DEPLOYKIT_"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PACKAGE, KEYS, AUTH = "DEPLOYKIT_PACKAGE", "DEPLOYKIT_KEYS", "DEPLOYKIT_AUTH"
METRICS_PUBLIC, THREADS, REDIS = "DEPLOYKIT_METRICS_PUBLIC", "DEPLOYKIT_THREADS", "DEPLOYKIT_REDIS"
DRAIN, HOME, CORS = "DEPLOYKIT_DRAIN", "BENTOML_HOME", "DEPLOYKIT_CORS_ORIGINS"
SIGNED_BY, RECORDS = "DEPLOYKIT_SIGNED_BY", "DEPLOYKIT_RECORDS"
JWT = ("DEPLOYKIT_JWKS", "DEPLOYKIT_JWT_ISSUER", "DEPLOYKIT_JWT_AUDIENCE")
JWT_LIMITS = "DEPLOYKIT_JWT_LIMITS"
NAMES = (PACKAGE, KEYS, AUTH, METRICS_PUBLIC, THREADS, REDIS, DRAIN, CORS, SIGNED_BY, RECORDS, *JWT, JWT_LIMITS)
PATHS = (KEYS, DRAIN, SIGNED_BY, RECORDS, JWT[0])  # variables that name a file or a directory

logger = logging.getLogger("deploykit.serving")


class Settings(ServeOptions):
    """Everything that a service process is told: the manifest's `serve` section, and what the machine says.

    `keys` is None when access control is off, and `cores` are those of the engine, whoever named them.
    """

    package: Path
    keys: Path | None
    redis: SecretStr | None
    drain: Path
    jwt: tuple[str, str, str] | None
    jwt_limits: ClientLimits
    cors_origins: frozenset[str]
    metrics_public: bool
    traces: bool
    signed_by: Path | None
    records_folder: Path | None
    cores: int

    @property
    def recording(self) -> bool:
        """Whether records are kept: the recipe and the machine agree."""
        return self.records is not None and self.records_folder is not None


def load(package: Path, environ: Mapping[str, str] = os.environ) -> tuple[Settings, Artifact]:
    """Reads the manifest and the environment.

    Args:
        package: the package's directory, unless the environment names another one.
        environ: the environment.

    Raises:
        ArtifactError: the directory is no package.
        InputError: a variable has a value that makes no sense.
    """
    _warn_of_unknown(environ)
    environ = absolute(environ)
    package = Path(environ.get(PACKAGE) or package).resolve()
    artifact = Artifact.load(package)
    if artifact.manifest.kind != "package":
        raise ArtifactError(
            f"{package} is an artifact of kind {artifact.manifest.kind!r}, expected a package."
            " Make one of it with: deploykit package"
        )
    guarded = _switch(environ, AUTH, default=True)
    settings = Settings(
        package=package,
        keys=Path(environ.get(KEYS) or default_path()) if guarded else None,
        redis=_redis(environ),
        drain=drain_file(environ),
        jwt=_jwt(environ),
        jwt_limits=_jwt_limits(environ),
        cors_origins=_origins(environ),
        signed_by=_signer(environ),
        records_folder=Path(environ[RECORDS]) if environ.get(RECORDS) else None,
        metrics_public=_switch(environ, METRICS_PUBLIC, default=False),
        traces=traces.wanted(environ),
        cores=_cores(environ) or artifact.manifest.serve.threads or cpu_limit(),
        **artifact.manifest.serve.model_dump(),
    )
    return settings, artifact


def absolute(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment whose files are named by absolute paths, since a worker runs in another directory.

    Links stay as they are: what they point to may be exchanged while the service runs.
    """
    named = {name: environ[name].strip() for name in PATHS if environ.get(name, "").strip()}
    paths = {name: value if "://" in value else str(Path(value).absolute()) for name, value in named.items()}
    return {**environ, **paths}


def drain_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the file that tells a service to let go of its traffic."""
    if given := environ.get(DRAIN):
        return Path(given)
    return Path(environ.get(HOME) or Path.home() / "bentoml") / "drain"


def require_keys(settings: Settings) -> None:
    """Makes sure that somebody can get in before a service starts.

    Raises:
        InputError: access control is on, and there is no key file, or it cannot be read or is empty.
    """
    if settings.keys is None:
        logger.warning("access control is off (%s=off): everybody who reaches the port is let in", AUTH)
        return
    try:
        found = listing(settings.keys)
    except InputError as error:
        raise InputError(
            f"access control is on, and {str(error).rstrip('.')}. To serve without keys, set {AUTH}=off."
        ) from error
    if not found:
        raise InputError(
            f"access control is on, and the key file {settings.keys} holds no key."
            f" Make one with: deploykit keys add NAME. To serve without keys, set {AUTH}=off."
        )


def require_signer(settings: Settings) -> None:
    """Makes sure that signatures can be checked where they are asked for.

    Raises:
        InputError: the key that must have signed cannot be read.
        MissingExtraError: the library that checks signatures is not installed.
    """
    if settings.signed_by is not None:
        signing.require_key(settings.signed_by)


def _switch(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = environ.get(name, "").strip().lower()
    if value in ("", "on", "off", "true", "false", "1", "0"):
        return value in ("on", "true", "1") if value else default
    raise InputError(f"{name} must be on or off, got {environ[name]!r}.")


def _redis(environ: Mapping[str, str]) -> SecretStr | None:
    value = environ.get(REDIS, "").strip()
    if value and not value.startswith(("redis://", "rediss://")):
        raise InputError(f"{REDIS} must be an address such as redis://127.0.0.1:6379, and does not begin so.")
    return SecretStr(value) if value else None


def _origins(environ: Mapping[str, str]) -> frozenset[str]:
    try:
        return cors.origins(environ.get(CORS, ""))
    except InputError as error:
        raise InputError(f"{CORS}: {error}") from None


def _signer(environ: Mapping[str, str]) -> Path | None:
    """Unlike the others this may not be empty: whoever sets it wants a check, and would get none."""
    value = environ.get(SIGNED_BY)
    if value is not None and not value.strip():
        raise InputError(f"{SIGNED_BY} is empty. Name the file of a public key, or do not set it.")
    return None if value is None else Path(value.strip())


def _jwt(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    jwks, issuer, audience = found = [environ.get(name, "").strip() for name in JWT]
    if not any(found):
        return None
    if missing := [name for name, value in zip(JWT, found, strict=True) if not value]:
        raise InputError(f"{' and '.join(missing)} must be set, too: all of {', '.join(JWT)} or none.")
    if "://" in jwks and not _secure(jwks):
        raise InputError(
            f"{JWT[0]} must be a file or an https URL, got {jwks!r}: keys must not be changed on their way."
        )
    return jwks, issuer, audience


def _secure(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.scheme == "http":
        return parts.hostname in LOOPBACK
    return parts.scheme == "https" and bool(parts.hostname)


def _jwt_limits(environ: Mapping[str, str]) -> ClientLimits:
    value = environ.get(JWT_LIMITS, "").strip()
    if value and not environ.get(JWT[0], "").strip():
        raise InputError(f"{JWT_LIMITS} limits tokens, and none are taken. Set {', '.join(JWT)}, or do not set it.")
    limits: dict[str, str] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, _, number = (side.strip() for side in part.partition("="))
        if name not in LIMITS:
            near = did_you_mean(name, LIMITS)
            raise InputError(f"{JWT_LIMITS} names {name!r}, which is no limit{near}. There are: {', '.join(LIMITS)}.")
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"{JWT_LIMITS}: {name} must be a whole number of at least 1, got {number!r}.")
        limits[name] = number
    return ClientLimits.model_validate(limits)


def _cores(environ: Mapping[str, str]) -> int | None:
    value = environ.get(THREADS, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{THREADS} must be a whole number of at least 1, got {value!r}.")
    return int(value)


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    """A warning and no error: Kubernetes adds variables of this prefix for a service called deploykit."""
    known = [name.removeprefix(PREFIX) for name in NAMES]
    for name in sorted(name for name in environ if name.startswith(PREFIX) and name not in NAMES):
        near = did_you_mean(name.removeprefix(PREFIX), known)
        if near:
            logger.warning("the environment variable %s has no meaning%s, after %s", name, near, PREFIX)
