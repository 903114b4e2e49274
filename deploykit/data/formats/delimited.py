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
from deploykit.data.table import BrokenRow, Row, Table
from deploykit.errors import DataError

MAX_FIELD_CHARACTERS = 2**31 - 1  # the default of the csv module, 131,072, is too few for long documents
Fields = list[str]
MISSING_QUOTE_HINT = "is a quotation mark missing or not doubled?"


def read(path: Path, *, tabs: bool = False) -> Table:
    """Reads a csv file, or a tsv file if `tabs`; its first row names the columns.

    Raises:
        DataError: the first row cannot be read, or names a column twice.
    """
    parsed = read_rows(files.read_text(path), tabs)
    if not parsed:
        return Table(str(path), "line", (), ())
    (header_line, header), *body = parsed
    if isinstance(header, str):
        raise DataError(f"{path}, line {header_line}: the names of the columns cannot be read: {header}.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line {header_line}: the column {repeated[0]!r} occurs twice. Give each its own name.")
    rows, broken_rows = [], []
    for line, fields in body:
        if isinstance(fields, str):
            broken_rows.append(BrokenRow(line, fields))
        elif len(fields) != len(header):
            reason = f"the number of fields is {len(fields)}, expected {len(header)} ({', '.join(header)})"
            broken_rows.append(BrokenRow(line, reason))
        else:
            rows.append(Row(line, dict(zip(header, fields, strict=True))))
    return Table(str(path), "line", tuple(header), tuple(rows), tuple(broken_rows))


def read_rows(text: str, tabs: bool) -> list[tuple[int, Fields | str]]:
    """Reads the rows of a file, the header included.

    Args:
        text: the content of the file.
        tabs: whether the file is a tsv; otherwise commas or semicolons separate the columns.

    Returns:
        For each row the number of its first line, and its fields. A row that cannot be used has, in place of its
        fields, a string: the reason.
    """
    delimiter = "\t" if tabs else choose_delimiter(text)
    parsed = list(_parse(text, delimiter, tabs))
    reasons = find_swallowed_rows([(line, fields) for line, fields in parsed if isinstance(fields, list)], delimiter)
    return [(line, reasons.get(line, fields)) for line, fields in parsed]


def choose_delimiter(text: str) -> str:
    """Chooses between comma and semicolon, which spreadsheets write in languages with a decimal comma."""
    header = text.partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _parse(text: str, delimiter: str, tabs: bool) -> Iterator[tuple[int, Fields | str]]:
    """Yields what `read_rows` returns, without looking for swallowed rows."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    previous_limit = csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the limit is global to the process
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield start, f"{error}; {MISSING_QUOTE_HINT}"
            else:
                if fields:  # an empty line is no row
                    yield start, fields
    finally:
        csv.field_size_limit(previous_limit)


def find_swallowed_rows(rows: Sequence[tuple[int, Fields]], delimiter: str) -> dict[int, str]:
    """Finds rows with a field that seems to contain the rows after it, because a quotation mark is missing.

    Each line of such a field has as many columns as the file. One of these columns has a value that also occurs
    elsewhere in the column, as labels do. The lines of a letter or a poem do neither.

    Args:
        rows: the first line and the fields of each row, the header first.
        delimiter: between fields.

    Returns:
        The reason why a row cannot be used, by its first line.
    """
    width = len(rows[0][1]) if rows else 0
    values: list[set[str]] = [set() for _ in range(width)]  # on one line, by column
    suspects: dict[int, tuple[int, list[Mapping[int, str]]]] = {}  # last line and inner rows, by first line
    for first_line, fields in rows[1:]:
        if len(fields) != width:
            continue
        multiline = [column for column, field in enumerate(fields) if "\n" in field or "\r" in field]
        for column in set(range(width)).difference(multiline):
            values[column].add(fields[column])
        if len(multiline) == 1:
            (column,) = multiline
            lines = re.split(r"\r\n|\r|\n", fields[column])
            last_line = first_line + len(lines) - 1
            suspects[first_line] = last_line, _inner_rows(lines, column, width, delimiter)
    return {
        first_line: (
            f"a field runs on to line {last_line}, and its lines read like rows of their own; {MISSING_QUOTE_HINT}"
        )
        for first_line, (last_line, inner_rows) in suspects.items()
        if any(value.strip() and value in values[column] for row in inner_rows for column, value in row.items())
    }


def _inner_rows(lines: Sequence[str], column: int, width: int, delimiter: str) -> list[Mapping[int, str]]:
    """Reads the lines of a field as rows of the file.

    Args:
        lines: of the field. The first one may be the end of a row, and the last one the beginning of a row.
        column: of the field, from 0.
        width: the number of columns of the file.
        delimiter: between fields.

    Returns:
        The values of each row by column, without `column`; an empty list if any line has a wrong number of columns.
    """
    first, *between, last = (line.split(delimiter) for line in lines)
    between = [fields for fields in between if fields != [""]]
    if column + len(first) != width or len(last) != column + 1 or any(len(fields) != width for fields in between):
        return []
    numbered = [enumerate(first, start=column), *map(enumerate, between), enumerate(last)]
    return [{number: value for number, value in fields if number != column} for fields in numbered]
