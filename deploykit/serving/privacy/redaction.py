"""Personal data in texts, masked before anything reads them: letters become x and digits 0.

Texts keep their length, so that offsets stay true, and their shape, so that a model still sees that there was an
address or a number. If a kind has a checksum, only numbers that pass it are masked: an order number is no card number.
Patterns do not find names of people (see `person_names`), nor telephone numbers that begin with neither a plus nor a
zero, except those of North America.

Checksums and the lengths of account numbers are those of python-stdnum. Telephone numbers are not left to the library
phonenumbers: it takes 1 ms for a short text, and must be told the country.
"""

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from stdnum import luhn, numdb
from stdnum.br import cpf
from stdnum.es import dni, nie
from stdnum.iban import is_valid as is_iban
from stdnum.iso7064 import mod_97_10
from stdnum.us import ssn

LETTER = re.compile(r"[^\W\d_]")
DIGIT = re.compile(r"\d")
SEPARATOR = re.compile(r"[ \n.-]")  # between the parts of a number, in normalized text
PERSON = "person"
USED = "_"  # replaces what one kind has matched, so that no other kind matches it; is part of a word
LINE_ENDS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # and the tab, which ends a cell
MINUS = "\u2212"
DOTS = "\u00b7\u2022\u2219\u22c5\u30fb\u3002"  # in the middle of a line, and ideographic
INVISIBLE = ("Cf", "Mn", "Me")  # Unicode categories: joiners, soft hyphens, marks on the letter before

Span = tuple[int, int]
FindNames = Callable[[str], Sequence[Span]]  # returns the spans of names in a text


class Kind(NamedTuple):
    """A kind of personal data; `size` returns how many characters of a match, from its start, are such data."""

    name: str
    pattern: re.Pattern[str]
    size: Callable[[str], int]


def redact(text: str, names: FindNames | None = None) -> tuple[str, Counter[str]]:
    """Masks personal data.

    Args:
        text: of any length.
        names: finds the names of people, if they are masked.

    Returns:
        The text, as long as before, and how often each kind was masked.

    Example:
        >>> redact("Write to anna@mail.example.")
        ('Write to xxxx@xxxx.xxxxxxx.', Counter({'email': 1}))
    """
    unused, positions = normalized(text)
    spans: list[Span] = []
    counts: Counter[str] = Counter()
    for kind in KINDS:
        if matches := list(_matches(kind, unused)):
            counts[kind.name] += len(matches)
            spans += matches
            unused = _replaced(unused, matches, lambda part: USED * len(part))
    spans = [(positions[start], positions[stop - 1] + 1) for start, stop in spans]
    if people := names(text) if names else ():
        counts[PERSON] = len(people)
    return _replaced(text, _merged([*spans, *people]), lambda part: DIGIT.sub("0", LETTER.sub("x", part))), counts


def normalized(text: str) -> tuple[str, Sequence[int]]:
    """Writes a text for patterns: every space, hyphen, dot and digit as in ASCII, and no invisible characters.

    Ends of lines and cells become line feeds.

    Returns:
        The normalized text, and the position of each of its characters in the original text.
    """
    plain = text.translate(TABLE)
    if len(plain) == len(text):
        return plain, range(len(text))
    return plain, [position for position, character in enumerate(text) if TABLE[ord(character)]]


class _Table(dict[int, str]):
    """A table for `str.translate` that holds ASCII and computes other characters."""

    def __missing__(self, code: int) -> str:
        return _normalized(code)


@lru_cache(maxsize=4096)
def _normalized(code: int) -> str:
    """Returns the normalized character of a code point; empty if it is invisible."""
    character = chr(code)
    compatible = unicodedata.normalize("NFKC", character)  # full width, superscripts, a no-break hyphen
    character = compatible if len(compatible) == 1 else character
    category = unicodedata.category(character)
    if character in LINE_ENDS:
        return "\n"
    if category == "Zs":
        return " "
    if category == "Pd" or character == MINUS:
        return "-"
    if character in DOTS:
        return "."
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return "" if category in INVISIBLE else character


TABLE = _Table({code: _normalized(code) for code in range(128)})


def _matches(kind: Kind, text: str) -> Iterator[Span]:
    """Yields the spans of a kind; a match that is no such data is searched again behind its first character."""
    position = 0
    while match := kind.pattern.search(text, position):
        size = kind.size(match[0])
        position = match.start() + (size or 1)
        if size:
            yield match.start(), position


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Merges spans that overlap, such as a name in an e-mail address."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


def _replaced(text: str, spans: Sequence[Span], replace: Callable[[str], str]) -> str:
    """Replaces parts of a text; the spans are ascending and do not overlap."""
    pieces, end = list[str](), 0
    for start, stop in spans:
        pieces += [text[end:start], replace(text[start:stop])]
        end = stop
    return "".join([*pieces, text[end:]])


def _if(is_valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Returns a `size` that is the whole match if it is valid, else 0."""
    return lambda text: len(text) if is_valid(text) else 0


def _if_number(is_valid: Callable[[str], bool]) -> Callable[[str], int]:
    """The same without separators; a number of one repeated digit is not valid, though its checksum may be right."""

    def holds(text: str) -> bool:
        number = SEPARATOR.sub("", text)
        return len(set(number)) > 1 and is_valid(number)

    return _if(holds)


def iban_size(text: str) -> int:
    """Returns the size of an international bank account number (ISO 13616) of a country that has them; else 0."""
    length = _iban_length(text[:2].upper())
    positions = [position for position, character in enumerate(text) if character.isalnum()][:length]
    if not length or len(positions) < length:
        return 0
    size = positions[-1] + 1
    number = SEPARATOR.sub("", text[:size]).upper()
    return size if _checksum_holds(number) and is_iban(number, check_country=False) else 0


@cache
def _iban_length(country: str) -> int:
    """Returns the length of a country's account numbers; 0 if it has none."""
    _, properties = numdb.get("iban").info(country)[0]
    return sum(map(int, re.findall(r"(\d+)!", properties.get("bban", "")))) + 4 if properties else 0


def _checksum_holds(number: str) -> bool:
    return mod_97_10.is_valid(number[4:] + number[:4])


def is_unlisted_iban(text: str) -> bool:
    """Checks an account number of a country that is not known to have them."""
    number = SEPARATOR.sub("", text)
    return 15 <= len(number) <= 34 and _checksum_holds(number)


def is_address(text: str) -> bool:
    """Checks an internet address, version 4 or 6; one without a digit is probably code."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return DIGIT.search(text) is not None


DATE = r"\d\d([./-])\d\d\1(?:19|20)\d\d(?!\d)"
V6 = r"(?:(?<![\w.:])|(?<=[g-zG-Z]:))[0-9A-Fa-f]{0,4}"
START = r"(?<!\d)(?<!\d-)"  # not within another number
GAP = r"[ \n.-]{1,2}"  # between groups of digits of a number with a checksum
CARD = _if_number(luhn.is_valid)

PATTERNS: tuple[tuple[str, str, Callable[[str], int]], ...] = (  # with a checksum first; of those the longer first
    ("email", r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", len),
    ("iban", r"(?ai)[A-Z]{2}\d\d(?:[ \n.-]{0,2}[A-Z0-9]){11,30}", iban_size),
    ("iban", r"(?a)\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", _if(is_unlisted_iban)),
    ("card", rf"{START}(?:\d{{4}}{GAP}){{4}}\d{{3}}(?!\d)", CARD),
    ("card", rf"{START}(?:(?:\d{{4}}{GAP}){{3}}\d{{4}}|\d{{4}}{GAP}\d{{6}}{GAP}\d{{4,5}})(?!\d)", CARD),
    ("card", rf"{START}(?<!\d )\d(?:[ -]?\d){{12,18}}(?![\d-])", CARD),
    ("card", rf"{START}\d{{13,19}}(?!\d)", CARD),
    ("ip", V6 + r"(?::[0-9A-Fa-f]{0,4}){1,6}:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _if(is_address)),
    ("ip", V6 + r"(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:])", _if(is_address)),
    ("ip", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _if(is_address)),
    ("national_id", r"\b\d{3}[ .]?\d{3}[ .]?\d{3}[ -]?\d{2}\b", _if_number(cpf.is_valid)),
    ("national_id", r"\b(?:\d{8}|\d{2}\.\d{3}\.\d{3})-?[A-Za-z]\b", _if_number(dni.is_valid)),
    ("national_id", r"\b[XYZxyz]-?\d{7}-?[A-Za-z]\b", _if_number(nie.is_valid)),
    ("national_id", r"\b(?<!\d-)\d{3}-\d{2}-\d{4}\b", _if(ssn.is_valid)),
    # 9 to 15 digits (ITU-T E.164; from 7 after a plus) behind a plus or a zero, except dates and runs of zeros, with
    # the numbers right behind them (an extension, or the next telephone)
    (
        "phone",
        rf"(?<![\w.])(?<!\b\d\d[/-])(?<!\b\d{{4}}-)(?!{DATE}|0000)"
        r"(?:\+\d(?:[ ()/.-]{0,2}\d){6,14}|\(?0\d(?:[ ()/.-]{0,2}\d){7,13})"
        r"(?!\w)(?:[ ()/.-]{1,2}\d+(?!\w)){0,8}",
        len,
    ),
    # as North America writes them
    (
        "phone",
        r"(?<![\w.-])(?:1[ .-])?(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d([.-])(?=\d{3}\1))[2-9]\d\d[ .-]\d{4}(?![\w-])",
        len,
    ),
)
KINDS = [Kind(name, re.compile(pattern), size) for name, pattern, size in PATTERNS]
NAMES = (*dict.fromkeys(kind.name for kind in KINDS), PERSON)
