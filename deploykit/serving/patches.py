"""Internal parts of libraries that this service changes or relies on, and the versions of libraries that have them.

Each part is checked before a service starts. If one is missing, the service refuses to start and says which version to
install; otherwise it would lack a protection without anybody noticing. `pyproject.toml` names the same versions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deploykit.errors import LibraryError

REQUIREMENTS = {  # from library to the versions that have the parts
    "bentoml": "bentoml>=1.4.39,<1.5",
    "prometheus-client": "prometheus-client>=0.22,<1",
    "starlette": "starlette>=0.41,<2",
    "uvicorn": "uvicorn>=0.34,<0.55",
}
UVICORN_PROTOCOL_MODULE = "uvicorn.protocols.http.httptools_impl"
USED_METHODS = (  # of uvicorn's HttpToolsProtocol
    *("connection_made", "connection_lost", "data_received", "on_url", "on_header"),
    *("on_body", "on_headers_complete", "on_message_complete", "pause_writing", "resume_writing"),
)
USED_ATTRIBUTES = ("parser", "headers", "loop", "transport", "timeout_keep_alive")  # of its instances
TIMEOUT_MODULE, TRACING_MODULE = "bentoml._internal.server.http.traffic", "opentelemetry.instrumentation.asgi"


def require_parts() -> None:
    """Raises a `LibraryError`, with the version to install, if one of the parts is missing."""
    http_protocols = import_part("uvicorn", "uvicorn.config", "HTTP_PROTOCOLS")
    require_part("auto" in http_protocols, "uvicorn", "HTTP_PROTOCOLS['auto']")
    protocol = import_part("uvicorn", UVICORN_PROTOCOL_MODULE, "HttpToolsProtocol")
    for name in USED_METHODS:
        require_part(name in vars(protocol), "uvicorn", f"HttpToolsProtocol.{name}")
    for name in USED_ATTRIBUTES:
        require_part(name in protocol.__init__.__code__.co_names, "uvicorn", f"HttpToolsProtocol().{name}")
    service = import_part("bentoml", "_bentoml_sdk", "Service")
    for name in ("to_asgi", "doc"):
        require_part(hasattr(service, name), "bentoml", f"Service.{name}")
    import_part("bentoml", TIMEOUT_MODULE, "TimeoutMiddleware")
    import_part("bentoml", TRACING_MODULE, "OpenTelemetryMiddleware")


def import_part(library: str, module: str, name: str) -> Any:
    """Imports a name from a module of a library; raises a `LibraryError` if it is missing."""
    with library_errors(library, f"{module}.{name}"):
        return getattr(import_module(module), name)


@contextmanager
def library_errors(library: str, name: str) -> Iterator[None]:
    """Raises a `LibraryError` if an import in the block fails, or a name is missing."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise _missing_part(library, name) from error


def require_part(condition: bool, library: str, name: str) -> None:
    """Raises a `LibraryError` unless the condition holds."""
    if not condition:
        raise _missing_part(library, name)


def _missing_part(library: str, name: str) -> LibraryError:
    """Returns the error that an installed library has no part of this name."""
    try:
        installed = f"{library} {version(library)}"
    except PackageNotFoundError:
        installed = f"{library}, which is not installed,"
    return LibraryError(
        f"{installed} has no {name}, which this service relies on."
        f" Install a version that has it: pip install '{REQUIREMENTS[library]}'"
    )
