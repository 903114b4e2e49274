"""The formats of labelled data on disk, one module each. Suffix and content decide; nothing is guessed.

- delimited: csv and tsv, what spreadsheets write
- json_text: JSON lists and JSON lines, what scripts write
- arrow: parquet, and data sets saved by the library datasets, what the hub gives
- conll: sentences in columns, what taggers and treebanks use
- brat: texts with annotations beside them, what BRAT saves
- squad, doccano, label_studio: rows in the shape of question answering data and of two annotation tools, whichever
  of the files above holds them
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from deploykit.data.formats import arrow, brat, conll, delimited, doccano, json_text, label_studio, squad
from deploykit.data.table import Table
from deploykit.errors import DataError
from deploykit.recipe import file_format

FILES: dict[str, Callable[[Path], Table]] = {
    "csv": delimited.read,
    "tsv": partial(delimited.read, tabs=True),
    "jsonl": json_text.read_lines,
    "json": json_text.read,
    "parquet": arrow.read_parquet,
    "conll": conll.read,
}
SHAPES: dict[str, Any] = {"squad": squad, "doccano": doccano, "label-studio": label_studio}  # of rows
WITH_SHAPES = ("jsonl", "json", "parquet", "datasets")
SUFFIXES = "csv, tsv, jsonl, json, parquet, conll, conllu, iob, bio or bio2; also compressed: .gz, .bz2, .xz"
DIRECTORIES = "a directory of parquet files, of BRAT's .txt and .ann files, or one that `save_to_disk` has written"


def read(path: Path, split: str, format_name: str | None = None) -> Table:
    """Reads a file or a directory.

    Args:
        path: of a file or directory that exists.
        split: of a directory with several splits.
        format_name: None recognizes the format.

    Raises:
        DataError: the format is unknown or not clear, or the source cannot be read in it.
    """
    if format_name and format_name not in SHAPES:
        return _read_as(format_name, path, split)
    container = _recognize_directory(path) if path.is_dir() else file_format(path.name) or "json"
    table = _read_as(container, path, split)
    if format_name:
        return cast(Table, SHAPES[format_name].convert(table))
    return recognize_shape(table) if container in WITH_SHAPES else table


def _read_as(container: str, path: Path, split: str) -> Table:
    if not path.is_dir():
        if container not in FILES:
            raise DataError(f"{path} is a file, expected a directory for data.format: {container}. Name its directory.")
        return FILES[container](path)
    if container == "datasets":
        return arrow.read_saved(path, split)
    if container == "brat":
        return brat.read(path)
    if container == "parquet":
        return arrow.read_parquet_files(path, _parquet_files(path))
    raise DataError(f"{path} is a directory, expected a file for data.format: {container}. Name the file.")


def recognize_shape(table: Table) -> Table:
    """Returns the table, converted if its rows have the shape of one of `SHAPES`.

    Raises:
        DataError: they have the shapes of several.
    """
    names = [name for name, shape in SHAPES.items() if shape.recognizes(table)]
    if len(names) > 1:
        raise DataError(_ambiguous(table.name, names))
    return cast(Table, SHAPES[names[0]].convert(table)) if names else table


def _ambiguous(source: str, names: list[str]) -> str:
    return (
        f"{source} could be any of: {', '.join(names)}. Name the right one in the recipe, for example"
        f" data.format: {names[0]}."
    )


def is_saved_dataset(folder: Path) -> bool:
    """Tells whether `save_to_disk` has written a directory."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if file_format(path.name) == "parquet" and path.is_file())


def _recognize_directory(folder: Path) -> str:
    contents = {
        "datasets": is_saved_dataset(folder),
        "parquet": bool(_parquet_files(folder)),
        "brat": any(folder.glob("*.ann")),
    }
    names = [name for name, is_there in contents.items() if is_there]
    if len(names) > 1:
        raise DataError(_ambiguous(str(folder), names))
    if not names:
        raise DataError(
            f"{folder} is a directory, expected a file ({SUFFIXES}), or {DIRECTORIES}. Directories below it are not"
            " read: name the right one."
        )
    return names[0]
