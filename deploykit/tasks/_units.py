"""Divides a text into the units that get one label each, and joins a list of tokens to a text.

A unit is a word, a number or a punctuation mark. In scripts without spaces, and in Korean, where particles follow a
name directly, it is a character: a grapheme cluster (Unicode Standard Annex 29), so combining marks stay with their
base.
"""

from collections.abc import Sequence

import numpy as np
import regex

from deploykit.tasks import Int64

JOINED = (
    r"\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{Yi}\p{Tibetan}\p{LB=SA}"  # SA: Thai, Lao, Khmer, Myanmar, ...
)
BY_CHARACTER = rf"{JOINED}\p{{Hangul}}"
IN_WORD = r"\w\p{N}\p{M}\u00ad\u200c\u200d"  # with soft hyphens and the joiners of Persian and Indic scripts
INVISIBLE = r"\s\p{C}"  # white space, control and format characters, which tokenizers drop
WORD = rf"[[\w\p{{N}}]--[{BY_CHARACTER}\p{{Nd}}]][[{IN_WORD}]--[{BY_CHARACTER}--\p{{M}}]]*"
UNIT = regex.compile(
    rf"(?V1){WORD}"
    r"|\p{Nd}[\p{Nd}\p{M}]*"  # a number is a unit of its own even before letters: 7kg
    rf"|(?:(?=[{BY_CHARACTER}])|(?![{INVISIBLE}\w\p{{N}}]))\X"
)
VISIBLE = regex.compile(rf"(?V1)[^{INVISIBLE}]")
CLUSTER = regex.compile(r"\X")
WITHOUT_SPACES = regex.compile(rf"(?V1)[{JOINED}\p{{EA=F}}]")


def units(text: str) -> Int64:
    """Returns the character offsets of the units of a text, shape `(units, 2)`; white space belongs to none."""
    return np.array([match.span() for match in UNIT.finditer(text)], dtype=np.int64).reshape(-1, 2)


def overlapping(unit_offsets: Int64, starts: Sequence[int], ends: Sequence[int]) -> tuple[Int64, Int64]:
    """Returns the first unit that each part of a text overlaps, and the one after the last; equal if it overlaps none.

    Args:
        unit_offsets: of the text, `(units, 2)`.
        starts: of the parts.
        ends: of the parts, exclusive.
    """
    first = np.searchsorted(unit_offsets[:, 1], starts, side="right")
    return first, np.searchsorted(unit_offsets[:, 0], ends, side="left")


def trim_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Removes what cannot be seen from the ends of a part of a text, and widens it to whole grapheme clusters.

    Args:
        text: the whole text.
        start: of the part, which holds at least one visible character.
        end: of the part, exclusive.
    """
    visible = [match.start() for match in VISIBLE.finditer(text, start, end)]
    start, end = visible[0], visible[-1] + 1
    line = text.rfind("\n", 0, start) + 1  # a line feed ends a grapheme cluster
    for cluster in CLUSTER.finditer(text, line):
        if cluster.start() <= start < cluster.end():
            start = cluster.start()
        if cluster.end() >= end:
            return start, cluster.end()
    raise AssertionError("not reached")


def join(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Joins tokens, of which there is at least one and none is empty, to the text that a client would send.

    Words are separated by a space, except beside a character of a script without spaces. If all tokens are single
    characters, and one of them is white space or of such a script, the tokens are the characters of a text, and nothing
    is put between them.

    Returns:
        The text, and the offsets of each token.

    Raises:
        ValueError: a token is white space although others are longer than a character.
    """
    characters = all(regex.fullmatch(r"\X", token) for token in tokens)
    blank = any(not token.strip() for token in tokens)
    if blank and not characters:
        raise ValueError("a token is empty or not a string")
    characters = characters and (blank or any(map(WITHOUT_SPACES.match, tokens)))
    text, offsets = tokens[0], [(0, len(tokens[0]))]
    for token in tokens[1:]:
        text += "" if characters or WITHOUT_SPACES.match(text[-1]) or WITHOUT_SPACES.match(token) else " "
        offsets.append((len(text), len(text) + len(token)))
        text += token
    return text, offsets
