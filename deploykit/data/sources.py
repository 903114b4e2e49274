"""Reads rows from csv, tsv, JSON lines and parquet files, and from data sets of the hub.

Text formats are read with the standard library, which tells the line of each row. A row that cannot be read is kept as
`Broken`, never dropped. No code that comes with a data set is run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet

from deploykit.data import delimited, files
from deploykit.errors import DataError
from deploykit.methods import did_you_mean
from deploykit.recipe import expanded, file_format, is_file

FORMATS = "csv, tsv, jsonl, json (one object per line) or parquet, all of them also compressed: .gz, .bz2, .xz"


@dataclass(frozen=True)
class Row:
    """A row: its line, or its number from 1 in formats without lines, and its values by column."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used, and the reason."""

    line: int
    why: str


@dataclass(frozen=True)
class Table:
    """The content of a source; `unit` says what `line` counts."""

    name: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    broken: tuple[Broken, ...] = ()


def read(source: str, split: str = "train") -> Table:
    """Reads a file, or one split of a data set of the hub.

    Args:
        source: a path that ends in one of `FORMATS`, or `owner/name`, or `owner/name@revision`.
        split: of a data set of the hub; a file has only one.

    Raises:
        DataError: the source is missing, is not UTF-8, is damaged, or has another format.
    """
    if is_file(source):
        return _read_file(Path(source))
    if Path(source).exists() or source.startswith(("/", ".", "~")):
        raise DataError(f"{source} is in a format that is not read. Give a file that ends in {FORMATS}.")
    return _read_hub(source, split)


def texts(source: str) -> list[str]:
    """Reads a corpus: all strings of a file with columns, or all lines of any other file.

    Raises:
        DataError: the file is missing, is not UTF-8, or has rows that cannot be read.
    """
    if not is_file(source):
        return files.read_text(require(source)).split("\n")
    table = read(source)
    for broken in table.broken:
        raise DataError(f"{source}, {table.unit} {broken.line}: {broken.why}.")
    values = [value for row in table.rows for value in row.values.values()]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if isinstance(part, str)]


def require(source: str) -> Path:
    """Returns the path of a file that exists.

    Raises:
        DataError: the file does not exist; names the most similar file beside it.
    """
    path = expanded(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path} is a directory, expected a file ({FORMATS}).")
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(
        f"there is no file {path}{did_you_mean(path.name, names)}. Paths in a recipe start from the recipe's directory."
    )


def _read_file(path: Path) -> Table:
    readers: dict[str, Callable[[Path], Table]] = {"csv": _read_csv, "tsv": _read_csv, "parquet": _read_parquet}
    try:
        return readers.get(file_format(path.name) or "", _read_json_lines)(require(str(path)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def _read_csv(path: Path) -> Table:
    lines = delimited.read_rows(files.read_text(path), tabs=file_format(path.name) == "tsv")
    if not lines:
        return Table(str(path), "line", (), ())
    (first, header), *body = lines
    if isinstance(header, str):
        raise DataError(f"{path}, line {first}: the names of the columns cannot be read: {header}.")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line {first}: the column {repeated[0]!r} occurs twice. Give each its own name.")
    rows, broken = [], []
    for line, fields in body:
        if isinstance(fields, str):
            broken.append(Broken(line, fields))
        elif len(fields) != len(header):
            reason = f"the number of fields is {len(fields)}, expected {len(header)} ({', '.join(header)})"
            broken.append(Broken(line, reason))
        else:
            rows.append(Row(line, dict(zip(header, fields, strict=True))))
    return Table(str(path), "line", tuple(header), tuple(rows), tuple(broken))


def _read_json_lines(path: Path) -> Table:
    text = files.read_text(path)
    if file_format(path.name) == "json" and text.lstrip().startswith("["):
        raise DataError(f"{path} is one JSON list, expected one object per line. Convert it with: jq -c '.[]'")
    rows, broken = [], []
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 as well
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            broken.append(Broken(line, f"not JSON ({error})"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, values))
        else:
            broken.append(Broken(line, f"JSON of type {type(values).__name__}, expected an object with the columns"))
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(str(path), "line", tuple(columns), tuple(rows), tuple(broken))


def _read_parquet(path: Path) -> Table:
    try:
        packed = path.suffix.lower() in files.DECOMPRESS
        table = pyarrow.parquet.read_table(pa.BufferReader(files.read_bytes(path)) if packed else path)
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    return _table(str(path), tuple(table.column_names), table.to_pylist())


def _read_hub(source: str, split: str) -> Table:
    name, _, revision = source.partition("@")
    try:
        dataset = datasets.load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # the library and its HTTP clients raise many types
        raise DataError(
            f"the split {split!r} of the data set {source!r} could not be loaded: {error}."
            f" Expected a file ({FORMATS}) or the id of a data set of the hub, and then a network."
        ) from error
    rows = [{name: _name(value, dataset.features[name]) for name, value in row.items()} for row in dataset]
    return _table(f"{source}[{split}]", tuple(dataset.column_names), rows)


def _table(name: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    return Table(name, "row", columns, tuple(Row(number, values) for number, values in enumerate(rows, start=1)))


def _name(value: Any, feature: Any) -> Any:
    """Replaces class numbers of a data set of the hub by their names."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.names[value] if isinstance(value, int) and value >= 0 else None  # -1 stands for unlabelled
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel) and value is not None:
        return [_name(part, feature.feature) for part in value]
    return value
