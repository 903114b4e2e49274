"""How deep the JSON of a body nests, and how many objects and names it has, counted before it is parsed.

The parsers have limits of their own (pydantic's 200 levels); this one is ours, far below them, and costs time that is
linear in the bytes: they are counted in C, and only where there are many are the strings taken out first. A name that
nobody knows becomes a mistake to tell of, and a hundred thousand of them take a fifth of a second.
"""

import numpy as np

MOST = 32  # levels; what is asked here needs five
MEMBERS = 8192  # objects and names in them; a text needs four at most
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one in, one out
OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def depth(body: bytes) -> int:
    """Returns how many arrays and objects are open at the same time at most; of what is not JSON, up to the mistake."""
    steps = np.frombuffer(_outside(body).translate(STEPS, OTHERS), np.int8)
    return int(steps.cumsum(dtype=np.int64).max(initial=0))


def too_deep(body: bytes) -> bool:
    """Says whether a body nests deeper than `MOST` levels."""
    return body.count(b"[") + body.count(b"{") > MOST and depth(body) > MOST


def too_many(body: bytes) -> bool:
    """Says whether a body has more than `MEMBERS` objects and names."""
    return _members(body) > MEMBERS and _members(_outside(body)) > MEMBERS


def _members(body: bytes) -> int:
    return body.count(b":") + body.count(b"{")


def _outside(body: bytes) -> bytes:
    """Returns what stands outside of strings."""
    escapes = body.replace(rb"\\", b"").replace(rb"\"", b"")  # in this order: a quote after two backslashes ends a text
    return b"".join(escapes.split(b'"')[::2])
