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
from deploykit.data.table import BrokenRow, Row, Table
from deploykit.errors import DataError

CONLLU_COLUMNS = 10  # ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC
FORM_INDEX, UPOS_INDEX = 1, 3
CONLLU_ID = re.compile(r"\d+(?:(-|\.)\d+)?")  # the group is - for a multiword token, . for an empty node
DOCUMENT_START = "-DOCSTART-"  # begins a line between documents in the files of CoNLL-2003
EMPTY_UPOS = ("", "_")
IOB_TAG = re.compile(r"O|[BIOESLUM][-_].+")  # with a prefix of BIO, BIOES, BILOU or BMES


@dataclass(frozen=True)
class Line:
    """A line that is not blank; `fields` are its columns."""

    number: int
    fields: tuple[str, ...]

    @property
    def seems_comment(self) -> bool:
        """Whether it begins with `#`, which in files of taggers may also be a token."""
        return self.fields[0].startswith("#")


def read(path: Path) -> Table:
    """Reads sentences as the columns `tokens` and `tags`; the place of each is the line of its first token.

    Raises:
        DataError: the file has one column, or numbers of tokens in a file that is not CoNLL-U.
    """
    sentences = list(_split_sentences(files.read_text(path)))
    lines = [line for sentence in sentences for line in sentence if not line.seems_comment]
    lines = lines or [line for sentence in sentences for line in sentence]  # every line begins with `#`
    if not lines:
        return Table(str(path), "line", ("tokens", "tags"), ())
    most_common_width = Counter(len(line.fields) for line in lines).most_common(1)[0][0]
    if ".conllu" in path.name.lower() or (most_common_width == CONLLU_COLUMNS and _has_token_numbers(sentences)):
        results = [_convert_conllu_sentence(sentence) for sentence in sentences]
    else:
        _refuse_without_tokens(path, lines[0].number, most_common_width, sentences)
        tags = {line.fields[-1] for line in lines if len(line.fields) == most_common_width}
        results = [_convert_sentence(sentence, most_common_width, tags) for sentence in sentences]
    rows = tuple(result for result in results if isinstance(result, Row))
    broken_rows = tuple(broken for result in results if isinstance(result, list) for broken in result)
    return Table(str(path), "line", ("tokens", "tags"), rows, broken_rows)


def _split_sentences(text: str) -> Iterator[list[Line]]:
    """Yields the lines of each sentence; the first line with a token decides whether tabs or spaces split columns."""
    numbered = list(enumerate(re.split(r"\r\n|\r|\n", text), start=1))
    token_lines = [line for _, line in numbered if line.strip() and not line.startswith(("#", DOCUMENT_START))]
    split_columns: Callable[[str], list[str]] = re.compile(r"[ \t]+").split
    if token_lines and "\t" in token_lines[0]:
        split_columns = re.compile(r"\t").split
    sentence: list[Line] = []
    for number, line in [*numbered, (0, "")]:  # a blank line ends the last sentence
        if line.strip() and not line.startswith(DOCUMENT_START):
            sentence.append(Line(number, tuple(split_columns(line.rstrip(" ")))))
        elif sentence:
            yield sentence
            sentence = []


def _has_token_numbers(sentences: Sequence[Sequence[Line]]) -> bool:
    """Tells whether the first column counts the tokens of each sentence from 1.

    At least one sentence must have two tokens: in sentences of one token each, `1` may be the token itself.
    """
    first_columns = [[line.fields[0] for line in sentence if not line.seems_comment] for sentence in sentences]
    numbers = [[field for field in column if field.isdecimal()] for column in first_columns]
    return (
        all(CONLLU_ID.fullmatch(field) for column in first_columns for field in column)
        and all(column == [str(number) for number in range(1, len(column) + 1)] for column in numbers)
        and max(map(len, numbers)) > 1
    )


def _refuse_without_tokens(path: Path, line_number: int, width: int, sentences: Sequence[Sequence[Line]]) -> None:
    """Refuses a file of taggers whose first column cannot be tokens, or is the only one.

    Args:
        path: of the file.
        line_number: of the first token.
        width: the number of columns of most lines.
        sentences: all lines of the file.

    Raises:
        DataError: there is one column, or the first column counts the tokens.
    """
    if width == 1:
        raise DataError(
            f"{path}, line {line_number}: there is one column, expected a token and its tag with a tab or a space"
            " between them. Add the tags, or correct data.format."
        )
    if _has_token_numbers(sentences):
        raise DataError(
            f"{path}, line {line_number}: the first column counts the tokens, expected the tokens themselves, or the"
            f" {CONLLU_COLUMNS} columns of CoNLL-U. Remove the column, for example with: cut -f2-"
        )


def _convert_sentence(sentence: Sequence[Line], width: int, tags: set[str]) -> Row | list[BrokenRow] | None:
    """Returns a sentence of a tagger's file as a row, or a broken row for each line with a fault.

    Args:
        sentence: its lines. Those before the first token that begin with `#` and have another width are comments.
        width: the number of columns of most lines of the file.
        tags: of the lines of the file that are surely tokens.

    Returns:
        None if all lines are comments.
    """
    broken_rows: list[BrokenRow] = []
    tokens: list[Line] = []
    for line in sentence:
        if line.seems_comment and not tokens and not broken_rows and len(line.fields) != width:
            continue
        fault = _find_fault(line, width, tags, is_first=not tokens)
        if fault:
            broken_rows.append(BrokenRow(line.number, fault))
        else:
            tokens.append(line)
    if broken_rows or not tokens:
        return broken_rows or None
    values = {"tokens": [line.fields[0] for line in tokens], "tags": [line.fields[-1] for line in tokens]}
    return Row(tokens[0].number, values)


def _find_fault(line: Line, width: int, tags: set[str], *, is_first: bool) -> str | None:
    """Returns what is wrong with a line of a tagger's file; None if it is a token with its tag."""
    if len(line.fields) != width:
        return f"the number of columns is {len(line.fields)}, expected {width} as in most lines"
    if line.seems_comment and is_first and line.fields[-1] not in tags and not IOB_TAG.fullmatch(line.fields[-1]):
        return (
            f"begins with # and ends with {line.fields[-1]!r}, which is no tag of the other lines: a comment or a"
            f" token? Expected comments of another number of columns than {width}"
        )
    if not line.fields[0] or not line.fields[-1].strip():
        return "the token or its tag is empty, expected one of each"
    return None


def _convert_conllu_sentence(sentence: Sequence[Line]) -> Row | list[BrokenRow] | None:
    """Returns a sentence as a row, or a broken row for each line with a fault; None if it has comments only."""
    start = next((index for index, line in enumerate(sentence) if not line.seems_comment), len(sentence))
    lines = sentence[start:]
    broken_rows = [BrokenRow(line.number, fault) for line in lines if (fault := _find_conllu_fault(line))]
    words = [line for line in lines if line.fields[0].isdecimal()]
    if broken_rows or not words:
        return broken_rows or None
    tokens, tags = ([line.fields[index] for line in words] for index in (FORM_INDEX, UPOS_INDEX))
    return Row(words[0].number, {"tokens": tokens, "tags": tags})


def _find_conllu_fault(line: Line) -> str | None:
    """Returns what is wrong with a line of CoNLL-U that is not a comment; None if nothing is."""
    if len(line.fields) != CONLLU_COLUMNS:
        return f"the number of columns is {len(line.fields)}, expected the {CONLLU_COLUMNS} of CoNLL-U"
    match = CONLLU_ID.fullmatch(line.fields[0])
    if not match:
        return f"the id is {line.fields[0]!r}, expected a number as in 1, 1-2 or 1.1"
    is_word, form, upos = not match[1], line.fields[FORM_INDEX], line.fields[UPOS_INDEX]
    if is_word and (not form or upos in EMPTY_UPOS):
        return f"column 2 is {form!r} and column 4 is {upos!r}, expected a token and its UPOS"
    return None
