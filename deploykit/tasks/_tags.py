"""Schemes of token tags, and the entities that a sequence of tags means.

BIO, IOB1, BIOES, BILOU and BMES differ in the letters of their tags. All tags are converted to BIOES: `O` (outside of
entities), or a label with the prefix B- (begin), I- (inside), E- (end) or S- (single). `decode_entities` reads these,
from data as well as from the predictions of models.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

OUTSIDE_TAG = "O"  # of a token that belongs to no entity
LETTER_FIRST = re.compile(r"(?P<letter>[BIESLUM])[-_:](?P<label>.*)", re.IGNORECASE)  # as in B-PER
LETTER_LAST = re.compile(r"(?P<label>.*)[-_:](?P<letter>[BIESLUM])", re.IGNORECASE)  # as in PER-B
BIOES_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}  # by the letters of all schemes
BEGIN_LETTERS = set("BISU")  # at least one of them occurs in every scheme; IOB1 may begin all entities with I


def recognize_scheme(tags: Iterable[str]) -> Callable[[str], str]:
    """Recognizes the scheme of a data set from all of its tags.

    Returns:
        A function that converts one tag to BIOES: `O`, or a letter and a label such as `B-PER`. It raises ValueError
        for a tag that does not fit the scheme, or that has a letter but no label.

        Tags that are plain labels, without a letter, become I- if the data set also has `O`: neighbouring tokens of
        one label are then one entity. Without any `O`, as in parts of speech, they become B-: each token is an entity.
    """
    stripped = {_strip(tag) for tag in tags}
    inside_tags = stripped - {OUTSIDE_TAG}
    if inside_tags & {"B", "I"} and all(tag.upper() in BIOES_LETTERS for tag in inside_tags):
        return _refuse_bare_letter
    if _all_match(inside_tags, LETTER_FIRST) or any(re.match("[BI]-", tag) for tag in inside_tags):
        return partial(_convert_affixed, pattern=LETTER_FIRST)
    if _all_match(inside_tags, LETTER_LAST):
        return partial(_convert_affixed, pattern=LETTER_LAST)
    return partial(_convert_label, letter="I" if OUTSIDE_TAG in stripped else "B")


def decode_entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns the entities that a sequence of tags means, in order: label, index of the first and of the last tag.

    An I- or E- tag continues the entity of the tag before it if both have the same label; otherwise it begins one.

    Args:
        tags: in BIOES, such as those that a function of `recognize_scheme` returns, or a model's labels in BIO.
    """
    entities: list[tuple[str, int, int]] = []
    can_continue = False  # whether the tag before belongs to an entity that it does not end
    for index, tag in enumerate(tags):
        letter, _, label = tag.partition("-")
        if can_continue and letter in ("I", "E") and label == entities[-1][0]:
            entities[-1] = (label, entities[-1][1], index)
        elif tag != OUTSIDE_TAG:
            entities.append((label, index, index))
        can_continue = tag != OUTSIDE_TAG and letter in ("B", "I")
    return entities


def _strip(tag: str) -> str:
    """Returns a tag without white space around it, and `o` as `O`."""
    tag = tag.strip()
    return OUTSIDE_TAG if tag == OUTSIDE_TAG.lower() else tag


def _all_match(tags: Iterable[str], pattern: re.Pattern[str]) -> bool:
    """Says whether all tags match the pattern, and at least one of them has a letter of `BEGIN_LETTERS`."""
    matches = [pattern.fullmatch(tag) for tag in tags]
    return all(matches) and any(match["letter"].upper() in BEGIN_LETTERS for match in matches if match)


def _convert_affixed(tag: str, pattern: re.Pattern[str]) -> str:
    """Converts a tag with a letter and a label, in the order of the pattern."""
    tag = _strip(tag)
    if tag == OUTSIDE_TAG:
        return tag
    match = pattern.fullmatch(tag)
    if match is None:
        raise ValueError(
            f"the tag {tag!r} has no prefix, and other tags of the data have one: write B-{tag} or I-{tag}"
        )
    if not match["label"].strip():
        raise ValueError(f"the tag {tag!r} names no label, expected one such as B-PER")
    return f"{BIOES_LETTERS[match['letter'].upper()]}-{match['label'].strip()}"


def _convert_label(tag: str, letter: str) -> str:
    """Converts a tag that is a plain label, by putting the letter before it."""
    tag = _strip(tag)
    return tag if tag == OUTSIDE_TAG else f"{letter}-{tag}"


def _refuse_bare_letter(tag: str) -> str:
    """Accepts only `O`, in a data set whose other tags are letters without labels; raises ValueError for those."""
    tag = _strip(tag)
    if tag != OUTSIDE_TAG:
        raise ValueError(f"the tag {tag!r} names no label, expected one such as {tag.upper()}-PER")
    return tag
