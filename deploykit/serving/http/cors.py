"""Which web pages may call the service from a browser (CORS): those of the configured origins; by default none.

Before a page's request, a browser asks without a key whether the page may send it (the preflight), and it shows a page
only responses that name its origin. Cookies are never allowed: access needs a header that the page itself sends.

Starlette's CORSMiddleware gives the same permissions, as a test compares. It would answer in front of the guard, so
that preflights were not counted, logged and bounded, and those for paths that do not exist were permitted.
"""

from collections.abc import Mapping, Sequence

REQUEST_HEADERS = ("authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-ms")
RESPONSE_HEADERS = ("x-request-id", "retry-after", "server-timing")  # that a page may read
PREFLIGHT_MAX_AGE_S = 3600  # how long a browser may reuse the answer to a preflight


def preflight(
    allowed: frozenset[str], method: str, headers: Mapping[str, str], methods: Sequence[str]
) -> dict[str, str] | None:
    """Returns the headers of the response to a preflight; None if the request is no preflight of an allowed page.

    Args:
        allowed: origins.
        method: of the request.
        headers: of the request.
        methods: that the path accepts.
    """
    if method != "OPTIONS" or headers.get("origin") not in allowed or "access-control-request-method" not in headers:
        return None
    return {
        "access-control-allow-methods": ", ".join(methods),
        "access-control-allow-headers": ", ".join(REQUEST_HEADERS),
        "access-control-max-age": str(PREFLIGHT_MAX_AGE_S),
    }


def response_headers(allowed: frozenset[str], headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers that let a page of an allowed origin read a response, whatever its status."""
    if not allowed:
        return {}
    origin = headers.get("origin", "")
    if origin not in allowed:
        return {"vary": "Origin"}
    return {
        "vary": "Origin",
        "access-control-allow-origin": origin,
        "access-control-expose-headers": ", ".join(RESPONSE_HEADERS),
    }
