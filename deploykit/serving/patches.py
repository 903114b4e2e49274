"""Internal parts of libraries that this service changes or relies on, and the versions that have them.

Each part is checked before a service starts. Without one of them the service would start, and lack a protection without
anybody noticing. So it refuses to start, and says which version to install. `pyproject.toml` has the same bounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deploykit.errors import LibraryError

VERSIONS = {
    "bentoml": "bentoml>=1.4.39,<1.5",
    "prometheus-client": "prometheus-client>=0.22,<1",
    "starlette": "starlette>=0.41,<2",
    "uvicorn": "uvicorn>=0.34,<0.55",
}
SERVER = "uvicorn.protocols.http.httptools_impl"
USED_METHODS = (
    *("connection_made", "connection_lost", "data_received", "on_url", "on_header"),
    *("on_body", "on_headers_complete", "on_message_complete", "pause_writing", "resume_writing"),
)
USED_ATTRIBUTES = ("parser", "headers", "loop", "transport", "timeout_keep_alive")
TRAFFIC, TRACING = "bentoml._internal.server.http.traffic", "opentelemetry.instrumentation.asgi"


def require_parts() -> None:
    """Raises a `LibraryError`, with the version to install, if a part that this service changes is missing."""
    require("auto" in part("uvicorn", "uvicorn.config", "HTTP_PROTOCOLS"), "uvicorn", "HTTP_PROTOCOLS['auto']")
    protocol = part("uvicorn", SERVER, "HttpToolsProtocol")
    for name in USED_METHODS:
        require(name in vars(protocol), "uvicorn", f"HttpToolsProtocol.{name}")
    for name in USED_ATTRIBUTES:
        require(name in protocol.__init__.__code__.co_names, "uvicorn", f"HttpToolsProtocol().{name}")
    service = part("bentoml", "_bentoml_sdk", "Service")
    for name in ("to_asgi", "doc"):
        require(hasattr(service, name), "bentoml", f"Service.{name}")
    part("bentoml", TRAFFIC, "TimeoutMiddleware")
    part("bentoml", TRACING, "OpenTelemetryMiddleware")


def part(library: str, module: str, name: str) -> Any:
    """Imports a part of a library, or raises a `LibraryError`."""
    with expected(library, f"{module}.{name}"):
        return getattr(import_module(module), name)


@contextmanager
def expected(library: str, name: str) -> Iterator[None]:
    """Turns a failed import, or a missing name, in the block into a `LibraryError`."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise missing(library, name) from error


def require(condition: bool, library: str, name: str) -> None:
    """Raises a `LibraryError` unless the condition holds."""
    if not condition:
        raise missing(library, name)


def missing(library: str, name: str) -> LibraryError:
    """Returns the error that a part of a library is missing."""
    try:
        installed = f"{library} {version(library)}"
    except PackageNotFoundError:
        installed = f"{library}, which is not installed,"
    return LibraryError(
        f"{installed} has no {name}, which this service relies on."
        f" Install a version that has it: pip install '{VERSIONS[library]}'"
    )
