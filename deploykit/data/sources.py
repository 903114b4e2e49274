"""Where rows come from: csv, tsv, JSON lines and parquet files, and data sets of the hub.

Text formats are read with the standard library, so that every row knows the line on which it starts. A
row that cannot be read is kept as a complaint and never dropped; what the columns mean is left to
`examples.py`. Nothing here runs code that a data set brings along.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet

from deploykit.errors import DataError
from deploykit.methods import did_you_mean
from deploykit.recipe import is_file

FORMATS = "csv, tsv, jsonl, json (one object a line) or parquet"
LONGEST_FIELD = 2**31 - 1  # the csv module stops at 131,072 characters unless told otherwise


@dataclass(frozen=True)
class Row:
    """One row: its line (or, without lines, its number from 1) and its values by column."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used, and why."""

    line: int
    why: str


@dataclass(frozen=True)
class Table:
    """What a source holds; `unit` says what `line` counts in it."""

    name: str
    unit: Literal["line", "row"]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    broken: tuple[Broken, ...] = ()


def read(source: str, split: str = "train") -> Table:
    """Reads a file, or one split of a data set of the hub.

    Args:
        source: a path that ends in one of the known formats, or `owner/name`, or `owner/name@revision`.
        split: which split of a data set of the hub; a file holds only one.

    Raises:
        DataError: the source is missing, is not UTF-8, is damaged, or is in a format that is not read.
    """
    if is_file(source):
        return _read_file(Path(source))
    if Path(source).exists() or source.startswith(("/", ".", "~")):
        raise DataError(f"{source} is in a format that is not read. Give a file that ends in {FORMATS}.")
    return _read_hub(source, split)


def texts(source: str) -> list[str]:
    """Reads a corpus: every string of a file with columns, every line of any other file.

    Raises:
        DataError: the file is missing, is not UTF-8, or has rows that cannot be read.
    """
    if not is_file(source):
        return _text(require(source)).split("\n")
    table = read(source)
    for broken in table.broken:
        raise DataError(f"{source}, {table.unit} {broken.line}: {broken.why}.")
    values = [value for row in table.rows for value in row.values.values()]
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if isinstance(part, str)]


def require(source: str) -> Path:
    """Returns the path of a file that exists.

    Raises:
        DataError: there is none; names the nearest file beside it.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path} is a directory, expected a file ({FORMATS}).")
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, beside)
    raise DataError(f"there is no file {path}{hint}. Paths in a recipe start from the recipe's directory.")


def _read_file(path: Path) -> Table:
    readers: dict[str, Callable[[Path], Table]] = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    try:
        return readers.get(path.suffix, _read_json_lines)(require(str(path)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}, line {line}."
            " Save it as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _read_csv(path: Path) -> Table:
    text = _text(path)
    lines = list(_csv_lines(text, "\t" if path.suffix == ".tsv" else _mark(text)))
    if not lines:
        return Table(str(path), "line", (), ())
    (first, header), *body = lines
    if isinstance(header, str):
        raise DataError(f"{path}, line {first}: the names of the columns cannot be read: {header}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line {first}: the column {twice[0]!r} stands there twice. Give each its own name.")
    rows, broken = [], []
    for line, fields in body:
        if isinstance(fields, str):
            broken.append(Broken(line, fields))
        elif len(fields) != len(header):
            broken.append(
                Broken(line, f"the number of fields is {len(fields)}, expected {len(header)} ({', '.join(header)})")
            )
        else:
            rows.append(Row(line, dict(zip(header, fields, strict=True))))
    return Table(str(path), "line", tuple(header), tuple(rows), tuple(broken))


def _mark(text: str) -> str:
    """Returns what parts the columns: spreadsheets write semicolons where the comma is that of decimals."""
    header = text.partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _csv_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yields the line on which each row starts with its fields, or with what is wrong in it."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield start, f"{error}; is a quotation mark missing or not doubled?"
            else:
                if fields:  # an empty line is no row
                    yield start, fields
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(path: Path) -> Table:
    text = _text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        raise DataError(f"{path} is one JSON list, expected one object a line. Convert it with: jq -c '.[]'")
    rows, broken = [], []
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 as well
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            broken.append(Broken(line, f"no JSON ({error})"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, values))
        else:
            broken.append(Broken(line, f"JSON of type {type(values).__name__}, expected an object with the columns"))
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(str(path), "line", tuple(columns), tuple(rows), tuple(broken))


def _read_parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} is no parquet file that can be read: {error}") from error
    return _table(str(path), tuple(table.column_names), table.to_pylist())


def _read_hub(source: str, split: str) -> Table:
    name, _, revision = source.partition("@")
    try:
        found = datasets.load_dataset(name, split=split, revision=revision or None)
    except Exception as error:  # the library raises many kinds, of its own and of its HTTP clients
        raise DataError(
            f"the split {split!r} of the data set {source!r} could not be loaded: {error}."
            f" Expected a file ({FORMATS}) or the id of a data set of the hub, and then a network."
        ) from error
    table = _table(f"{source}[{split}]", tuple(found.column_names), [dict(row) for row in found])
    return replace(table, rows=tuple(_named(row, found.features) for row in table.rows))


def _table(name: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    return Table(name, "row", columns, tuple(Row(number, values) for number, values in enumerate(rows, start=1)))


def _named(row: Row, features: Mapping[str, Any]) -> Row:
    """Puts names where a data set of the hub stores the numbers of classes."""
    return Row(row.line, {name: _name(value, features[name]) for name, value in row.values.items()})


def _name(value: Any, feature: Any) -> Any:
    if isinstance(feature, datasets.ClassLabel):
        return feature.names[value] if isinstance(value, int) and value >= 0 else None  # -1 stands for unlabelled
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel) and value is not None:
        return [_name(part, feature.feature) for part in value]
    return value
