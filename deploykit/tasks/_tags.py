"""Schemes of token tags, and the entities that a sequence of tags means.

BIO, IOB1, BIOES, BILOU and BMES differ only in their letters. All are converted to B- (begin), I- (inside), E- (end)
and S- (single), which one function decodes, for data and for the predictions of models.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

OUTSIDE = "O"
PREFIXED = re.compile(r"(?P<prefix>[BIESLUM])[-_:](?P<label>.*)", re.IGNORECASE)
SUFFIXED = re.compile(r"(?P<label>.*)[-_:](?P<prefix>[BIESLUM])", re.IGNORECASE)
CANONICAL = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
BEGINNINGS = set("BISU")  # every scheme uses one of these; in IOB1 it may be I only


def recognize_scheme(tags: Iterable[str]) -> Callable[[str], str]:
    """Recognizes the scheme of a data set from all of its tags.

    Returns:
        A function that converts a tag to `O` or to a prefix and a label, such as `B-PER`. It raises ValueError for a
        tag that does not fit the scheme or names no label. Plain labels get I- if the data set has an `O` between
        entities, so that neighbours of one label are one entity; otherwise B-, so that each token is an entity of its
        own, as in parts of speech.
    """
    names = {_stripped(tag) for tag in tags}
    labels = names - {OUTSIDE}
    if labels & {"B", "I"} and all(label.upper() in CANONICAL for label in labels):
        return _unnamed
    if _are(labels, PREFIXED) or any(re.match("[BI]-", label) for label in labels):
        return partial(_affixed, pattern=PREFIXED)
    if _are(labels, SUFFIXED):
        return partial(_affixed, pattern=SUFFIXED)
    return partial(_plain, prefix="I" if OUTSIDE in names else "B")


def decode_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns label, first and last index of each entity, in order.

    An I- or E- continues an entity of its label directly before it, and otherwise begins one.

    Args:
        tags: converted by `recognize_scheme`, or labels of a model.
    """
    entities: list[tuple[str, int, int]] = []
    is_open = False
    for index, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if is_open and prefix in ("I", "E") and label == entities[-1][0]:
            entities[-1] = (label, entities[-1][1], index)
        elif tag != OUTSIDE:
            entities.append((label, index, index))
        is_open = tag != OUTSIDE and prefix in ("B", "I")
    return entities


def _stripped(tag: str) -> str:
    tag = tag.strip()
    return OUTSIDE if tag == OUTSIDE.lower() else tag


def _are(labels: Iterable[str], pattern: re.Pattern[str]) -> bool:
    """Tells whether all labels have a prefix or suffix of the pattern, and at least one of them begins an entity."""
    matches = [pattern.fullmatch(label) for label in labels]
    return all(matches) and any(match["prefix"].upper() in BEGINNINGS for match in matches if match)


def _affixed(tag: str, pattern: re.Pattern[str]) -> str:
    tag = _stripped(tag)
    if tag == OUTSIDE:
        return tag
    match = pattern.fullmatch(tag)
    if match is None:
        raise ValueError(
            f"the tag {tag!r} has no prefix, and other tags of the data have one: write B-{tag} or I-{tag}"
        )
    if not match["label"].strip():
        raise ValueError(f"the tag {tag!r} names no label, expected one such as B-PER")
    return f"{CANONICAL[match['prefix'].upper()]}-{match['label'].strip()}"


def _plain(tag: str, prefix: str) -> str:
    tag = _stripped(tag)
    return tag if tag == OUTSIDE else f"{prefix}-{tag}"


def _unnamed(tag: str) -> str:
    tag = _stripped(tag)
    if tag != OUTSIDE:
        raise ValueError(f"the tag {tag!r} names no label, expected one such as {tag.upper()}-PER")
    return tag
