"""The rows of labelled data before a task reads them, whatever format they come from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Place = int | str
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A row and its values by column.

    `line` is its line, or its number from 1 in formats without lines; `FILE:NUMBER` where a source has several files.
    """

    line: Place
    values: Values


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used, and the reason."""

    line: Place
    why: str


@dataclass(frozen=True)
class Table:
    """The content of a source; `unit` says what `line` counts, `warnings` are sentences about what was not read."""

    name: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    broken: tuple[Broken, ...] = ()
    warnings: tuple[str, ...] = ()

    def convert(self, read: Callable[[Values], Values], columns: Iterable[str] = ()) -> "Table":
        """Returns the table with every row read by a function, which raises ValueError for a broken row.

        Args:
            read: returns the new values of a row.
            columns: of the new table, before any others that the rows have.
        """
        rows, broken = [], list(self.broken)
        for row in self.rows:
            try:
                rows.append(Row(row.line, read(row.values)))
            except ValueError as error:
                broken.append(Broken(row.line, str(error)))
        names = dict.fromkeys([*columns, *(name for row in rows for name in row.values)])
        return replace(self, columns=tuple(names), rows=tuple(rows), broken=tuple(broken))


def number_rows(name: str, columns: Iterable[str], rows: Iterable[Values]) -> Table:
    """Returns a table whose rows are numbered from 1."""
    numbered = tuple(Row(number, values) for number, values in enumerate(rows, start=1))
    return Table(name, "row", tuple(columns), numbered)


def place_order(place: Place) -> tuple[str, int]:
    """Returns a key that sorts places by file and then by number."""
    file, _, number = str(place).rpartition(":")
    return file, int(number)


def join(tables: Mapping[str, Table], column: str) -> Table:
    """Returns the rows of several tables as one, with the name of its table in a column of each row.

    Args:
        tables: by name; none has the column.
        column: of the names.
    """
    parts = list(tables.values())
    return Table(
        name=", ".join(part.name for part in parts),
        unit="line" if all(part.unit == "line" for part in parts) else "row",
        columns=tuple(dict.fromkeys([*(name for part in parts for name in part.columns), column])),
        rows=tuple(
            Row(f"{part.name}:{row.line}", {**row.values, column: name})
            for name, part in tables.items()
            for row in part.rows
        ),
        broken=tuple(Broken(f"{part.name}:{row.line}", row.why) for part in parts for row in part.broken),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )
