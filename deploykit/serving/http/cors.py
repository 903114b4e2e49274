"""Which web pages may ask from a browser (CORS): those of the origins that an operator names; by default none.

A browser asks first, without a key, whether a page may send a request (the preflight), and shows a page only replies
that name its origin. Cookies are never allowed: what opens this service is a header that the page itself sends.

Starlette's CORSMiddleware grants the same, as a test compares, and is not used: it would answer in front of the guard,
so that preflights were not counted, logged and bounded, and those for paths that do not exist were granted.
"""

import re
from collections.abc import Mapping, Sequence

from deploykit.errors import InputError

# as browsers write one: no path, and no port where it is the scheme's own
ORIGIN = re.compile(
    r"(?:https://(?!.*:443$)|http://(?!.*:80$))(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::\d{1,5})?"
)
ALLOWED = ("authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-ms")
EXPOSED = ("x-request-id", "retry-after", "server-timing")
MAX_AGE_S = 3600  # a browser remembers so long what it was told


def origins(text: str) -> frozenset[str]:
    """Reads a list of origins, separated by commas.

    Raises:
        InputError: one of them is none, or stands for many.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    for one in found:
        if not ORIGIN.fullmatch(one):
            raise InputError(
                f"an origin must read as browsers write it, such as https://app.example.org or http://localhost:8080,"
                f" got {one!r}: lower case, no path, no wildcard, and no port where it is the usual one."
            )
    return frozenset(found)


def preflight(
    allowed: frozenset[str], method: str, headers: Mapping[str, str], methods: Sequence[str]
) -> dict[str, str] | None:
    """Answers a browser's question; None where a request is no such question, or comes from elsewhere.

    Args:
        allowed: origins.
        method: of the request.
        headers: of the request.
        methods: that the path takes.

    Returns:
        The headers that an answer has besides those of `marks`.
    """
    if method != "OPTIONS" or headers.get("origin") not in allowed or "access-control-request-method" not in headers:
        return None
    return {
        "access-control-allow-methods": ", ".join(methods),
        "access-control-allow-headers": ", ".join(ALLOWED),
        "access-control-max-age": str(MAX_AGE_S),
    }


def marks(allowed: frozenset[str], headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers by which a browser knows that a page may read a reply, whatever its status.

    Args:
        allowed: origins.
        headers: of the request.
    """
    if not allowed:
        return {}
    origin = headers.get("origin", "")
    if origin not in allowed:
        return {"vary": "Origin"}
    return {
        "vary": "Origin",
        "access-control-allow-origin": origin,
        "access-control-expose-headers": ", ".join(EXPOSED),
    }
