"""What this service changes, or relies on, in libraries that do not promise to keep it, and in which versions it is.

Each part is looked for before a service starts. Without it the service would start, and lack a protection: nobody would
notice. So it refuses to start, and says which version to install. `pyproject.toml` has the same bounds.
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
CALLED = (
    *("connection_made", "connection_lost", "data_received", "on_message_begin", "on_url", "on_header"),
    *("on_headers_complete", "on_body", "on_message_complete", "on_response_complete"),
    *("pause_writing", "resume_writing", "timeout_keep_alive_handler"),
)
KEPT = ("parser", "headers", "cycle", "loop", "transport", "timeout_keep_alive", "timeout_keep_alive_task")
TRAFFIC, TRACING = "bentoml._internal.server.http.traffic", "opentelemetry.instrumentation.asgi"


def require_parts() -> None:
    """Makes sure that everything is there that this service changes.

    Raises:
        LibraryError: something is not, with the version to install.
    """
    require("auto" in part("uvicorn", "uvicorn.config", "HTTP_PROTOCOLS"), "uvicorn", "HTTP_PROTOCOLS['auto']")
    protocol = part("uvicorn", SERVER, "HttpToolsProtocol")
    for name in CALLED:
        require(name in vars(protocol), "uvicorn", f"HttpToolsProtocol.{name}")
    for name in KEPT:
        require(name in protocol.__init__.__code__.co_names, "uvicorn", f"HttpToolsProtocol().{name}")
    part("uvicorn", SERVER, "RequestResponseCycle")
    service = part("bentoml", "_bentoml_sdk", "Service")
    for name in ("to_asgi", "doc"):
        require(hasattr(service, name), "bentoml", f"Service.{name}")
    part("bentoml", TRAFFIC, "TimeoutMiddleware")
    part("bentoml", TRACING, "OpenTelemetryMiddleware")


def part(library: str, module: str, name: str) -> Any:
    """Returns a part of a library.

    Args:
        library: as it is installed.
        module: of the library.
        name: in the module.

    Raises:
        LibraryError: it is not there.
    """
    with expected(library, f"{module}.{name}"):
        return getattr(import_module(module), name)


@contextmanager
def expected(library: str, name: str) -> Iterator[None]:
    """Says what to install where an import fails, or a name is missing, in the block."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise missing(library, name) from error


def require(condition: bool, library: str, name: str) -> None:
    """Makes sure that a part of a library is there.

    Raises:
        LibraryError: it is not.
    """
    if not condition:
        raise missing(library, name)


def missing(library: str, name: str) -> LibraryError:
    """Makes the error that a part of a library is missing."""
    try:
        installed = f"{library} {version(library)}"
    except PackageNotFoundError:
        installed = f"{library}, which is not installed,"
    return LibraryError(
        f"{installed} has no {name}, which this service relies on."
        f" Install a version that has it: pip install '{VERSIONS[library]}'"
    )
