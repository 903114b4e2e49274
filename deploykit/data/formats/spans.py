"""Checks of character spans and relations, which several formats write in their own ways."""

from collections.abc import Collection
from typing import Any

SHOWN_CHARACTERS = 60  # of a text in a message


def shorten(text: str) -> str:
    """Returns the beginning of a text, quoted."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")


def make_span(text: str, start: Any, end: Any, label: Any, identifier: Any, quoted: Any = None) -> dict[str, Any]:
    """Returns a span as `start`, `end`, `label` and `id`.

    Args:
        text: which the span is in.
        start: offset of its first character.
        end: offset after its last character.
        label: of the span.
        identifier: which relations refer to.
        quoted: the characters of the span, where the format repeats them.

    Raises:
        ValueError: the span does not lie in the text, has no label, or has other characters than quoted.
    """
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise ValueError(
            f"the span from {start!r} to {end!r} does not lie in its text of {len(text)} characters,"
            " expected whole numbers with 0 <= start < end"
        )
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the span {start}-{end} has the label {label!r}, expected a word")
    if quoted is not None and quoted != text[start:end]:
        raise ValueError(
            f"the span {start}-{end} is said to be {shorten(str(quoted))}, but the text has"
            f" {shorten(text[start:end])} there; expected offsets that count characters, line ends included"
        )
    return {"start": start, "end": end, "label": label.strip(), "id": str(identifier)}


def make_relation(head: Any, tail: Any, label: Any, identifiers: Collection[str]) -> dict[str, Any]:
    """Returns a relation between two spans as `head`, `tail` and `label`.

    Raises:
        ValueError: a span does not exist.
    """
    for end in (head, tail):
        if str(end) not in identifiers:
            known = ", ".join(sorted(identifiers)) or "none"
            raise ValueError(f"the relation {label!r} refers to {end!r}, expected the id of a span: {shorten(known)}")
    return {"head": str(head), "tail": str(tail), "label": label}
