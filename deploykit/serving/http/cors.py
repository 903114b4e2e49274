"""Which web pages may call the service from a browser (CORS): those of the configured origins; by default none.

Before some requests of a page, a browser sends a preflight: it asks, without a key, whether the page may send the
request. It lets a page read only responses that name the page's origin. Cookies are never allowed: access needs a
header that the page itself sends.

Starlette's CORSMiddleware gives the same permissions, as a test checks. It is not used, because it would answer before
the guard: preflights would not be counted, logged or limited, and those for paths that do not exist would be permitted.
"""

from collections.abc import Mapping, Sequence

# what a page may send
REQUEST_HEADERS = ("authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-ms")
RESPONSE_HEADERS = ("x-request-id", "retry-after", "server-timing")  # what a page may read of a response
PREFLIGHT_MAX_AGE_S = 3600  # how long a browser may reuse the answer to a preflight


def preflight_headers(
    allowed: frozenset[str], method: str, headers: Mapping[str, str], methods: Sequence[str]
) -> dict[str, str] | None:
    """Returns the headers of the response to a preflight; None if the request is no preflight of an allowed page.

    Args:
        allowed: origins of pages.
        method: of the request.
        headers: of the request.
        methods: what the path accepts.
    """
    if method != "OPTIONS" or headers.get("origin") not in allowed or "access-control-request-method" not in headers:
        return None
    return {
        "access-control-allow-methods": ", ".join(methods),
        "access-control-allow-headers": ", ".join(REQUEST_HEADERS),
        "access-control-max-age": str(PREFLIGHT_MAX_AGE_S),
    }


def response_headers(allowed: frozenset[str], headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers by which a page of an allowed origin may read a response, whatever its status."""
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
