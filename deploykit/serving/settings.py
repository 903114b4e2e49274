"""The settings of a service process, from the package's manifest and from environment variables of the machine.

How a model is served belongs to the recipe and travels in the manifest. Where its keys are, and who may read its
metrics, belongs to the machine. Each field of `Settings` that is declared by `variable_field` is one environment
variable: how it is read, the message about a wrong value and docs/reference/settings.md follow from the field.
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, ValidationError, model_validator

from deploykit.artifact import Artifact, ServeOptions
from deploykit.errors import ArtifactError, InputError
from deploykit.hardware import cpu_limit
from deploykit.methods import did_you_mean
from deploykit.serving.call import LIMIT_NAMES, ClientLimits

VARIABLE_PREFIX = "DEPLOYKIT_"
PACKAGE_VARIABLE = "DEPLOYKIT_PACKAGE"
KEYS_VARIABLE = "DEPLOYKIT_KEYS"
AUTH_VARIABLE = "DEPLOYKIT_AUTH"
THREADS_VARIABLE = "DEPLOYKIT_THREADS"
DRAIN_VARIABLE = "DEPLOYKIT_DRAIN"
REDIS_VARIABLE = "DEPLOYKIT_REDIS"
RECORDS_VARIABLE = "DEPLOYKIT_RECORDS"
SIGNED_BY_VARIABLE = "DEPLOYKIT_SIGNED_BY"
JWT_VARIABLES = ("DEPLOYKIT_JWKS", "DEPLOYKIT_JWT_ISSUER", "DEPLOYKIT_JWT_AUDIENCE")
JWT_LIMITS_VARIABLE = "DEPLOYKIT_JWT_LIMITS"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
# an origin as browsers write it: no path, and no port if it is the default one of the scheme
ORIGIN_PATTERN = re.compile(
    r"(?:https://(?!.*:443$)|http://(?!.*:80$))(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?"
)
OTEL_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# of these, the first that is set counts
OTEL_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

logger = logging.getLogger("deploykit.serving")


def variable_field(name: str, expected: str, default: Any = None, **bounds: Any) -> Any:
    """Declares a field that is read from an environment variable.

    Args:
        name: of the variable.
        expected: what its value must be: the end of the sentence "NAME must be ...".
        default: of the field; `...` if `load_settings` always gives a value.
        bounds: limits of the value, as pydantic's `Field` takes them.
    """
    return Field(default, alias=name, title=expected, **bounds)


def _require_redis_address(address: SecretStr) -> SecretStr:
    """Returns the address; raises a ValueError if it is not that of a Redis server."""
    if not address.get_secret_value().startswith(("redis://", "rediss://")):
        raise ValueError
    return address


def _require_safe_source(source: str) -> str:
    """Returns the file or URL of a key set; raises a ValueError if others in the network could replace the keys."""
    url = urlsplit(source)
    secure = url.scheme == "https" and bool(url.hostname)
    if "://" in source and not (secure or (url.scheme == "http" and url.hostname in LOOPBACK_HOSTS)):
        raise ValueError
    return source


def _split_limits(text: str) -> dict[str, str]:
    """Splits `NAME=NUMBER,NAME=NUMBER`; pydantic checks the names and numbers."""
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): number.strip() for name, _, number in pairs}


def _split_origins(text: str) -> frozenset[str]:
    """Splits origins at commas; raises a ValueError if one is not written as browsers write it."""
    origins = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not all(map(ORIGIN_PATTERN.fullmatch, origins)):
        raise ValueError
    return origins


class Settings(ServeOptions):
    """The manifest's `serve` section, and the environment variables of the machine."""

    package: Path = variable_field(PACKAGE_VARIABLE, "the directory of a package", ...)
    """The package to serve; default: the directory of the `service.py` that is served."""
    key_file: Path = variable_field(KEYS_VARIABLE, "a file", ...)
    """The key file; default: `keys.json` in `~/.config/deploykit`."""
    auth: bool = variable_field(AUTH_VARIABLE, "on or off", default=True)
    """`off` lets everybody in; default: `on`."""
    redis: Annotated[SecretStr, AfterValidator(_require_redis_address)] | None = variable_field(
        REDIS_VARIABLE, "an address such as redis://127.0.0.1:6379"
    )
    """The Redis server in which replicas count limits together; default: each replica counts for itself."""
    jwks: Annotated[str, AfterValidator(_require_safe_source)] | None = variable_field(
        JWT_VARIABLES[0], "a file or an https URL"
    )
    """The keys (JWKS) of an identity provider, whose tokens are then accepted, too; default: no tokens."""
    jwt_issuer: str | None = variable_field(JWT_VARIABLES[1], "the claim `iss` of the provider's tokens")
    """The issuer of accepted tokens; set with `DEPLOYKIT_JWKS`."""
    jwt_audience: str | None = variable_field(JWT_VARIABLES[2], "the claim `aud` of tokens for this service")
    """The audience of accepted tokens; set with `DEPLOYKIT_JWKS`."""
    jwt_limits: Annotated[ClientLimits, BeforeValidator(_split_limits)] = variable_field(
        JWT_LIMITS_VARIABLE,
        f"NAME=NUMBER, separated by commas, with whole numbers of at least 1 for any of {', '.join(LIMIT_NAMES)}",
        ClientLimits(),
    )
    """The limits of each subject of such tokens; default: no limits, as for keys."""
    cors_origins: Annotated[frozenset[str], BeforeValidator(_split_origins)] = variable_field(
        "DEPLOYKIT_CORS_ORIGINS",
        "origins as browsers write them, such as https://app.example.org or http://localhost:8080, separated by commas:"
        " lower case, no path, no wildcard, and no port if it is the usual one",
        frozenset(),
    )
    """The web pages that may call the service from a browser; default: none."""
    drain: Path = variable_field(DRAIN_VARIABLE, "a file", ...)
    """While this file exists, the service reports that it is not ready, and still answers; default: `drain` in
    `BENTOML_HOME`."""
    metrics_public: bool = variable_field("DEPLOYKIT_METRICS_PUBLIC", "on or off", default=False)
    """`on` lets everybody read `/metrics`; default: `off`."""
    records_folder: Path | None = variable_field(RECORDS_VARIABLE, "a directory")
    """Where to keep the records that a recipe asks for; default: none are kept, because texts must not be stored on a
    machine whose owner does not know of it."""
    signed_by: FilePath | None = variable_field(SIGNED_BY_VARIABLE, "the file of a public key")
    """The public key in PEM that must have signed the package; default: no signature is needed."""
    cores: int = variable_field(THREADS_VARIABLE, "a whole number of at least 1", ..., ge=1)
    """The cores of the engine; default: `serve.threads` of the recipe, or else all that the cgroup allows."""
    traces: bool = False
    """Whether traces are sent, as the standard variables of OpenTelemetry say."""

    @property
    def keys(self) -> Path | None:
        """The key file; None if access control is off."""
        return self.key_file if self.auth else None

    @property
    def jwt(self) -> tuple[str, str, str] | None:
        """Key set, issuer and audience of accepted tokens; None if tokens are not accepted."""
        return (self.jwks, self.jwt_issuer, self.jwt_audience) if self.jwks else None  # type: ignore[return-value]

    @property
    def recording(self) -> bool:
        """Whether records are kept: both the recipe and the machine ask for it."""
        return self.records is not None and self.records_folder is not None

    @model_validator(mode="after")
    def _jwt_variables_belong_together(self) -> Self:
        """Checks that all variables for tokens are set, or none; and that limits of tokens are set only with them."""
        values = dict(zip(JWT_VARIABLES, (self.jwks, self.jwt_issuer, self.jwt_audience), strict=True))
        if any(values.values()) and (missing := [name for name, value in values.items() if not value]):
            raise ValueError(f"{' and '.join(missing)} must be set, too: all of {', '.join(JWT_VARIABLES)} or none.")
        if self.jwt_limits != ClientLimits() and not self.jwks:
            raise ValueError(
                f"{JWT_LIMITS_VARIABLE} limits tokens, and none are accepted."
                f" Set {', '.join(JWT_VARIABLES)}, or unset it."
            )
        return self


# from the name of an environment variable to its field
VARIABLE_FIELDS = {field.alias: field for field in Settings.model_fields.values() if field.alias}
# variables that name a file or a directory
PATH_VARIABLES = (KEYS_VARIABLE, DRAIN_VARIABLE, SIGNED_BY_VARIABLE, RECORDS_VARIABLE, JWT_VARIABLES[0])


def load_settings(package: Path, environ: Mapping[str, str] = os.environ) -> tuple[Settings, Artifact]:
    """Reads the manifest and the environment.

    Args:
        package: the package's directory, unless the environment names another one.
        environ: the environment.

    Returns:
        The settings, and the package.

    Raises:
        ArtifactError: the directory is no package.
        InputError: a variable has a value that cannot be used.
    """
    _warn_of_unknown_variables(environ)
    environ = with_absolute_paths(environ)
    # a blank variable counts as not set, except DEPLOYKIT_SIGNED_BY, whose owner would believe that signatures are
    # checked
    stripped = {name: environ[name].strip() for name in VARIABLE_FIELDS if name in environ}
    values = {name: value for name, value in stripped.items() if value or name == SIGNED_BY_VARIABLE}
    package = Path(values.get(PACKAGE_VARIABLE) or package).resolve()
    artifact = Artifact.load(package)
    if artifact.manifest.kind != "package":
        raise ArtifactError(
            f"{package} is an artifact of kind {artifact.manifest.kind!r}, expected a package."
            " Make one of it with: deploykit package"
        )
    serve = artifact.manifest.serve
    defaults = {
        KEYS_VARIABLE: default_key_file(),
        DRAIN_VARIABLE: drain_file_path(environ),
        THREADS_VARIABLE: serve.threads or cpu_limit(),
    }
    computed = {PACKAGE_VARIABLE: package, "traces": _traces_wanted(environ)}
    try:
        return Settings.model_validate({**serve.model_dump(), **defaults, **values, **computed}), artifact
    except ValidationError as error:
        raise _input_error(error, values) from None


def _input_error(error: ValidationError, values: Mapping[str, str]) -> InputError:
    """Makes a message of the first mistake; `values` are the values of variables by name."""
    mistake = error.errors()[0]
    if not mistake["loc"]:  # from the check of several variables together
        return InputError(mistake["msg"].removeprefix("Value error, "))
    name = str(mistake["loc"][0])
    value = "" if name == REDIS_VARIABLE else f", got {values[name]!r}"  # the address may hold a password
    return InputError(f"{name} must be {VARIABLE_FIELDS[name].title}{value}.")


def with_absolute_paths(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with the paths in its variables made absolute: a worker runs in another directory.

    Symbolic links are kept, because their targets may be replaced while the service runs.
    """
    set_variables = {name: environ[name].strip() for name in PATH_VARIABLES if environ.get(name, "").strip()}
    paths = {name: value if "://" in value else str(Path(value).absolute()) for name, value in set_variables.items()}
    return {**environ, **paths}


def default_key_file() -> Path:
    """Returns the key file that is used if `DEPLOYKIT_KEYS` is not set."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "deploykit" / "keys.json"


def drain_file_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the file that drains a service as long as it exists."""
    return Path(environ.get(DRAIN_VARIABLE) or Path(environ.get("BENTOML_HOME") or Path.home() / "bentoml") / "drain")


def _traces_wanted(environ: Mapping[str, str]) -> bool:
    """Says whether OpenTelemetry's standard variables ask for traces, by an endpoint or by an exporter.

    Raises:
        InputError: they ask for an exporter or a protocol that this service does not have.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "none", "otlp"):
        raise InputError(f"OTEL_TRACES_EXPORTER must be otlp or none, got {exporter!r}: traces need OTLP over HTTP.")
    disabled = exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or not (exporter or any(environ.get(name) for name in OTEL_ENDPOINTS)):
        return False
    name = next((name for name in OTEL_PROTOCOLS if environ.get(name)), None)
    if name and environ[name] != "http/protobuf":
        raise InputError(f"{name} must be http/protobuf, got {environ[name]!r}. Collectors listen for it on port 4318.")
    return True


def _warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    """Warns of variables that look like misspelt ones.

    They are no error, because Kubernetes adds variables with the same prefix for a service called deploykit.
    """
    names = [name.removeprefix(VARIABLE_PREFIX) for name in VARIABLE_FIELDS]
    for name in sorted(name for name in environ if name.startswith(VARIABLE_PREFIX) and name not in VARIABLE_FIELDS):
        if near := did_you_mean(name.removeprefix(VARIABLE_PREFIX), names):
            logger.warning("the environment variable %s has no meaning%s, after %s", name, near, VARIABLE_PREFIX)
