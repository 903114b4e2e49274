"""Doccano's exports, JSON lines with `text`: the labels of a text, or spans, with or without relations.

Spans are `label` (or `labels`) as `[[start, end, "LABEL"], ...]`, or `entities` with `relations`; labels of a whole
text are `label: ["LABEL", ...]` (https://doccano.github.io/doccano/tutorial/). Other columns stay.
"""

from collections.abc import Mapping
from typing import Any

from deploykit.data.formats.spans import make_relation, make_span, shorten
from deploykit.data.table import Table, Values

LABELS = ("label", "labels")
OWN_COLUMNS = (*LABELS, "entities", "relations", "cats", "Comments", "comments")
OTHER_FORMATS = {"spans", "tokens", "words", "data"}
EXPECTED = '[[start, end, "LABEL"], ...], ["LABEL", ...], or `entities` of {id, start_offset, end_offset, label}'


def recognizes(table: Table) -> bool:
    """Tells whether rows have labels as Doccano writes them, and no spans or tokens of another format."""
    rows = [row.values for row in table.rows]
    return (
        "text" in table.columns
        and not OTHER_FORMATS & set(table.columns)
        and any(_has_shape(values) for values in rows)
        and not any(isinstance(value, list) for row in rows for name, value in row.items() if name not in OWN_COLUMNS)
    )


def _has_shape(values: Values) -> bool:
    entities = values.get("entities")
    if isinstance(entities, list) and any(isinstance(entity, dict) and "start_offset" in entity for entity in entities):
        return True
    words = values.get("label")
    if isinstance(words, list) and any(isinstance(word, str) for word in words):
        return True
    return any(_is_span(part) and type(part[0]) is int for part in _labels(values) or ())


def _labels(values: Values) -> list[Any] | None:
    return next((values[name] for name in LABELS if isinstance(values.get(name), list)), None)


def _is_span(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 3


def convert(table: Table) -> Table:
    """Returns the rows with `spans` and `relations`, or with `label` (where there is one) and `labels`."""
    parts = [part for row in table.rows for part in _labels(row.values) or ()]
    of_texts = any(isinstance(part, str) for part in parts)
    return table.convert(_read_labels if of_texts else _read_spans, table.columns)


def _read_labels(values: Values) -> Values:
    labels = _labels(values)
    if labels is None or not all(isinstance(label, str) for label in labels):
        written = next((values[name] for name in LABELS if name in values), None)
        raise ValueError(f"the labels are {shorten(str(written))}, expected a list of words as in other rows")
    return {**values, "label": labels[0] if len(labels) == 1 else labels, "labels": labels}


def _read_spans(values: Values) -> Values:
    text = values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text is {text!r}, expected one that is not empty")
    labels, entities = _labels(values), values.get("entities")
    if isinstance(entities, list):
        spans = [_from_entity(entity, text) for entity in entities]
    elif labels is not None:
        spans = [_from_triple(part, text, index) for index, part in enumerate(labels)]
    else:
        raise ValueError(f"there is no list of labels or entities, expected {EXPECTED}")
    names = {span["id"] for span in spans}
    listed = values.get("relations") or []
    if not isinstance(listed, list):
        raise ValueError(f"the relations are {shorten(str(listed))}, expected a list")
    relations = [_relation(relation, names) for relation in listed]
    return {**values, "spans": spans, "relations": relations}


def _from_triple(part: Any, text: str, index: int) -> dict[str, Any]:
    if not _is_span(part):
        raise ValueError(f'a span is {shorten(str(part))}, expected [start, end, "LABEL"]')
    return make_span(text, part[0], part[1], part[2], index)


def _from_entity(entity: Any, text: str) -> dict[str, Any]:
    if not isinstance(entity, Mapping):
        shown = shorten(str(entity))
        raise ValueError(f"an entity is {shown}, expected an object with id, start_offset, end_offset and label")
    return make_span(text, *map(entity.get, ("start_offset", "end_offset", "label", "id")))


def _relation(relation: Any, names: set[str]) -> dict[str, Any]:
    if not isinstance(relation, Mapping):
        raise ValueError(f"a relation is {shorten(str(relation))}, expected an object with from_id, to_id and type")
    return make_relation(relation.get("from_id"), relation.get("to_id"), relation.get("type"), names)
