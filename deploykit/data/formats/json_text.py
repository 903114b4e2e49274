"""JSON: a list of objects, an object on each line, or the nested object of SQuAD."""

import json
from pathlib import Path
from typing import Any, Literal

from deploykit.data import files
from deploykit.data.formats import squad
from deploykit.data.table import BrokenRow, Row, Table
from deploykit.errors import DataError


def read(path: Path) -> Table:
    """Reads a list of objects, SQuAD's nested object, or an object on each line.

    Raises:
        DataError: the file is a damaged list, or a single object over several lines that is not SQuAD's.
    """
    text = files.read_text(path)
    first_character = text.lstrip()[:1]
    if first_character == "[":
        return _parse_list(path, text)
    content = _parse_value(text) if first_character == "{" else None
    if isinstance(content, dict) and squad.is_nested(content):
        return squad.flatten(str(path), content)
    if isinstance(content, dict) and len(text.strip().splitlines()) > 1:
        raise DataError(
            f"{path} is one JSON object over several lines, expected a list of objects, an object on each line, or the"
            ' nested object of SQuAD, {"data": [...]}. Save the rows as a list: [{...}, ...]'
        )
    return _parse_lines(path, text)


def read_lines(path: Path) -> Table:
    """Reads an object on each line.

    Raises:
        DataError: the file is one JSON list.
    """
    text = files.read_text(path)
    if text.lstrip().startswith("[") and isinstance(_parse_value(text), list):
        raise DataError(
            f"{path} is one JSON list, expected one object per line."
            " Rename it so that it ends in .json, or set data.format: json."
        )
    return _parse_lines(path, text)


def _parse_value(text: str) -> Any:
    """Returns the JSON value that the whole text is; None if it is not a single value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parse_list(path: Path, text: str) -> Table:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}), expected a list of objects:"
            " [{...}, ...]. Correct the file, or save it again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a JSON list ({error}). Expected [{{...}}, ...].") from error
    rows, broken_rows = [], []
    for number, values in enumerate(items, start=1):
        if isinstance(values, dict):
            rows.append(Row(number, values))
        else:
            broken_rows.append(BrokenRow(number, _explain_not_object(values)))
    return _make_table(path, "row", rows, broken_rows)


def _parse_lines(path: Path, text: str) -> Table:
    rows, broken_rows = [], []
    for line, content in enumerate(text.split("\n"), start=1):  # splitlines() would cut at U+2028 as well
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            broken_rows.append(BrokenRow(line, f"not JSON ({error}), expected an object with the columns"))
            continue
        if isinstance(values, dict):
            rows.append(Row(line, values))
        else:
            broken_rows.append(BrokenRow(line, _explain_not_object(values)))
    return _make_table(path, "line", rows, broken_rows)


def _explain_not_object(value: Any) -> str:
    return f"JSON of type {type(value).__name__}, expected an object with the columns"


def _make_table(path: Path, place_unit: Literal["line", "row"], rows: list[Row], broken_rows: list[BrokenRow]) -> Table:
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(str(path), place_unit, tuple(columns), tuple(rows), tuple(broken_rows))
