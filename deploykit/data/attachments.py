"""Files that rows name, such as images. Their paths are relative to the file, or the directory, of the rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploykit.data.table import Table, Values
from deploykit.recipe import DataSection
from deploykit.tasks import Task


def file_columns(section: DataSection, task: Task) -> list[str]:
    """Lists the columns whose values are files; empty for a task that reads texts only."""
    roles = ((role, task.COLUMNS[role].default) for role in task.Input.FILES)
    return [str(section.columns.get(role, default)) for role, default in roles]


def with_absolute_paths(table: Table, columns: list[str]) -> Table:
    """Returns a table with a `Path` for each relative path in these columns; data URLs and bytes stay as they are."""
    source = Path(table.name)
    folder = source if source.is_dir() else source.parent

    def convert_value(value: Any) -> Any:
        if isinstance(value, Mapping):  # an image of the library datasets: its bytes, or else its path
            return value.get("bytes") or convert_value(value.get("path"))
        is_path = isinstance(value, str) and value.strip() and not value.startswith("data:")
        return folder / value if is_path else value

    def convert_values(values: Values) -> Values:
        return {**values, **{column: convert_value(values[column]) for column in columns if column in values}}

    return table.convert(convert_values, table.columns) if columns else table


def list_paths(table: Table, columns: list[str]) -> Iterator[Path]:
    """Yields the files that the rows name in these columns of a table from `with_absolute_paths`."""
    for row in table.rows:
        yield from (row.values[column] for column in columns if isinstance(row.values.get(column), Path))
