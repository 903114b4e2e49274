"""Masks personal data in texts: letters become x and digits 0.

Texts keep their length, so that offsets stay right, and their shape, so that a model still sees that there was an
address or a number. If a kind has a checksum, only numbers that pass it are masked: an order number is no card number.
Patterns find no names of people (see `person_names`), and no telephone numbers that begin with neither a plus nor a
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
PERSON_KIND = "person"  # counts names of people, which no pattern finds
# replaces what one kind has matched, so that no other kind matches it; a word character, because patterns look for the
# edges of words
MATCHED = "_"
LINE_ENDS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # of lines, and of cells: the tab
MINUS = "\u2212"  # its Unicode category is not that of dashes
DOTS = "\u00b7\u2022\u2219\u22c5\u30fb\u3002"  # middle dots, bullets and the ideographic full stop
INVISIBLE_CATEGORIES = ("Cf", "Mn", "Me")  # of Unicode: joiners, soft hyphens, marks on the letter before

Span = tuple[int, int]  # offsets of the first character, and after the last
FindNames = Callable[[str], Sequence[Span]]  # returns the spans of names of people in a text


class Kind(NamedTuple):
    """A kind of personal data, and how to find it.

    Attributes:
        name: of the kind; several patterns may have the same.
        pattern: matches candidates in normalized text.
        valid_length: returns how many characters of a match, from its start, are such data; 0 if none.
    """

    name: str
    pattern: re.Pattern[str]
    valid_length: Callable[[str], int]


def redact(text: str, find_names: FindNames | None = None) -> tuple[str, Counter[str]]:
    """Masks personal data.

    Args:
        text: of any length.
        find_names: finds the names of people; None if they are not masked.

    Returns:
        The masked text, as long as before, and how often each kind was masked.

    Example:
        >>> redact("Write to anna@mail.example.")
        ('Write to xxxx@xxxx.xxxxxxx.', Counter({'email': 1}))
    """
    searched_text, positions = normalize(text)
    spans: list[Span] = []
    counts: Counter[str] = Counter()
    for kind in KINDS:
        if matches := list(_find_spans(kind, searched_text)):
            counts[kind.name] += len(matches)
            spans += matches
            searched_text = _replace_spans(searched_text, matches, lambda match: MATCHED * len(match))
    # an invisible character within a span is masked, too
    original_spans = [(positions[start], positions[stop - 1] + 1) for start, stop in spans]
    if people := find_names(text) if find_names else ():
        counts[PERSON_KIND] = len(people)
    return _replace_spans(text, _merge_spans([*original_spans, *people]), _mask), counts


def _mask(text: str) -> str:
    """Replaces each letter by x and each digit by 0."""
    return DIGIT.sub("0", LETTER.sub("x", text))


def normalize(text: str) -> tuple[str, Sequence[int]]:
    """Prepares a text for the patterns: spaces, hyphens, dots and digits become those of ASCII.

    Ends of lines and of table cells become line feeds. Invisible characters are removed.

    Returns:
        The normalized text, and the position of each of its characters in the original text.
    """
    plain = text.translate(NORMALIZED_CHARACTERS)
    if len(plain) == len(text):
        return plain, range(len(text))
    kept = [position for position, character in enumerate(text) if NORMALIZED_CHARACTERS[ord(character)]]
    return plain, kept


class _NormalizedCharacters(dict[int, str]):
    """A table for `str.translate`, from code points to normalized characters; those beyond ASCII are computed."""

    def __missing__(self, code_point: int) -> str:
        return _normalized_character(code_point)


@lru_cache(maxsize=4096)
def _normalized_character(code_point: int) -> str:
    """Returns the normalized character of a code point; the empty string if it is invisible."""
    character = chr(code_point)
    compatible = unicodedata.normalize("NFKC", character)  # of full-width characters, superscripts, no-break hyphens
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
    return "" if category in INVISIBLE_CATEGORIES else character


NORMALIZED_CHARACTERS = _NormalizedCharacters({code: _normalized_character(code) for code in range(128)})


def _find_spans(kind: Kind, text: str) -> Iterator[Span]:
    """Yields the spans of a kind of data; after a match that is not valid, searches on from its second character."""
    position = 0
    while match := kind.pattern.search(text, position):
        length = kind.valid_length(match[0])
        position = match.start() + (length or 1)
        if length:
            yield match.start(), position


def _merge_spans(spans: Sequence[Span]) -> list[Span]:
    """Merges spans that overlap, such as a name in an e-mail address."""
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


def _replace_spans(text: str, spans: Sequence[Span], replace: Callable[[str], str]) -> str:
    """Replaces the given spans of a text; they must be ascending and must not overlap."""
    pieces, end = list[str](), 0
    for start, stop in spans:
        pieces += [text[end:start], replace(text[start:stop])]
        end = stop
    return "".join([*pieces, text[end:]])


def _whole_if(is_valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Makes a `Kind.valid_length`: the length of the whole match if `is_valid` accepts it, else 0."""
    return lambda text: len(text) if is_valid(text) else 0


def _whole_if_number(is_valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Makes a `Kind.valid_length` as `_whole_if` does, but `is_valid` gets the match without separators.

    A number of one repeated digit is never valid, though its checksum may be right.
    """

    def is_valid_number(text: str) -> bool:
        number = SEPARATOR.sub("", text)
        return len(set(number)) > 1 and is_valid(number)

    return _whole_if(is_valid_number)


def iban_length(text: str) -> int:
    """Returns how many characters of a text, from its start, are an account number (IBAN, ISO 13616).

    Separators count, too. It is 0 if the text begins with no valid number of a country that is known to have them.
    """
    number_length = _country_iban_length(text[:2].upper())
    positions = [position for position, character in enumerate(text) if character.isalnum()][:number_length]
    if not number_length or len(positions) < number_length:
        return 0
    length = positions[-1] + 1
    number = SEPARATOR.sub("", text[:length]).upper()
    return length if _checksum_holds(number) and is_iban(number, check_country=False) else 0


@cache
def _country_iban_length(country: str) -> int:
    """Returns how many letters and digits a country's account numbers (IBAN) have; 0 if it has none or is unknown."""
    _, properties = numdb.get("iban").info(country)[0]
    if not properties:
        return 0
    group_lengths = re.findall(r"(\d+)!", properties.get("bban", ""))  # of the part after country and check digits
    return 4 + sum(map(int, group_lengths))


def _checksum_holds(number: str) -> bool:
    """Checks the two check digits of an account number (IBAN) without separators (ISO 7064, MOD 97-10)."""
    return mod_97_10.is_valid(number[4:] + number[:4])


def is_unlisted_iban(text: str) -> bool:
    """Checks an account number of a country that is not known to have them, by length and checksum only."""
    number = SEPARATOR.sub("", text)
    return 15 <= len(number) <= 34 and _checksum_holds(number)


def is_address(text: str) -> bool:
    """Checks an IP address, version 4 or 6; one without a digit, such as `::`, is probably code."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return DIGIT.search(text) is not None


DATE_PATTERN = r"\d\d([./-])\d\d\1(?:19|20)\d\d(?!\d)"  # such as 31.12.1999
IPV6_START = r"(?:(?<![\w.:])|(?<=[g-zG-Z]:))[0-9A-Fa-f]{0,4}"  # the first group
NUMBER_START = r"(?<!\d)(?<!\d-)"  # not within another number
GROUP_GAP = r"[ \n.-]{1,2}"  # between groups of digits of a number with a checksum
WHOLE_IF_CARD = _whole_if_number(luhn.is_valid)  # the checksum of card numbers

# name, pattern and `valid_length` of each kind, in the order of search: those with a checksum before those without, and
# the longer before the shorter
PATTERNS: tuple[tuple[str, str, Callable[[str], int]], ...] = (
    ("email", r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", len),
    ("iban", r"(?ai)[A-Z]{2}\d\d(?:[ \n.-]{0,2}[A-Z0-9]){11,30}", iban_length),
    ("iban", r"(?a)\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", _whole_if(is_unlisted_iban)),
    ("card", rf"{NUMBER_START}(?:\d{{4}}{GROUP_GAP}){{4}}\d{{3}}(?!\d)", WHOLE_IF_CARD),
    (
        "card",
        rf"{NUMBER_START}(?:(?:\d{{4}}{GROUP_GAP}){{3}}\d{{4}}|\d{{4}}{GROUP_GAP}\d{{6}}{GROUP_GAP}\d{{4,5}})(?!\d)",
        WHOLE_IF_CARD,
    ),
    ("card", rf"{NUMBER_START}(?<!\d )\d(?:[ -]?\d){{12,18}}(?![\d-])", WHOLE_IF_CARD),
    ("card", rf"{NUMBER_START}\d{{13,19}}(?!\d)", WHOLE_IF_CARD),
    ("ip", IPV6_START + r"(?::[0-9A-Fa-f]{0,4}){1,6}:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _whole_if(is_address)),
    ("ip", IPV6_START + r"(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:])", _whole_if(is_address)),
    ("ip", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", _whole_if(is_address)),
    ("national_id", r"\b\d{3}[ .]?\d{3}[ .]?\d{3}[ -]?\d{2}\b", _whole_if_number(cpf.is_valid)),
    ("national_id", r"\b(?:\d{8}|\d{2}\.\d{3}\.\d{3})-?[A-Za-z]\b", _whole_if_number(dni.is_valid)),
    ("national_id", r"\b[XYZxyz]-?\d{7}-?[A-Za-z]\b", _whole_if_number(nie.is_valid)),
    ("national_id", r"\b(?<!\d-)\d{3}-\d{2}-\d{4}\b", _whole_if(ssn.is_valid)),
    # 9 to 15 digits (ITU-T E.164; from 7 after a plus) behind a plus or a zero, except dates and runs of zeros, with
    # the numbers right behind them (an extension, or the next telephone)
    (
        "phone",
        rf"(?<![\w.])(?<!\b\d\d[/-])(?<!\b\d{{4}}-)(?!{DATE_PATTERN}|0000)"
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
KINDS = [Kind(name, re.compile(pattern), valid_length) for name, pattern, valid_length in PATTERNS]
KIND_NAMES = (*dict.fromkeys(kind.name for kind in KINDS), PERSON_KIND)
