"""Turns the rows of a table into examples of a task, and keeps the line of each.

A missing column and rows that the task cannot read are errors; no row is repaired or left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from deploykit.data.table import Broken, Place, Row, Table, place_order
from deploykit.errors import DataError
from deploykit.recipe import DataSection
from deploykit.tasks import Example, Task

LISTED_ITEMS = 10  # shown in a message
Key = tuple[str, ...]
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], Example]


@dataclass(frozen=True)
class Split:
    """Examples and their lines; `source` is the file, `unit` says whether lines or rows are counted.

    `warnings` are sentences about what the file has besides.
    """

    name: str
    source: str
    unit: str
    examples: tuple[Example, ...]
    lines: tuple[Place, ...]
    warnings: tuple[str, ...] = ()

    def take(self, name: str, rows: Sequence[int]) -> "Split":
        """Returns some of the rows as a new split."""
        examples, lines = tuple(self.examples[row] for row in rows), tuple(self.lines[row] for row in rows)
        return replace(self, name=name, examples=examples, lines=lines)


def make_reader(tables: Iterable[Table], task: Task, section: DataSection) -> Read:
    """Returns a function that reads a row.

    Args:
        tables: all of the data set. A row may depend on others: the scheme of tags is that of all rows.
        task: reads the rows.
        section: names the columns.
    """
    return task.reader((row.values for table in tables for row in table.rows), _columns(section, task))


def parse(name: str, table: Table, task: Task, section: DataSection, read: Read | None = None) -> Split:
    """Reads every row with the task.

    Args:
        name: of the split: `train`, `validation` or `test`.
        table: the rows.
        task: reads the rows.
        section: names the columns.
        read: reads a row, if the table is only a part of a data set; see `make_reader`.

    Raises:
        DataError: a column is missing, or rows are broken.
    """
    columns, read = _columns(section, task), read or make_reader([table], task, section)
    missing = _missing_columns(table, task, columns)
    if section.slice and section.slice not in table.columns:
        columns, missing = {**columns, "slice": section.slice}, [*missing, section.slice]
    if missing:
        raise DataError(" ".join(_no_column(table, column, columns) for column in missing))
    examples, lines, broken = [], [], list(table.broken)
    for row in table.rows:
        example = _example(row, read, task)
        if section.slice and isinstance(example, Example):
            value = row.values.get(section.slice)
            example = replace(example, slice="" if value is None else str(value))
        if isinstance(example, Broken):
            broken.append(example)
        else:
            examples.append(example)
            lines.append(row.line)
    if broken:
        raise DataError(_broken_rows(table, sorted(broken, key=lambda complaint: place_order(complaint.line))))
    return Split(name, table.name, table.unit, tuple(examples), tuple(lines), table.warnings)


def _columns(section: DataSection, task: Task) -> dict[str, str | None]:
    """Returns the name of each column that the task reads, by role."""
    return {role: section.columns.get(role, column.default) for role, column in task.COLUMNS.items()}


def _example(row: Row, read: Read, task: Task) -> Example | Broken:
    try:
        example = read(row.values)
    except KeyError as error:
        return Broken(row.line, f"has no {error.args[0]!r}")
    except ValueError as error:
        return Broken(row.line, str(error))
    try:
        "".join((*example.input.texts, *task.example_labels(example))).encode()
    except UnicodeEncodeError:
        return Broken(row.line, "half of a surrogate pair, which is not a character")
    return example


def _missing_columns(table: Table, task: Task, columns: Mapping[str, str | None]) -> list[str]:
    """Lists the columns that the task reads from the first row and that the table lacks."""
    missing: dict[str, str] = {}
    while table.rows:
        try:
            row = {**table.rows[0].values, **missing}
            task.reader([row], columns)(row)
        except KeyError as error:
            if error.args[0] in missing:  # an error of the task: it was filled in
                raise
            missing[error.args[0]] = "1"
            continue
        except ValueError:
            pass  # the row is broken, and reported with the others
        break
    return [column for column in missing if column not in table.columns]


def _no_column(table: Table, column: str, columns: Mapping[str, str | None]) -> str:
    folded = {name.strip().casefold(): name for name in table.columns}
    nearest = get_close_matches(column.casefold(), folded, n=1)
    hint = f" (did you mean {folded[nearest[0]]!r}?)" if nearest else ""
    named = {role: [name.strip() for name in (names or "").split(",")] for role, names in columns.items()}
    role = next((role for role, names in named.items() if column in names), "columns")
    return (
        f"{table.name} has no column {column!r}{hint}. It has: {', '.join(table.columns)}."
        f" Name the right one with data.{role}."
    )


def _broken_rows(table: Table, broken: Sequence[Broken]) -> str:
    count = f"{len(broken)} rows that cannot be read" if len(broken) > 1 else "a row that cannot be read"
    lines = describe_some(broken, lambda complaint: f"{table.unit} {complaint.line}: {complaint.why}")
    return "\n    ".join([f"{table.name} has {count}. Correct or remove:", *lines])


def describe_some(items: Sequence[T], describe: Callable[[T], str]) -> Iterator[str]:
    """Yields descriptions of the first items, and the number of the others."""
    yield from map(describe, items[:LISTED_ITEMS])
    if len(items) > LISTED_ITEMS:
        yield f"and {len(items) - LISTED_ITEMS} more"


def key_of(example: Example) -> Key:
    """Returns what copies of an input have in common: the texts with single spaces, or an image."""
    key: Key = example.input.identity
    return key


def short_name(source: str) -> str:
    """Returns a file's name without its directories, or the id of a data set as it is."""
    return Path(source).name if Path(source).is_absolute() else source
