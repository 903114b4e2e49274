"""How deep the JSON of a body nests, and how many values it has, counted before it is parsed.

The parser has limits of its own (pydantic's 200 levels, none on values); these are far below them. Parsing a megabyte
of empty lists takes half a second in which no other thread runs; counting them takes milliseconds, because it is done
on arrays, and only where a count of the characters alone cannot rule out that there are too many.
"""

import numpy as np

MAX_DEPTH = 32  # levels; what is asked here needs five
MAX_VALUES = 16_384  # some 20 ms of parsing
VALUES_PER_TEXT = 8  # a service that takes many texts at once takes as many values as they need
STRUCTURE = b'[]{},:"'
OTHERS = bytes(set(range(256)) - set(STRUCTURE))
QUOTE = STRUCTURE[-1]


def refusal(body: bytes, max_texts: int = 0) -> str | None:
    """Says why a body is not parsed; None where it may be.

    Args:
        body: of a request.
        max_texts: that the service takes at once.
    """
    max_values = max(MAX_VALUES, VALUES_PER_TEXT * max_texts)
    opened = body.count(b"[") + body.count(b"{")
    if opened <= MAX_DEPTH and opened + body.count(b",") + body.count(b":") <= max_values:
        return None
    depth, values = measure(body)
    if depth > MAX_DEPTH:
        return f"the body is not JSON that is read here: it nests {depth} levels deep, at most {MAX_DEPTH} are read"
    if values > max_values:
        return f"the body has {values} values and names, at most {max_values} are read; send fewer texts at once"
    return None


def measure(body: bytes) -> tuple[int, int]:
    """Counts levels and values in time that is linear in the bytes; of what is not JSON, up to the mistake.

    Returns:
        How many arrays and objects are open at the same time at most; and how many arrays, objects, names and
        separated values there are, which is the number of values and names or a little more.
    """
    escaped = body.replace(rb"\\", b"").replace(rb"\"", b"")  # in this order: a quote after two backslashes ends a text
    marks = np.frombuffer(escaped.translate(None, OTHERS), np.uint8)
    outside = marks[(np.cumsum(marks == QUOTE, dtype=np.int32) & 1) == 0]
    opens, closes = (np.isin(outside, list(kind)) for kind in (b"[{", b"]}"))
    depth = (opens.astype(np.int8) - closes).cumsum(dtype=np.int32).max(initial=0)
    return int(depth), int(np.count_nonzero(opens | np.isin(outside, list(b",:"))))
