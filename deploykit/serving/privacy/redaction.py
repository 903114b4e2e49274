"""Personal data in texts, masked in place before anybody reads them: letters become x and digits 0.

Texts keep their length, so that offsets stay true, and their shape, so that a model still sees that there was an
address or a number. Where a kind has a checksum, only numbers that pass it are masked: an order number is no card.
Patterns find what is written as such; names of people are not found by them (see `names`).
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LETTER = re.compile(r"[^\W\d_]")
DIGIT = re.compile(r"\d")
SPACE = re.compile(r"[ -]")
PERSON = "person"
TAKEN = "_"  # a part of a word, and of nothing that is looked for

Find = Callable[[str], Sequence[tuple[int, int]]]  # where in a text something stands


@dataclass(frozen=True)
class Kind:
    """What is masked: where it may stand, and whether it is one."""

    name: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = bool


def redact(text: str, names: Find | None = None) -> tuple[str, Counter[str]]:
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
    spans: list[tuple[int, int]] = []
    found: Counter[str] = Counter()
    free = text  # what no kind has taken yet
    for kind in KINDS:
        taken = list(_standing(kind, free))
        found.update({kind.name: len(taken)} if taken else {})
        spans += taken
        free = _over(free, taken, lambda part: TAKEN * len(part))
    people = names(text) if names else ()
    found.update({PERSON: len(people)} if people else {})
    return _over(text, _joined([*spans, *people]), lambda part: DIGIT.sub("0", LETTER.sub("x", part))), found


def _standing(kind: Kind, text: str) -> Iterator[tuple[int, int]]:
    """Yields where data of a kind stands; what only looks like it may begin before it."""
    at = 0
    while match := kind.pattern.search(text, at):
        held = kind.holds(match[0])
        at = match.end() if held else match.start() + 1
        if held:
            yield match.span()


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


def luhn(text: str) -> bool:
    """Checks the number of a payment card (ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [digit if index % 2 == 0 else sum(divmod(2 * digit, 10)) for index, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Checks an international bank account number (ISO 13616)."""
    plain = SPACE.sub("", text)
    return 15 <= len(plain) <= 34 and int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def address(text: str) -> bool:
    """Checks an internet address, version 4 or 6; one without a digit is likelier a piece of code."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return DIGIT.search(text) is not None


def cpf(text: str) -> bool:
    """Checks a Brazilian taxpayer's number."""
    digits = _digits(text)
    sums = (sum(digit * (size + 1 - index) for index, digit in enumerate(digits[:size])) for size in (9, 10))
    return len(set(digits)) > 1 and [total * 10 % 11 % 10 for total in sums] == digits[9:]


def dni(text: str) -> bool:
    """Checks a Spanish identity number, of citizens and of residents."""
    number = text[:-1].upper().translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1].upper()


def ssn(text: str) -> bool:
    """Checks that a number may be one of United States social security."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _digits(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdecimal()]


# Signs of an account number by country (ISO 13616's registry); others are taken to end where capitals and digits do.
IBANS = {
    15: "NO",
    16: "BE",
    18: "DK|FI|FK|FO|GL|NL|SD",
    19: "MK|SI",
    20: "AT|BA|EE|KZ|LT|LU|MN|XK",
    21: "CH|HR|LI|LV",
    22: "BG|BH|CR|DE|GB|GE|IE|ME|RS|VA",
    23: "AE|GI|IL|IQ|OM|SO|TL",
    24: "AD|CZ|ES|MD|PK|RO|SA|SE|SK|TN|VG",
    25: "LY|PT|ST",
    26: "IS|TR",
    27: "BI|DJ|FR|GR|IT|MC|MR|SM",
    28: "AL|AZ|BY|CY|DO|GT|HN|HU|LB|NI|PL|SV",
    29: "BR|EG|PS|QA|UA",
    30: "JO|KW|MU|YE",
    31: "MT|SC",
    32: "LC",
    33: "RU",
}
KNOWN = "|".join(rf"(?:{countries})\d\d(?:[ -]?[A-Z0-9]){{{size - 4}}}" for size, countries in IBANS.items())
DATE = r"\d\d([./-])\d\d\1(?:19|20)\d\d(?!\d)"
V6 = r"(?:(?<![\w.:])|(?<=[g-zG-Z]:))[0-9A-Fa-f]{0,4}"

KINDS = (  # in this order: what has a checksum before what has none, and of those the longer first
    Kind("email", re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")),
    Kind("iban", re.compile(rf"\b(?:{KNOWN})\b", re.ASCII | re.IGNORECASE), iban),
    Kind("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", re.ASCII), iban),
    Kind("card", re.compile(r"(?<![\d-])(?:\d{4}[ -]){4}\d{3}(?!\d)"), luhn),
    Kind("card", re.compile(r"(?<![\d-])(?:(?:\d{4}[ -]){3}\d{4}|\d{4}[ -]\d{6}[ -]\d{4,5})(?!\d)"), luhn),
    Kind("card", re.compile(r"(?<![\d-])(?<!\d )\d(?:[ -]?\d){12,18}(?![\d-])"), luhn),
    Kind("card", re.compile(r"(?<![\d-])\d{13,19}(?!\d)"), luhn),
    Kind("ip", re.compile(V6 + r"(?::[0-9A-Fa-f]{0,4}){1,6}:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"), address),
    Kind("ip", re.compile(V6 + r"(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:])"), address),
    Kind("ip", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"), address),
    Kind("national_id", re.compile(r"\b\d{3}\.?\d{3}\.?\d{3}-?\d{2}\b"), cpf),
    Kind("national_id", re.compile(r"\b[XYZxyz\d]\d{7}[A-Za-z]\b"), dni),
    Kind("national_id", re.compile(r"\b\d{3}-\d{2}-\d{4}\b"), ssn),
    # 9 to 15 digits (ITU-T E.164) after a plus or a nought, but for a date or noughts, with the numbers right behind
    # them (an extension, or the next telephone); and as North America writes them
    Kind(
        "phone",
        re.compile(
            rf"(?<![\w.])(?<!\b\d\d[/-])(?<!\b\d{{4}}-)(?!{DATE}|0000)(?:\+\d[ ()/.-]{{0,2}}|\(?0)\d"
            r"(?:[ ()/.-]{0,2}\d){7,13}(?!\w)(?:[ ()/.-]{1,2}\d+(?!\w)){0,8}"
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
