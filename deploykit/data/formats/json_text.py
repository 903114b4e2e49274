"""JSON: a list of objects, an object on each line, or the nested object of SQuAD."""

import json
from pathlib import Path
from typing import Any

from deploykit.data import files
from deploykit.data.formats import squad
from deploykit.data.table import Broken, Row, Table
from deploykit.errors import DataError


def read(path: Path) -> Table:
    """Reads a list of objects, whose rows are counted from 1, or anything else as `read_lines` does.

    Raises:
        DataError: the file is one JSON value, but none of these.
    """
    text = files.read_text(path)
    start = text.lstrip()[:1]
    if start == "[":
        return _from_list(path, text)
    content = _parsed(text) if start == "{" else None
    if isinstance(content, dict) and squad.is_nested(content):
        return squad.flatten(str(path), content)
    if isinstance(content, dict) and len(text.strip().splitlines()) > 1:
        raise DataError(
            f"{path} is one JSON object over several lines, expected a list of objects, an object on each line, or the"
            ' nested object of SQuAD, {"data": [...]}. Save the rows as a list: [{...}, ...]'
        )
    return _from_lines(path, text)


def read_lines(path: Path) -> Table:
    """Reads an object on each line.

    Raises:
        DataError: the file is one JSON list.
    """
    text = files.read_text(path)
    if text.lstrip().startswith("[") and isinstance(_parsed(text), list):
        raise DataError(
            f"{path} is one JSON list, expected one object per line."
            " Rename it so that it ends in .json, or set data.format: json."
        )
    return _from_lines(path, text)


def _parsed(text: str) -> Any:
    """Returns the value that the text is as a whole; None if it is not one value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _from_list(path: Path, text: str) -> Table:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}), expected a list of objects:"
            " [{...}, ...]. Correct the file, or save it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a JSON list ({error}). Expected [{{...}}, ...].") from error
    rows, broken = [], []
    for number, values in enumerate(items, start=1):
        if isinstance(values, dict):
            rows.append(Row(number, values))
        else:
            broken.append(Broken(number, _no_object(values)))
    return _table(path, "row", rows, broken)


def _from_lines(path: Path, text: str) -> Table:
    rows, broken = [], []
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 as well
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            broken.append(Broken(line, f"not JSON ({error}), expected an object with the columns"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, values))
        else:
            broken.append(Broken(line, _no_object(values)))
    return _table(path, "line", rows, broken)


def _no_object(value: Any) -> str:
    return f"JSON of type {type(value).__name__}, expected an object with the columns"


def _table(path: Path, unit: Any, rows: list[Row], broken: list[Broken]) -> Table:
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(str(path), unit, tuple(columns), tuple(rows), tuple(broken))
