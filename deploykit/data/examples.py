"""Turns the rows of a table into examples of a task, and keeps the place of each.

A missing column and rows that the task cannot read are errors; no row is repaired or left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from deploykit.data.table import BrokenRow, Place, Row, Table, Values, place_sort_key
from deploykit.errors import DataError
from deploykit.recipe import DataSection
from deploykit.tasks import Example, Task

MAX_LISTED_ITEMS = 10  # in a message, which says how many others there are
Identity = tuple[str, ...]  # of an input: equal for copies of it
T = TypeVar("T")
ReadRow = Callable[[Values], Example]


@dataclass(frozen=True)
class Split:
    """The examples of a split, and the place of each in its source.

    `source` names the file, directory or data set. `place_unit` says whether places count lines or rows. `warnings`
    are sentences about content of the source that was not read.
    """

    name: str
    source: str
    place_unit: str
    examples: tuple[Example, ...]
    places: tuple[Place, ...]
    warnings: tuple[str, ...] = ()

    def take(self, name: str, rows: Sequence[int]) -> "Split":
        """Returns the rows with these indices as a new split."""
        examples, places = tuple(self.examples[row] for row in rows), tuple(self.places[row] for row in rows)
        return replace(self, name=name, examples=examples, places=places)


def make_reader(tables: Iterable[Table], task: Task, section: DataSection) -> ReadRow:
    """Returns a function that turns the values of a row into an example.

    Args:
        tables: all tables of the data set. How a row is read may depend on all of them, such as the scheme of its tags.
        task: reads the rows.
        section: the recipe's `data`, which names the columns.
    """
    return task.reader((row.values for table in tables for row in table.rows), _column_names(section, task))


def parse(name: str, table: Table, task: Task, section: DataSection, read_row: ReadRow | None = None) -> Split:
    """Turns a table into a split: every row becomes an example.

    Args:
        name: of the split: `train`, `validation` or `test`.
        table: the rows.
        task: reads the rows.
        section: the recipe's `data`, which names the columns.
        read_row: from `make_reader`; None makes one of this table, which is then the whole data set.

    Raises:
        DataError: a column is missing, or rows are broken.
    """
    columns, read_row = _column_names(section, task), read_row or make_reader([table], task, section)
    missing = _missing_columns(table, task, columns)
    if section.slice and section.slice not in table.columns:
        columns, missing = {**columns, "slice": section.slice}, [*missing, section.slice]
    if missing:
        raise DataError(" ".join(_explain_missing_column(table, column, columns) for column in missing))
    examples, places, broken_rows = [], [], list(table.broken_rows)
    for row in table.rows:
        example = _read_example(row, read_row, task)
        if section.slice and isinstance(example, Example):
            value = row.values.get(section.slice)
            example = replace(example, slice="" if value is None else str(value))
        if isinstance(example, BrokenRow):
            broken_rows.append(example)
        else:
            examples.append(example)
            places.append(row.place)
    if broken_rows:
        broken_rows.sort(key=lambda row: place_sort_key(row.place))
        raise DataError(_list_broken_rows(table, broken_rows))
    return Split(name, table.name, table.place_unit, tuple(examples), tuple(places), table.warnings)


def _column_names(section: DataSection, task: Task) -> dict[str, str | None]:
    """Returns the name of the column for each role of the task; None for a role that the recipe gives no column."""
    return {role: section.columns.get(role, column.default) for role, column in task.COLUMNS.items()}


def _read_example(row: Row, read_row: ReadRow, task: Task) -> Example | BrokenRow:
    try:
        example = read_row(row.values)
    except KeyError as error:
        return BrokenRow(row.place, f"has no {error.args[0]!r}")
    except ValueError as error:
        return BrokenRow(row.place, str(error))
    try:
        "".join((*example.input.texts, *task.example_labels(example))).encode()  # UTF-8, as the tokenizer needs it
    except UnicodeEncodeError:
        return BrokenRow(row.place, "half of a surrogate pair, which is not a character")
    return example


def _missing_columns(table: Table, task: Task, columns: Mapping[str, str | None]) -> list[str]:
    """Lists the columns that the task reads from the first row and that the table lacks.

    The task names only the first missing column, so the row is read again and again, with the missing ones filled in.
    """
    placeholders: dict[str, str] = {}
    while table.rows:
        try:
            row = {**table.rows[0].values, **placeholders}
            task.reader([row], columns)(row)
        except KeyError as error:
            if error.args[0] in placeholders:  # the column is there now, so this is a bug of the task
                raise
            placeholders[error.args[0]] = "1"
            continue
        except ValueError:
            pass  # the row is broken, and reported with the others
        break
    return [column for column in placeholders if column not in table.columns]


def _explain_missing_column(table: Table, column: str, columns: Mapping[str, str | None]) -> str:
    name_of_folded = {name.strip().casefold(): name for name in table.columns}
    nearest = get_close_matches(column.casefold(), name_of_folded, n=1)
    hint = f" (did you mean {name_of_folded[nearest[0]]!r}?)" if nearest else ""
    # A role may have several columns, separated by commas.
    names_of_role = {role: [name.strip() for name in (names or "").split(",")] for role, names in columns.items()}
    role = next((role for role, names in names_of_role.items() if column in names), "columns")
    return (
        f"{table.name} has no column {column!r}{hint}. It has: {', '.join(table.columns)}."
        f" Name the right one with data.{role}."
    )


def _list_broken_rows(table: Table, broken_rows: Sequence[BrokenRow]) -> str:
    count = f"{len(broken_rows)} rows that cannot be read" if len(broken_rows) > 1 else "a row that cannot be read"
    lines = describe_first(broken_rows, lambda row: f"{table.place_unit} {row.place}: {row.reason}")
    return "\n    ".join([f"{table.name} has {count}. Correct or remove:", *lines])


def describe_first(items: Sequence[T], describe: Callable[[T], str]) -> Iterator[str]:
    """Yields descriptions of the first `MAX_LISTED_ITEMS` items, and then how many more there are."""
    yield from map(describe, items[:MAX_LISTED_ITEMS])
    if len(items) > MAX_LISTED_ITEMS:
        yield f"and {len(items) - MAX_LISTED_ITEMS} more"


def identity_of(example: Example) -> Identity:
    """Returns what copies of an input have in common: its texts with single spaces, and hashes of its files."""
    identity: Identity = example.input.identity
    return identity


def short_name(source: str) -> str:
    """Returns the name of a file without its directories, or the id of a data set unchanged."""
    return Path(source).name if Path(source).is_absolute() else source
