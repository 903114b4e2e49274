"""Arrow tables: parquet files, directories of them, and data sets that the library datasets has loaded or saved."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from deploykit.data import files
from deploykit.data.table import Row, Table, number_rows
from deploykit.errors import DataError

# How the names of parquet files of one split begin on the hub, as in train-00000-of-00002.parquet.
SPLIT_PREFIX = re.compile(r"(train|training|validation|valid|val|dev|test)\b", re.IGNORECASE)


def read_parquet(path: Path) -> Table:
    """Reads a parquet file.

    Raises:
        DataError: the file is damaged.
    """
    try:
        is_compressed = path.suffix.lower() in files.DECOMPRESSORS
        table = pyarrow.parquet.read_table(pa.BufferReader(files.read_bytes(path)) if is_compressed else path)
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}. Write or download it again.") from error
    return number_rows(str(path), table.column_names, table.to_pylist())


def read_parquet_files(folder: Path, paths: Sequence[Path]) -> Table:
    """Reads the parquet files of a directory as one table.

    Args:
        folder: the directory, which gives the table its name.
        paths: the files in it.

    Raises:
        DataError: a file is damaged, or the names of the files say that they hold several splits.
    """
    file_of_split = {match[0].lower(): path.name for path in paths if (match := SPLIT_PREFIX.match(path.name))}
    if len(file_of_split) > 1:
        raise DataError(
            f"{folder} has parquet files of several splits ({', '.join(file_of_split.values())}), expected one split."
            " Name the files one by one, or give each split its own directory."
        )
    tables = [read_parquet(path) for path in paths]
    columns = dict.fromkeys(name for table in tables for name in table.columns)
    rows = [
        Row(f"{path.name}:{row.place}", row.values)
        for path, table in zip(paths, tables, strict=True)
        for row in table.rows
    ]
    return Table(str(folder), "row", tuple(columns), tuple(rows))


def read_saved(folder: Path, split: str) -> Table:
    """Reads a directory that `save_to_disk` has written.

    Args:
        folder: of a single data set, or of several splits.
        split: which of several to read.

    Raises:
        DataError: the directory is damaged, or has no such split.
    """
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many types
        raise DataError(
            f"{folder} cannot be read as a data set that was saved by `save_to_disk`: {error}. Save it again."
        ) from error
    if isinstance(saved, datasets.Dataset):
        return convert_dataset(str(folder), saved)
    if split not in saved:
        raise DataError(
            f"{folder} has no split {split!r}, expected one of: {', '.join(saved)}. Name one of them, or its directory:"
            f" {folder / next(iter(saved))}"
        )
    return convert_dataset(f"{folder}[{split}]", saved[split])


def convert_dataset(name: str, dataset: Any) -> Table:
    """Returns the rows of a `datasets.Dataset`, with the names of classes in place of their numbers.

    Args:
        name: of the table.
        dataset: a `datasets.Dataset`. Images stay as the bytes or the path that it holds, and are not decoded.
    """
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    features = dataset.features
    rows = ({column: _with_class_names(value, features[column]) for column, value in row.items()} for row in dataset)
    return number_rows(name, dataset.column_names, rows)


def _with_class_names(value: Any, feature: Any) -> Any:
    """Returns a value with class numbers, also those in a list, replaced by names; None for an unlabelled value."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.names[value] if isinstance(value, int) and value >= 0 else None  # -1 stands for unlabelled
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel) and value is not None:
        return [_with_class_names(item, feature.feature) for item in value]
    return value
