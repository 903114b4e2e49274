"""The formats of labelled data on disk, one module each.

A file's suffix decides its container (csv, json, parquet, ...), and the columns of its rows decide their format. What
could be in several formats is refused.

- delimited: csv and tsv, what spreadsheets write
- json_text: JSON lists and JSON lines, what scripts write
- arrow: parquet, and data sets saved by the library datasets, what the hub gives
- conll: sentences in columns, what taggers and treebanks use
- brat: texts with annotations beside them, what BRAT saves
- squad, doccano, label_studio: rows of question answering data and of two annotation tools, in a container of JSON or
  parquet
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from deploykit.data.formats import arrow, brat, conll, delimited, doccano, json_text, label_studio, squad
from deploykit.data.table import Table
from deploykit.errors import DataError
from deploykit.recipe import file_format

FILE_READERS: dict[str, Callable[[Path], Table]] = {
    "csv": delimited.read,
    "tsv": partial(delimited.read, tabs=True),
    "jsonl": json_text.read_lines,
    "json": json_text.read,
    "parquet": arrow.read_parquet,
    "conll": conll.read,
}
# Formats of rows, which a file of any container in `CONTAINERS_OF_ROW_FORMATS` may hold.
ROW_FORMATS: dict[str, Any] = {"squad": squad, "doccano": doccano, "label-studio": label_studio}
CONTAINERS_OF_ROW_FORMATS = ("jsonl", "json", "parquet", "datasets")
# The readable sources, as messages list them.
READABLE_SUFFIXES = "csv, tsv, jsonl, json, parquet, conll, conllu, iob, bio or bio2; also compressed: .gz, .bz2, .xz"
READABLE_DIRECTORIES = (
    "a directory of parquet files, of BRAT's .txt and .ann files, or one that `save_to_disk` has written"
)


def read(path: Path, split: str, format_name: str | None = None) -> Table:
    """Reads a file or a directory.

    Args:
        path: of a file or directory that exists.
        split: which split to read from a directory that holds several.
        format_name: None recognizes the format.

    Raises:
        DataError: the format is unknown or not clear, or the source cannot be read in it.
    """
    if format_name and format_name not in ROW_FORMATS:
        return _read_as(format_name, path, split)
    suffix_format = file_format(path.name) or "json"  # annotation tools export JSON, whatever the suffix
    container = _recognize_directory(path) if path.is_dir() else suffix_format
    table = _read_as(container, path, split)
    if format_name:
        return cast(Table, ROW_FORMATS[format_name].convert(table))
    return recognize_row_format(table) if container in CONTAINERS_OF_ROW_FORMATS else table


def _read_as(container: str, path: Path, split: str) -> Table:
    """Reads a file or a directory in the format of a container, such as csv or parquet, with its rows unconverted.

    Raises:
        DataError: the container is that of a directory and the path a file, or the other way round.
    """
    if not path.is_dir():
        if container not in FILE_READERS:
            raise DataError(f"{path} is a file, expected a directory for data.format: {container}. Name its directory.")
        return FILE_READERS[container](path)
    if container == "datasets":
        return arrow.read_saved(path, split)
    if container == "brat":
        return brat.read(path)
    if container == "parquet":
        return arrow.read_parquet_files(path, _parquet_files(path))
    raise DataError(f"{path} is a directory, expected a file for data.format: {container}. Name the file.")


def recognize_row_format(table: Table) -> Table:
    """Returns the table, converted if its rows are in one of `ROW_FORMATS`.

    Raises:
        DataError: the rows could be in several of these formats.
    """
    names = [name for name, module in ROW_FORMATS.items() if module.recognizes(table)]
    if len(names) > 1:
        raise DataError(_explain_ambiguity(table.name, names))
    return cast(Table, ROW_FORMATS[names[0]].convert(table)) if names else table


def _explain_ambiguity(source: str, names: list[str]) -> str:
    return (
        f"{source} could be any of: {', '.join(names)}. Name the right one in the recipe, for example"
        f" data.format: {names[0]}."
    )


def is_saved_dataset(folder: Path) -> bool:
    """Tells whether a directory was written by `save_to_disk` of the library datasets."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if file_format(path.name) == "parquet" and path.is_file())


def _recognize_directory(folder: Path) -> str:
    """Returns the container that a directory is.

    Raises:
        DataError: it is none, or could be several.
    """
    is_container = {
        "datasets": is_saved_dataset(folder),
        "parquet": bool(_parquet_files(folder)),
        "brat": any(folder.glob("*.ann")),
    }
    names = [name for name, is_it in is_container.items() if is_it]
    if len(names) > 1:
        raise DataError(_explain_ambiguity(str(folder), names))
    if not names:
        raise DataError(
            f"{folder} is a directory, expected a file ({READABLE_SUFFIXES}), or {READABLE_DIRECTORIES}."
            " Directories below it are not read: name the right one."
        )
    return names[0]
