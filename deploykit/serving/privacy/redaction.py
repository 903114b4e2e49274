"""Personal data in texts, masked in place before anybody reads them: letters become x and digits 0.

Texts keep their length, so that offsets stay true, and their shape, so that a model still sees that there was an
address or a number. Where a kind has a checksum, only numbers that pass it are masked: an order number is no card.
Patterns find what is written as such, whatever its spaces, hyphens and digits look like; names of people are not found
by them (see `names`), nor are telephone numbers without a plus or a nought before them, but those of North America.

Checksums and the lengths of account numbers are those of python-stdnum. Telephone numbers are not looked for by the
library phonenumbers: it takes 1 ms for a short text, and finds those of a country only where that is named.
"""

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from stdnum import luhn, numdb
from stdnum.br import cpf
from stdnum.es import dni, nie
from stdnum.iban import is_valid as is_iban
from stdnum.iso7064 import mod_97_10
from stdnum.us import ssn

LETTER = re.compile(r"[^\W\d_]")
DIGIT = re.compile(r"\d")
BETWEEN = re.compile(r"[ \n.-]")  # what may stand between the parts of a number, in `readable` text
PERSON = "person"
TAKEN = "_"  # a part of a word, and of nothing that is looked for
BREAKS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # which end a line or a cell
MINUS = "\u2212"
DOTS = "\u00b7\u2022\u2219\u22c5\u30fb\u3002"  # in the middle of a line, and ideographic
UNSEEN = ("Cf", "Mn", "Me")  # Unicode categories: joiners, soft hyphens, marks on the letter before

FindNames = Callable[[str], Sequence[tuple[int, int]]]  # returns the spans of names in a text


@dataclass(frozen=True)
class Kind:
    """What is masked: where it may stand, and how many characters of that, from its beginning, are such data."""

    name: str
    pattern: re.Pattern[str]
    size: Callable[[str], int] = len


def redact(text: str, names: FindNames | None = None) -> tuple[str, Counter[str]]:
    """Masks personal data.

    Args:
        text: of any length.
        names: finds the names of people, where they are to be masked as well.

    Returns:
        The text, as long as before, and how much of each kind was found.

    Example:
        >>> redact("Write to anna@mail.example.")
        ('Write to xxxx@xxxx.xxxxxxx.', Counter({'email': 1}))
    """
    plain, places = readable(text)
    spans: list[tuple[int, int]] = []
    counts: Counter[str] = Counter()
    free = plain  # what no kind has taken yet
    for kind in KINDS:
        taken = list(_standing(kind, free))
        counts.update({kind.name: len(taken)} if taken else {})
        spans += taken
        free = _over(free, taken, lambda part: TAKEN * len(part))
    spans = [(places[start], places[stop - 1] + 1) for start, stop in spans]
    people = names(text) if names else ()
    counts.update({PERSON: len(people)} if people else {})
    return _over(text, _joined([*spans, *people]), lambda part: DIGIT.sub("0", LETTER.sub("x", part))), counts


def readable(text: str) -> tuple[str, Sequence[int]]:
    """Writes a text for patterns: every kind of space, hyphen and digit as the plain one, and no unseen characters.

    Ends of lines and cells become line feeds.

    Returns:
        The text, and for each of its characters the place that it has in the text as it was.
    """
    plain = text.translate(PLAIN)
    if len(plain) == len(text):
        return plain, range(len(text))
    return plain, [place for place, sign in enumerate(text) if PLAIN[ord(sign)]]


class _Plain(dict[int, str]):
    """A table for `str.translate` that holds the signs of ASCII, and asks for others."""

    def __missing__(self, code: int) -> str:
        return _plain(code)


@lru_cache(maxsize=4096)
def _plain(code: int) -> str:
    """Returns the sign that patterns read in place of one, nothing in place of one that is not seen."""
    sign = chr(code)
    compatible = unicodedata.normalize("NFKC", sign)  # full width, superscripts, a no-break hyphen
    sign = compatible if len(compatible) == 1 else sign
    category = unicodedata.category(sign)
    if sign in BREAKS:
        return "\n"
    if category == "Zs":
        return " "
    if category == "Pd" or sign == MINUS:
        return "-"
    if sign in DOTS:
        return "."
    if category == "Nd":
        return str(unicodedata.decimal(sign))
    return "" if category in UNSEEN else sign


PLAIN = _Plain({code: _plain(code) for code in range(128)})


def _standing(kind: Kind, text: str) -> Iterator[tuple[int, int]]:
    """Yields where data of a kind stands; what only looks like it may begin before it."""
    at = 0
    while match := kind.pattern.search(text, at):
        size = kind.size(match[0])
        at = match.start() + (size or 1)
        if size:
            yield match.start(), at


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins spans that overlap, as a name does that is part of an address."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _over(text: str, spans: Sequence[tuple[int, int]], write: Callable[[str], str]) -> str:
    """Writes over parts of a text; they do not overlap and are ascending."""
    pieces, end = list[str](), 0
    for start, stop in spans:
        pieces += [text[end:start], write(text[start:stop])]
        end = stop
    return "".join([*pieces, text[end:]])


def _whole(holds: Callable[[str], bool]) -> Callable[[str], int]:
    """Makes the size of data that is all of what was found, where a check holds, or none."""
    return lambda text: len(text) if holds(text) else 0


def _passes(is_valid: Callable[[str], bool]) -> Callable[[str], int]:
    """The same for a number with a checksum; one digit repeated is nobody's, though its sum may be right."""

    def holds(text: str) -> bool:
        number = BETWEEN.sub("", text)
        return len(set(number)) > 1 and is_valid(number)

    return _whole(holds)


def iban(text: str) -> int:
    """Measures an international bank account number (ISO 13616) of a country that has them; 0 where it is none."""
    wanted = _iban_signs(text[:2].upper())
    places = [place for place, sign in enumerate(text) if sign.isalnum()][:wanted]
    if not wanted or len(places) < wanted:
        return 0
    number = BETWEEN.sub("", text[: places[-1] + 1]).upper()
    return places[-1] + 1 if _sums_up(number) and is_iban(number, check_country=False) else 0


@cache
def _iban_signs(country: str) -> int:
    """Returns how many signs the account numbers of a country have, 0 where it has none."""
    _, properties = numdb.get("iban").info(country)[0]
    return sum(map(int, re.findall(r"(\d+)!", properties.get("bban", "")))) + 4 if properties else 0


def _sums_up(number: str) -> bool:
    return mod_97_10.is_valid(number[4:] + number[:4])


def other_iban(text: str) -> bool:
    """Checks an account number of a country that is not known to have them."""
    number = BETWEEN.sub("", text)
    return 15 <= len(number) <= 34 and _sums_up(number)


def address(text: str) -> bool:
    """Checks an internet address, version 4 or 6; one without a digit is likelier a piece of code."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return DIGIT.search(text) is not None


DATE = r"\d\d([./-])\d\d\1(?:19|20)\d\d(?!\d)"
V6 = r"(?:(?<![\w.:])|(?<=[g-zG-Z]:))[0-9A-Fa-f]{0,4}"
START = r"(?<!\d)(?<!\d-)"  # not within another number
GROUP = r"[ \n.-]{1,2}"  # between groups of digits whose number has a checksum

KINDS = (  # in this order: what has a checksum before what has none, and of those the longer first
    Kind("email", re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")),
    Kind("iban", re.compile(r"[A-Z]{2}\d\d(?:[ \n.-]{0,2}[A-Z0-9]){11,30}", re.ASCII | re.IGNORECASE), iban),
    Kind("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", re.ASCII), _whole(other_iban)),
    Kind("card", re.compile(rf"{START}(?:\d{{4}}{GROUP}){{4}}\d{{3}}(?!\d)"), _passes(luhn.is_valid)),
    Kind(
        "card",
        re.compile(
            rf"{START}(?:(?:\d{{4}}{GROUP}){{3}}\d{{4}}|\d{{4}}{GROUP}\d{{6}}{GROUP}\d{{4,5}})(?!\d)",
        ),
        _passes(luhn.is_valid),
    ),
    Kind("card", re.compile(rf"{START}(?<!\d )\d(?:[ -]?\d){{12,18}}(?![\d-])"), _passes(luhn.is_valid)),
    Kind("card", re.compile(rf"{START}\d{{13,19}}(?!\d)"), _passes(luhn.is_valid)),
    Kind("ip", re.compile(V6 + r"(?::[0-9A-Fa-f]{0,4}){1,6}:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"), _whole(address)),
    Kind("ip", re.compile(V6 + r"(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:])"), _whole(address)),
    Kind("ip", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"), _whole(address)),
    Kind("national_id", re.compile(r"\b\d{3}[ .]?\d{3}[ .]?\d{3}[ -]?\d{2}\b"), _passes(cpf.is_valid)),
    Kind("national_id", re.compile(r"\b(?:\d{8}|\d{2}\.\d{3}\.\d{3})-?[A-Za-z]\b"), _passes(dni.is_valid)),
    Kind("national_id", re.compile(r"\b[XYZxyz]-?\d{7}-?[A-Za-z]\b"), _passes(nie.is_valid)),
    Kind("national_id", re.compile(r"\b(?<!\d-)\d{3}-\d{2}-\d{4}\b"), _whole(ssn.is_valid)),
    # 9 to 15 digits (ITU-T E.164; from 7 after a plus) behind a plus or a nought, but for a date or noughts, with the
    # numbers right behind them (an extension, or the next telephone); and as North America writes them
    Kind(
        "phone",
        re.compile(
            rf"(?<![\w.])(?<!\b\d\d[/-])(?<!\b\d{{4}}-)(?!{DATE}|0000)"
            r"(?:\+\d(?:[ ()/.-]{0,2}\d){6,14}|\(?0\d(?:[ ()/.-]{0,2}\d){7,13})"
            r"(?!\w)(?:[ ()/.-]{1,2}\d+(?!\w)){0,8}"
        ),
    ),
    Kind(
        "phone",
        re.compile(
            r"(?<![\w.-])(?:1[ .-])?(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d([.-])(?=\d{3}\1))[2-9]\d\d[ .-]\d{4}(?![\w-])"
        ),
    ),
)
NAMES = (*dict.fromkeys(kind.name for kind in KINDS), PERSON)
