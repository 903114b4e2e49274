"""Divides a text into units, each of which gets one label, and joins a list of tokens to a text.

A unit is a word, a number or a punctuation mark. In scripts without spaces, and in Korean, where particles follow a
name directly, a unit is one character. A character is a grapheme cluster (Unicode Standard Annex 29): a letter together
with its combining marks.
"""

from collections.abc import Sequence

import numpy as np
import regex

from deploykit.tasks import Int64

# Contents of character classes of the package `regex`.
UNSPACED_SCRIPTS = (
    r"\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{Yi}\p{Tibetan}\p{LB=SA}"  # SA: Thai, Lao, Khmer, Myanmar, ...
)
CHARACTER_SCRIPTS = rf"{UNSPACED_SCRIPTS}\p{{Hangul}}"  # each character of them is a unit
WORD_CHARACTERS = r"\w\p{N}\p{M}\u00ad\u200c\u200d"  # with soft hyphens and the joiners of Persian and Indic scripts
INVISIBLE = r"\s\p{C}"  # white space, control and format characters, which tokenizers drop

WORD = rf"[[\w\p{{N}}]--[{CHARACTER_SCRIPTS}\p{{Nd}}]][[{WORD_CHARACTERS}]--[{CHARACTER_SCRIPTS}--\p{{M}}]]*"
UNIT = regex.compile(
    rf"(?V1){WORD}"
    r"|\p{Nd}[\p{Nd}\p{M}]*"  # a number is a unit of its own even before letters: 7kg
    rf"|(?:(?=[{CHARACTER_SCRIPTS}])|(?![{INVISIBLE}\w\p{{N}}]))\X"  # a character, or a punctuation mark or symbol
)
VISIBLE = regex.compile(rf"(?V1)[^{INVISIBLE}]")
GRAPHEME = regex.compile(r"\X")
UNSPACED = regex.compile(rf"(?V1)[{UNSPACED_SCRIPTS}\p{{EA=F}}]")  # no space beside it; EA=F: full width


def units(text: str) -> Int64:
    """Returns the start and end of each unit of a text, `(units, 2)`, in characters; white space is in no unit."""
    return np.array([match.span() for match in UNIT.finditer(text)], dtype=np.int64).reshape(-1, 2)


def overlapped_units(unit_offsets: Int64, starts: Sequence[int], ends: Sequence[int]) -> tuple[Int64, Int64]:
    """Returns which units of a text each of several spans overlaps.

    Args:
        unit_offsets: start and end of each unit, `(units, 2)`.
        starts: of the spans, in characters.
        ends: of the spans, exclusive.

    Returns:
        The index of each span's first unit, and the index after its last unit, both `(spans,)`. They are equal for a
        span that overlaps no unit.
    """
    first_units = np.searchsorted(unit_offsets[:, 1], starts, side="right")
    return first_units, np.searchsorted(unit_offsets[:, 0], ends, side="left")


def trim_to_graphemes(text: str, start: int, end: int) -> tuple[int, int]:
    """Removes invisible characters from both ends of a span, then widens it to whole grapheme clusters.

    Args:
        text: the whole text.
        start: of the span, which must hold at least one visible character.
        end: of the span, exclusive.

    Returns:
        The new start and end.
    """
    visible = [match.start() for match in VISIBLE.finditer(text, start, end)]
    start, end = visible[0], visible[-1] + 1
    line_start = text.rfind("\n", 0, start) + 1  # clusters can be found from here on: a line feed ends a cluster
    for cluster in GRAPHEME.finditer(text, line_start):
        if cluster.start() <= start < cluster.end():
            start = cluster.start()
        if cluster.end() >= end:
            return start, cluster.end()
    raise AssertionError("not reached")


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Joins tokens to the text that a client would send.

    Words are separated by a space, except beside a character of a script without spaces. If all tokens are single
    characters, and one of them is white space or of such a script, they are the characters of a text: nothing is put
    between them.

    Args:
        tokens: at least one; none of them is empty.

    Returns:
        The text, and the start and end of each token in it.

    Raises:
        ValueError: a token is white space although another is longer than one character.
    """
    are_characters = all(GRAPHEME.fullmatch(token) for token in tokens)
    has_white_space = any(not token.strip() for token in tokens)
    if has_white_space and not are_characters:
        raise ValueError("a token is empty or not a string")
    needs_no_spaces = are_characters and (has_white_space or any(map(UNSPACED.match, tokens)))
    text, offsets = tokens[0], [(0, len(tokens[0]))]
    for token in tokens[1:]:
        text += "" if needs_no_spaces or UNSPACED.match(text[-1]) or UNSPACED.match(token) else " "
        offsets.append((len(text), len(text) + len(token)))
        text += token
    return text, offsets
