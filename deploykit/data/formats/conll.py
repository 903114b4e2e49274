"""CoNLL columns: a token on each line with its tags, blank lines between sentences.

Files of taggers have the token in the first column and the tag in the last. CoNLL-U has ten columns, the token in the
second and its part of speech (UPOS) in the fourth; its multiword tokens (`1-2`) and empty nodes (`1.1`) have no tag of
their own and are passed over, as the format defines (https://universaldependencies.org/format.html).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.data import files
from deploykit.data.table import Broken, Row, Table
from deploykit.errors import DataError

UNIVERSAL_COLUMNS = 10
UPOS = 3
NODE = re.compile(r"\d+(?:(-|\.)\d+)?")
DOCUMENT = "-DOCSTART-"
EMPTY = ("", "_")
TAG = re.compile(r"O|[BIOESLUM][-_].+")  # with a prefix of BIO, BIOES, BILOU or BMES


@dataclass(frozen=True)
class Line:
    """A line that is not blank; `fields` are its columns."""

    number: int
    fields: tuple[str, ...]

    @property
    def seems_comment(self) -> bool:
        """Whether it begins with `#`, which in files of taggers may be a token."""
        return self.fields[0].startswith("#")


def read(path: Path) -> Table:
    """Reads sentences as the columns `tokens` and `tags`; the line of each is that of its first token.

    Raises:
        DataError: the file has one column, or numbers of tokens in a file that is not CoNLL-U.
    """
    sentences = list(_sentences(files.read_text(path)))
    lines = [line for sentence in sentences for line in sentence if not line.seems_comment]
    lines = lines or [line for sentence in sentences for line in sentence]
    if not lines:
        return Table(str(path), "line", ("tokens", "tags"), ())
    width = Counter(len(line.fields) for line in lines).most_common(1)[0][0]
    if ".conllu" in path.name.lower() or (width == UNIVERSAL_COLUMNS and _counts_tokens(sentences)):
        parts = [_read_universal(sentence) for sentence in sentences]
    else:
        _refuse(path, lines[0].number, width, sentences)
        tags = {line.fields[-1] for line in lines if len(line.fields) == width}
        parts = [_read_columns(sentence, width, tags) for sentence in sentences]
    rows = tuple(part for part in parts if isinstance(part, Row))
    broken = tuple(complaint for part in parts if isinstance(part, list) for complaint in part)
    return Table(str(path), "line", ("tokens", "tags"), rows, broken)


def _sentences(text: str) -> Iterator[list[Line]]:
    numbered = list(enumerate(re.split(r"\r\n|\r|\n", text), start=1))
    content = [line for _, line in numbered if line.strip() and not line.startswith(("#", DOCUMENT))]
    split: Callable[[str], list[str]] = re.compile(r"[ \t]+").split
    if content and "\t" in content[0]:
        split = re.compile(r"\t").split
    sentence: list[Line] = []
    for number, line in [*numbered, (0, "")]:
        if line.strip() and not line.startswith(DOCUMENT):
            sentence.append(Line(number, tuple(split(line.rstrip(" ")))))
        elif sentence:
            yield sentence
            sentence = []


def _counts_tokens(sentences: Sequence[Sequence[Line]]) -> bool:
    """Tells whether the first column counts the tokens of each sentence from 1, and at least once to 2."""
    columns = [[line.fields[0] for line in sentence if not line.seems_comment] for sentence in sentences]
    numbers = [[name for name in column if name.isdecimal()] for column in columns]
    return (
        all(NODE.fullmatch(name) for column in columns for name in column)
        and all(column == [str(number) for number in range(1, len(column) + 1)] for column in numbers)
        and max(map(len, numbers)) > 1
    )


def _refuse(path: Path, first: int, width: int, sentences: Sequence[Sequence[Line]]) -> None:
    if width == 1:
        raise DataError(
            f"{path}, line {first}: there is one column, expected a token and its tag with a tab or a space between"
            " them. Add the tags, or correct data.format."
        )
    if _counts_tokens(sentences):
        raise DataError(
            f"{path}, line {first}: the first column counts the tokens, expected the tokens themselves, or the"
            f" {UNIVERSAL_COLUMNS} columns of CoNLL-U. Remove the column, for example with: cut -f2-"
        )


def _read_columns(sentence: Sequence[Line], width: int, tags: set[str]) -> Row | list[Broken] | None:
    broken: list[Broken] = []
    tokens: list[Line] = []
    for line in sentence:
        if line.seems_comment and not tokens and not broken and len(line.fields) != width:
            continue
        reason = _column_fault(line, width, tags, is_first=not tokens)
        if reason:
            broken.append(Broken(line.number, reason))
        else:
            tokens.append(line)
    if broken or not tokens:
        return broken or None
    values = {"tokens": [line.fields[0] for line in tokens], "tags": [line.fields[-1] for line in tokens]}
    return Row(tokens[0].number, values)


def _column_fault(line: Line, width: int, tags: set[str], *, is_first: bool) -> str | None:
    if len(line.fields) != width:
        return f"the number of columns is {len(line.fields)}, expected {width} as in most lines"
    if line.seems_comment and is_first and line.fields[-1] not in tags and not TAG.fullmatch(line.fields[-1]):
        return (
            f"begins with # and ends with {line.fields[-1]!r}, which is no tag of the other lines: a comment or a"
            f" token? Expected comments of another number of columns than {width}"
        )
    if not line.fields[0] or not line.fields[-1].strip():
        return "the token or its tag is empty, expected one of each"
    return None


def _read_universal(sentence: Sequence[Line]) -> Row | list[Broken] | None:
    start = next((index for index, line in enumerate(sentence) if not line.seems_comment), len(sentence))
    nodes = sentence[start:]
    broken = [Broken(line.number, fault) for line in nodes if (fault := _universal_fault(line))]
    words = [line for line in nodes if line.fields[0].isdecimal()]
    if broken or not words:
        return broken or None
    values = {"tokens": [line.fields[1] for line in words], "tags": [line.fields[UPOS] for line in words]}
    return Row(words[0].number, values)


def _universal_fault(line: Line) -> str | None:
    if len(line.fields) != UNIVERSAL_COLUMNS:
        return f"the number of columns is {len(line.fields)}, expected the {UNIVERSAL_COLUMNS} of CoNLL-U"
    node = NODE.fullmatch(line.fields[0])
    if not node:
        return f"the id is {line.fields[0]!r}, expected a number as in 1, 1-2 or 1.1"
    if not node[1] and (not line.fields[1] or line.fields[UPOS] in EMPTY):
        return f"column 2 is {line.fields[1]!r} and column 4 is {line.fields[UPOS]!r}, expected a token and its UPOS"
    return None
