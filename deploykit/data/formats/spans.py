"""Checks of character spans and relations, which several formats write in their own ways."""

from collections.abc import Collection
from typing import Any

MAX_QUOTED_CHARACTERS = 60  # of a text in a message; more would hide what the message says


def shorten(text: str) -> str:
    """Returns a text in quotation marks, cut to `MAX_QUOTED_CHARACTERS`."""
    return repr(text if len(text) <= MAX_QUOTED_CHARACTERS else text[:MAX_QUOTED_CHARACTERS] + "…")


def make_span(text: str, start: Any, end: Any, label: Any, identifier: Any, quoted: Any = None) -> dict[str, Any]:
    """Checks a span and returns it as `start`, `end`, `label` and `id`.

    Args:
        text: the whole text.
        start: offset of the first character of the span.
        end: offset after its last character.
        label: what the span is.
        identifier: the id by which relations refer to the span.
        quoted: the characters of the span as the file repeats them; None if the format does not.

    Raises:
        ValueError: the span does not lie in the text, has no label, or does not have the characters `quoted`.
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
    """Checks a relation between two spans and returns it as `head`, `tail` and `label`.

    Args:
        head: id of the first span.
        tail: id of the second span.
        label: what the relation is.
        identifiers: the ids of all spans of the text.

    Raises:
        ValueError: a span does not exist.
    """
    for identifier in (head, tail):
        if str(identifier) not in identifiers:
            known = ", ".join(sorted(identifiers)) or "none"
            raise ValueError(
                f"the relation {label!r} refers to {identifier!r}, expected the id of a span: {shorten(known)}"
            )
    return {"head": str(head), "tail": str(tail), "label": label}
