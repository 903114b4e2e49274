"""Files of csv and tsv, as spreadsheets write them; each row has the line on which it starts.

In a csv file, a quoted field may contain the delimiter and line breaks; in a tsv file, quotation marks are ordinary
characters, as in GLUE's files. A surplus quotation mark may join several rows into one field without an error, so
fields of several lines are checked for that.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from deploykit.data import files
from deploykit.data.table import Broken, Row, Table
from deploykit.errors import DataError

LARGEST_FIELD_CHARACTERS = 2**31 - 1  # the default of the csv module, 131,072, is too few for long documents
Fields = list[str]
UNBALANCED = "is a quotation mark missing or not doubled?"


def read(path: Path, *, tabs: bool = False) -> Table:
    """Reads a file; its first row names the columns.

    Raises:
        DataError: the first row cannot be read, or names a column twice.
    """
    lines = read_rows(files.read_text(path), tabs)
    if not lines:
        return Table(str(path), "line", (), ())
    (first, header), *body = lines
    if isinstance(header, str):
        raise DataError(f"{path}, line {first}: the names of the columns cannot be read: {header}.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line {first}: the column {repeated[0]!r} occurs twice. Give each its own name.")
    rows, broken = [], []
    for line, fields in body:
        if isinstance(fields, str):
            broken.append(Broken(line, fields))
        elif len(fields) != len(header):
            reason = f"the number of fields is {len(fields)}, expected {len(header)} ({', '.join(header)})"
            broken.append(Broken(line, reason))
        else:
            rows.append(Row(line, dict(zip(header, fields, strict=True))))
    return Table(str(path), "line", tuple(header), tuple(rows), tuple(broken))


def read_rows(text: str, tabs: bool) -> list[tuple[int, Fields | str]]:
    """Reads the rows of a file, the header included.

    Args:
        text: the content of the file.
        tabs: whether the file is a tsv; otherwise commas or semicolons separate the columns.

    Returns:
        The first line of each row, and its fields or the reason why it cannot be used.
    """
    delimiter = "\t" if tabs else choose_delimiter(text)
    parsed = list(_parsed(text, delimiter, tabs))
    reasons = find_swallowed([(line, fields) for line, fields in parsed if isinstance(fields, list)], delimiter)
    return [(line, reasons.get(line, fields)) for line, fields in parsed]


def choose_delimiter(text: str) -> str:
    """Chooses between comma and semicolon, which spreadsheets write in languages with a decimal comma."""
    header = text.partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _parsed(text: str, delimiter: str, tabs: bool) -> Iterator[tuple[int, Fields | str]]:
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(LARGEST_FIELD_CHARACTERS)
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


def find_swallowed(rows: Sequence[tuple[int, Fields]], delimiter: str) -> dict[int, str]:
    """Finds rows with a field that seems to contain the following rows, by their first line.

    Each line of such a field has as many columns as the file, and one of these has a value that occurs elsewhere in the
    same column, as labels do; lines of a letter or a poem have not.
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
    """Returns the lines of a field as rows without the field's own column; empty if a number of columns is wrong."""
    first, *between, last = (piece.split(delimiter) for piece in pieces)
    between = [fields for fields in between if fields != [""]]
    if column + len(first) != width or len(last) != column + 1 or any(len(fields) != width for fields in between):
        return []
    numbered = [enumerate(first, start=column), *map(enumerate, between), enumerate(last)]
    return [{number: value for number, value in fields if number != column} for fields in numbered]
