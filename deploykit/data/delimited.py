"""The rows of csv and tsv files, each with the line that it starts on.

In a csv, quotation marks hold together what contains the delimiter or a line break; in a tsv they are characters
like any other, as in GLUE's files. A quotation mark too many makes one field of several rows without an error, so
fields of several lines are looked at.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

LARGEST_FIELD = 2**31 - 1  # the csv module stops at 131,072 characters otherwise
Fields = list[str]
UNBALANCED = "is a quotation mark missing or not doubled?"


def rows(text: str, tabs: bool) -> tuple[list[tuple[int, Fields | str]], dict[int, str]]:
    """Reads the rows of a file, the names of the columns first.

    Args:
        text: all of the file.
        tabs: whether tabs part the columns, and quotation marks are characters; otherwise commas or semicolons.

    Returns:
        The first line of each row with its fields, or with what is wrong in it; and, by their first lines, what is
        suspicious of rows that can be read.
    """
    delimiter = "\t" if tabs else delimiter_of(text)
    lines = list(_parsed(text, delimiter, tabs))
    return lines, swallowed([(line, fields) for line, fields in lines if isinstance(fields, list)], delimiter)


def delimiter_of(text: str) -> str:
    """Returns what parts the columns: spreadsheets write semicolons where the comma is that of decimals."""
    header = text.partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _parsed(text: str, delimiter: str, tabs: bool) -> Iterator[tuple[int, Fields | str]]:
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(LARGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield start, f"{error}; {UNBALANCED}"
            else:
                if fields:  # an empty line is no row
                    yield start, fields
    finally:
        csv.field_size_limit(limit)


def swallowed(rows: Sequence[tuple[int, Fields]], delimiter: str) -> dict[int, str]:
    """Finds rows with a field that seems to have swallowed the rows after it, by their first line.

    Each line of such a field has as many columns as the file, and one of these holds a value that the same column
    has elsewhere, as labels do; the text of a letter or a poem has not.
    """
    width = len(rows[0][1]) if rows else 0
    values: list[set[str]] = [set() for _ in range(width)]
    suspects: dict[int, tuple[int, list[Mapping[int, str]]]] = {}
    for line, fields in rows[1:]:
        if len(fields) != width:
            continue
        long = [column for column, field in enumerate(fields) if "\n" in field or "\r" in field]
        for column in set(range(width)).difference(long):
            values[column].add(fields[column])
        if len(long) == 1:
            pieces = re.split(r"\r\n|\r|\n", fields[long[0]])
            suspects[line] = line + len(pieces) - 1, _inner_rows(pieces, long[0], width, delimiter)
    return {
        line: f"a field runs on to line {last}, and its lines read like rows of their own; {UNBALANCED}"
        for line, (last, inner) in suspects.items()
        if any(value.strip() and value in values[column] for row in inner for column, value in row.items())
    }


def _inner_rows(pieces: Sequence[str], column: int, width: int, delimiter: str) -> list[Mapping[int, str]]:
    """Returns the lines of a field as rows, its own column left out; none where one has too few or many columns."""
    first, *between, last = (piece.split(delimiter) for piece in pieces)
    between = [fields for fields in between if fields != [""]]
    shapes = column + len(first) == width, len(last) == column + 1, all(len(fields) == width for fields in between)
    if not all(shapes):
        return []
    numbered = [enumerate(first, start=column), *map(enumerate, between), enumerate(last)]
    return [{place: value for place, value in fields if place != column} for fields in numbered]
