"""Files that rows name, such as images: their paths are relative to the file, or the directory, of the rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploykit.data.table import Table
from deploykit.recipe import DataSection
from deploykit.tasks import Task


def columns(section: DataSection, task: Task) -> list[str]:
    """Lists the columns that hold files."""
    roles = ((role, task.COLUMNS[role].default) for role in task.Input.FILES)
    return [str(section.columns.get(role, default)) for role, default in roles]


def locate(table: Table, names: list[str]) -> Table:
    """Returns a table with absolute paths in these columns; data URLs and bytes stay as they are."""
    source = Path(table.name)
    folder = source if source.is_dir() else source.parent

    def located(value: Any) -> Any:
        if isinstance(value, Mapping):
            return value.get("bytes") or located(value.get("path"))
        is_path = isinstance(value, str) and value.strip() and not value.startswith("data:")
        return folder / value if is_path else value

    def read(values: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**values, **{name: located(values[name]) for name in names if name in values}}

    return table.convert(read, table.columns) if names else table


def paths(table: Table, names: list[str]) -> Iterator[Path]:
    """Yields the files that the rows name; the table is one of `locate`."""
    for row in table.rows:
        yield from (row.values[name] for name in names if isinstance(row.values.get(name), Path))
