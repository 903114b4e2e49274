"""The units of a text that get one label each, and the text that a list of tokens stands for.

A unit is a word, a number or a punctuation mark; in scripts that are written without spaces, and in Korean, where
particles follow a name without one, it is a character. Combining marks stay with their base, so a character is
what a reader calls one (a grapheme cluster, Unicode Standard Annex 29). Training and serving share this file.
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
UNSEEN = r"\s\p{C}"  # white space, and characters without a shape of their own, which tokenizers drop
WORD = rf"[[\w\p{{N}}]--[{BY_CHARACTER}\p{{Nd}}]][[{IN_WORD}]--[{BY_CHARACTER}--\p{{M}}]]*"
UNIT = regex.compile(
    rf"(?V1){WORD}"
    r"|\p{Nd}[\p{Nd}\p{M}]*"  # a number that letters follow is a unit of its own: 7kg
    rf"|(?:(?=[{BY_CHARACTER}])|(?![{UNSEEN}\w\p{{N}}]))\X"
)
TOUCHES = regex.compile(rf"(?V1)[{JOINED}\p{{EA=F}}]")


def units(text: str) -> Int64:
    """Returns the character offsets of the units of a text, shape `(units, 2)`; white space begins none of them."""
    return np.array([match.span() for match in UNIT.finditer(text)], dtype=np.int64).reshape(-1, 2)


def join(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Joins tokens to the text that a client would send.

    A space stands between two words, and none beside a character of a script that is written without spaces. Where
    all tokens are single characters, some of them of such a script or white space, the row is a text cut into its
    characters, and nothing stands between them.

    Returns:
        The text and the offsets of each token.

    Args:
        tokens: at least one, none of them empty.

    Raises:
        ValueError: a token is white space, and others are longer than a character.
    """
    characters = all(regex.fullmatch(r"\X", token) for token in tokens)
    blank = any(not token.strip() for token in tokens)
    if blank and not characters:
        raise ValueError("a token is empty or no text")
    characters = characters and (blank or any(map(TOUCHES.match, tokens)))
    text, places = tokens[0], [(0, len(tokens[0]))]
    for token in tokens[1:]:
        text += "" if characters or TOUCHES.match(text[-1]) or TOUCHES.match(token) else " "
        places.append((len(text), len(text) + len(token)))
        text += token
    return text, places
