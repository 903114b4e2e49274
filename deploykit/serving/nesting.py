"""How deep the JSON of a body nests, counted before it is parsed.

The parsers have limits of their own (pydantic's 200 levels); this one is ours, far below them, and costs time that is
linear in the bytes: brackets are counted in C, and only where there are many are the strings taken out first.
"""

import numpy as np

MOST = 32  # levels; what is asked here needs five
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one in, one out
OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def depth(body: bytes) -> int:
    """Returns how many arrays and objects are open at the same time at most; of what is not JSON, up to the mistake."""
    escapes = body.replace(rb"\\", b"").replace(rb"\"", b"")  # in this order: a quote after two backslashes ends a text
    outside = b"".join(escapes.split(b'"')[::2])
    steps = np.frombuffer(outside.translate(STEPS, OTHERS), np.int8)
    return int(steps.cumsum(dtype=np.int64).max(initial=0))


def too_deep(body: bytes) -> bool:
    """Says whether a body nests deeper than `MOST` levels."""
    return body.count(b"[") + body.count(b"{") > MOST and depth(body) > MOST
