"""Reads rows from files and directories in the formats of `formats`, and from data sets of the hub.

A row that cannot be read is kept as `BrokenRow`, never dropped. No code that comes with a data set is run.
"""

from pathlib import Path

import datasets

from deploykit.data import files, formats
from deploykit.data.formats import arrow
from deploykit.data.table import BrokenRow, Row, Table
from deploykit.errors import DataError
from deploykit.methods import did_you_mean
from deploykit.recipe import expand_home, file_format, is_file

__all__ = ["BrokenRow", "Row", "Table", "has_splits", "locate", "locate_file", "read", "read_texts"]


def read(source: str, split: str = "train", format_name: str | None = None) -> Table:
    """Reads a file, a directory, or one split of a data set of the hub.

    Args:
        source: a path, or the id of a data set of the hub: `owner/name` or `owner/name@revision`.
        split: which one to read of a data set of the hub, or of a directory with several; other sources have only one.
        format_name: None recognizes the format by suffix and content.

    Raises:
        DataError: the source is missing, is not UTF-8, is damaged, or has another format.
    """
    if is_file(source) or expand_home(source).exists():
        return _read_local(locate(source), split, format_name)
    if format_name:
        raise DataError(
            f"data.format is {format_name}, expected a file or a directory, but {source!r} is neither. Correct the"
            " path, or remove data.format for a data set of the hub."
        )
    return _read_hub(source, split)


def has_splits(source: str) -> bool:
    """Tells whether a source has named splits: a data set of the hub, or a directory written by `save_to_disk`."""
    return not is_file(source) or formats.is_saved_dataset(expand_home(source))


def read_texts(source: str) -> list[str]:
    """Reads unlabelled texts: all strings in a file of a format with columns, or all lines of any other file.

    Strings in lists count, too.

    Raises:
        DataError: the file is missing, is not UTF-8, or has rows that cannot be read.
    """
    if file_format(source) is None:
        return files.read_text(locate_file(source)).split("\n")
    table = read(source)
    for broken in table.broken_rows:
        raise DataError(f"{source}, {table.place_unit} {broken.place}: {broken.reason}.")
    values = [value for row in table.rows for value in row.values.values()]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in items if isinstance(item, str)]


def locate(source: str) -> Path:
    """Returns the path of a file or directory that exists.

    Raises:
        DataError: it does not exist; the message names the most similar file beside it.
    """
    path = expand_home(source)
    if path.exists():
        return path
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(
        f"there is no file {path}{did_you_mean(path.name, names)}. Paths in a recipe start from the recipe's directory."
    )


def locate_file(source: str) -> Path:
    """Returns the path of a file that exists.

    Raises:
        DataError: the file does not exist, or is a directory.
    """
    path = locate(source)
    if path.is_dir():
        raise DataError(f"{path} is a directory, expected a file. Name a file in it.")
    return path


def _read_local(path: Path, split: str, format_name: str | None) -> Table:
    if not path.is_dir() and not (format_name or file_format(path.name)):
        raise DataError(
            f"{path} is in a format that is not read. Give a file that ends in {formats.READABLE_SUFFIXES}; or name its"
            " format with data.format."
        )
    try:
        return formats.read(path, split, format_name)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def _read_hub(source: str, split: str) -> Table:
    name, _, revision = source.partition("@")
    try:
        dataset = datasets.load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # the library and its HTTP clients raise many types
        raise DataError(
            f"the split {split!r} of the data set {source!r} could not be loaded: {error}."
            f" Expected a file ({formats.READABLE_SUFFIXES}), or the id of a data set of the hub, and then a network."
        ) from error
    return formats.recognize_row_format(arrow.convert_dataset(f"{source}[{split}]", dataset))
