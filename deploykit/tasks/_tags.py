"""Tags of tokens: the scheme that a data set is written in, and the entities that a row of tags stands for.

BIO, IOB1, BIOES, BILOU and BMES differ in letters only. All become B- (begins), I- (goes on), E- (ends) and
S- (single), and one function decodes them, which decodes the predictions of models as well.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

OUTSIDE = "O"
PREFIXED = re.compile(r"(?P<prefix>[BIESLUM])[-_:](?P<label>.*)", re.IGNORECASE)
SUFFIXED = re.compile(r"(?P<label>.*)[-_:](?P<prefix>[BIESLUM])", re.IGNORECASE)
CANONICAL = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
BEGINS = set("BISU")  # of IOB1, where I- begins an entity as well; a scheme has one of these


def scheme(tags: Iterable[str]) -> Callable[[str], str]:
    """Finds out how a data set writes its tags.

    Args:
        tags: all that stand in it.

    Returns:
        What turns a tag into `O`, or into a prefix and its label: `B-PER`. It raises ValueError for a tag that is
        not of the scheme or names no label. Plain labels become I- where there is an `O` to part entities, so that
        neighbours of one label are one entity; otherwise B-, so that each token stands alone, as in parts of speech.
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


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns label, first and last place of each entity, in their order.

    An I- or E- goes on with an entity of its label that stands directly before it, and begins one otherwise.

    Args:
        tags: as `scheme` gives them, or the labels of a model.
    """
    entities: list[tuple[str, int, int]] = []
    is_open = False
    for place, tag in enumerate(tags):
        prefix, _, label = tag.partition("-")
        if is_open and prefix in ("I", "E") and label == entities[-1][0]:
            entities[-1] = (label, entities[-1][1], place)
        elif tag != OUTSIDE:
            entities.append((label, place, place))
        is_open = tag != OUTSIDE and prefix in ("B", "I")
    return entities


def _stripped(tag: str) -> str:
    tag = tag.strip()
    return OUTSIDE if tag == OUTSIDE.lower() else tag


def _are(labels: Iterable[str], pattern: re.Pattern[str]) -> bool:
    """Says whether all labels have the affix, and one of them an affix that begins an entity."""
    matches = [pattern.fullmatch(label) for label in labels]
    return all(matches) and any(match["prefix"].upper() in BEGINS for match in matches if match)


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
