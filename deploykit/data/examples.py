"""From the rows of a table to the examples of a task, each with the line that it came from.

A table that lacks a column is refused with the columns it has; rows that the task cannot read are listed
with their lines. Nothing is repaired and nothing is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from deploykit.data.sources import Broken, Row, Table
from deploykit.errors import DataError
from deploykit.recipe import DataSection
from deploykit.tasks import Example, Task

LISTED = 10  # how many lines a message shows
ROLES = ("text", "text_pair", "label", "tokens", "tags", "spans")
Key = tuple[str, str | None]
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], Example]


@dataclass(frozen=True)
class Split:
    """Examples with their lines; `source` and `unit` say what the lines count."""

    name: str
    source: str
    unit: str
    examples: tuple[Example, ...]
    lines: tuple[int, ...]

    def take(self, name: str, rows: Sequence[int]) -> "Split":
        """Returns some of the rows as a split of its own."""
        examples, lines = tuple(self.examples[row] for row in rows), tuple(self.lines[row] for row in rows)
        return Split(name, self.source, self.unit, examples, lines)


def reader(tables: Iterable[Table], task: Task, section: DataSection) -> Read:
    """Returns what reads a row.

    Args:
        tables: all of the data set: what a row means may depend on others, as the scheme of tags does.
        task: gives rows their meaning; one whose rows depend on others has a function `reader(rows, columns)`.
        section: names the columns.
    """
    columns, rows = _columns(section), (row.values for table in tables for row in table.rows)
    whole: Callable[..., Read] | None = getattr(task, "reader", None)
    return whole(rows, columns) if whole else lambda row: task.read(row, columns)


def parse(name: str, table: Table, task: Task, section: DataSection, read: Read | None = None) -> Split:
    """Reads every row with the task.

    Args:
        name: of the split: `train`, `validation` or `test`.
        table: what the source holds.
        task: gives rows their meaning.
        section: names the columns.
        read: what reads a row, where the table is a part of a data set; see `reader`.

    Raises:
        DataError: a column is missing, or rows are broken; lists ten of them and counts the rest.
    """
    columns, read = _columns(section), read or reader([table], task, section)
    missing = _missing_columns(table, task, columns)
    if missing:
        raise DataError(" ".join(_no_column(table, column, columns) for column in missing))
    examples, lines, broken = [], [], list(table.broken)
    for row in table.rows:
        found = _example(row, read)
        if isinstance(found, Broken):
            broken.append(found)
        else:
            examples.append(found)
            lines.append(row.line)
    if broken:
        raise DataError(_broken_rows(table, sorted(broken, key=lambda complaint: complaint.line)))
    return Split(name, table.name, table.unit, tuple(examples), tuple(lines))


def _columns(section: DataSection) -> dict[str, str | None]:
    return {role: getattr(section, role) for role in ROLES}


def _example(row: Row, read: Read) -> Example | Broken:
    try:
        example = read(row.values)
    except KeyError as error:
        return Broken(row.line, f"has no {error.args[0]!r}")
    except ValueError as error:
        return Broken(row.line, str(error))
    try:
        f"{example.text}{example.pair}{example.label}".encode()
    except UnicodeEncodeError:
        return Broken(row.line, "half of a surrogate pair, which is no character")
    return example


def _missing_columns(table: Table, task: Task, columns: Mapping[str, str | None]) -> list[str]:
    """Lists the columns that the task asks the first row for and that no row has."""
    missing: dict[str, str] = {}
    while table.rows:
        try:
            task.read({**table.rows[0].values, **missing}, columns)
        except KeyError as error:
            if error.args[0] in missing:  # never: it was filled in
                raise
            missing[error.args[0]] = "1"
            continue
        except ValueError:
            pass  # the row itself is broken, and reported with the others
        break
    return [column for column in missing if column not in table.columns]


def _no_column(table: Table, column: str, columns: Mapping[str, str | None]) -> str:
    folded = {name.strip().casefold(): name for name in table.columns}
    nearest = get_close_matches(column.casefold(), folded, n=1)
    hint = f" (did you mean {folded[nearest[0]]!r}?)" if nearest else ""
    role = next(role for role, name in columns.items() if name == column)
    return (
        f"{table.name} has no column {column!r}{hint}. It has: {', '.join(table.columns)}."
        f" Name the right one with data.{role}."
    )


def _broken_rows(table: Table, broken: Sequence[Broken]) -> str:
    count = f"{len(broken)} rows that cannot be read" if len(broken) > 1 else "a row that cannot be read"
    lines = shortened(broken, lambda complaint: f"{table.unit} {complaint.line}: {complaint.why}")
    return "\n    ".join([f"{table.name} has {count}. Correct or remove:", *lines])


def shortened(found: Sequence[T], shown: Callable[[T], str]) -> Iterator[str]:
    """Yields the first ten and the count of the rest."""
    yield from map(shown, found[:LISTED])
    if len(found) > LISTED:
        yield f"and {len(found) - LISTED} more"


def key_of(example: Example) -> Key:
    """Returns what makes two inputs the same: their texts, whatever the white space between words."""
    return " ".join(example.text.split()), example.pair and " ".join(example.pair.split())


def label_counts(example: Example) -> tuple[str, ...]:
    """Lists every label of an example as often as it stands there."""
    return (example.label,) if example.label else tuple(span.label for span in example.spans)


def short_name(source: str) -> str:
    """Returns a file's name without its directories; the id of a data set stays as it is."""
    return Path(source).name if Path(source).is_absolute() else source
