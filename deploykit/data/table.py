"""The rows of labelled data before a task reads them, whatever format they come from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Place = int | str  # of a row in its source: its number, or `FILE:NUMBER` where a source has several files
Values = Mapping[str, Any]  # of a row, by column


@dataclass(frozen=True)
class Row:
    """A row: its place, and its values by column."""

    place: Place
    values: Values


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be used, and the reason: what was found, and what was expected."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Table:
    """The content of a source.

    `place_unit` says whether the place of a row is the number of its line or of the row; both start at 1. Columns that
    only broken rows have may be missing from `columns`. `warnings` are sentences about content that was not read.
    """

    name: str
    place_unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    broken_rows: tuple[BrokenRow, ...] = ()
    warnings: tuple[str, ...] = ()

    def convert(self, convert_values: Callable[[Values], Values], columns: Iterable[str] = ()) -> "Table":
        """Returns the table with the values of every row converted.

        Args:
            convert_values: returns the new values of a row; a row for which it raises ValueError becomes a broken one.
            columns: the first columns of the new table. Other columns that the new rows have follow.
        """
        rows, broken_rows = [], list(self.broken_rows)
        for row in self.rows:
            try:
                rows.append(Row(row.place, convert_values(row.values)))
            except ValueError as error:
                broken_rows.append(BrokenRow(row.place, str(error)))
        all_columns = dict.fromkeys([*columns, *(name for row in rows for name in row.values)])
        return replace(self, columns=tuple(all_columns), rows=tuple(rows), broken_rows=tuple(broken_rows))


def number_rows(name: str, columns: Iterable[str], rows: Iterable[Values]) -> Table:
    """Returns a table whose rows are numbered from 1."""
    numbered = tuple(Row(number, values) for number, values in enumerate(rows, start=1))
    return Table(name, "row", tuple(columns), numbered)


def place_sort_key(place: Place) -> tuple[str, int]:
    """Returns a key that sorts places by file and then by number; the file is empty if the source is one file."""
    file, _, number = str(place).rpartition(":")
    return file, int(number)


def concatenate(tables: Mapping[str, Table], key_column: str) -> Table:
    """Returns the rows of several tables as one table.

    Args:
        tables: by key.
        key_column: a new column, in which each row has the key of the table that it comes from.
    """
    parts = list(tables.values())
    return Table(
        name=", ".join(part.name for part in parts),
        place_unit="line" if all(part.place_unit == "line" for part in parts) else "row",
        columns=tuple(dict.fromkeys([*(name for part in parts for name in part.columns), key_column])),
        rows=tuple(
            Row(f"{part.name}:{row.place}", {**row.values, key_column: key})
            for key, part in tables.items()
            for row in part.rows
        ),
        broken_rows=tuple(
            BrokenRow(f"{part.name}:{row.place}", row.reason) for part in parts for row in part.broken_rows
        ),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )
