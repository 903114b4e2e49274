"""Doccano's exports, JSON lines with `text`: the labels of a text, or spans, with or without relations.

Spans are `label` (or `labels`) as `[[start, end, "LABEL"], ...]`, or `entities` with `relations`; labels of a whole
text are `label: ["LABEL", ...]` (https://doccano.github.io/doccano/tutorial/). Other columns stay.
"""

from collections.abc import Mapping
from typing import Any

from deploykit.data.formats.spans import make_relation, make_span, shorten
from deploykit.data.table import Table, Values

LABEL_COLUMNS = ("label", "labels")  # Doccano's versions differ in the name
# The columns in which Doccano writes lists.
LIST_COLUMNS = (*LABEL_COLUMNS, "entities", "relations", "cats", "Comments", "comments")
OTHER_FORMATS_COLUMNS = {"spans", "tokens", "words", "data"}  # Doccano writes none of these
EXPECTED_LABELS = '[[start, end, "LABEL"], ...], ["LABEL", ...], or `entities` of {id, start_offset, end_offset, label}'


def recognizes(table: Table) -> bool:
    """Tells whether rows have labels as Doccano writes them, and no columns of another format."""
    rows = [row.values for row in table.rows]
    return (
        "text" in table.columns
        and not OTHER_FORMATS_COLUMNS & set(table.columns)
        and any(_has_labels(values) for values in rows)
        and not any(isinstance(value, list) for row in rows for name, value in row.items() if name not in LIST_COLUMNS)
    )


def _has_labels(values: Values) -> bool:
    """Tells whether a row has an entity, a label of the whole text, or a span as a triple, as Doccano writes them.

    A list of words in `labels` does not tell, because that is also the usual column of several labels per text.
    """
    entities = values.get("entities")
    if isinstance(entities, list) and any(isinstance(entity, dict) and "start_offset" in entity for entity in entities):
        return True
    text_labels = values.get("label")
    if isinstance(text_labels, list) and any(isinstance(label, str) for label in text_labels):
        return True
    return any(_is_triple(item) and type(item[0]) is int for item in _label_list(values) or ())


def _label_list(values: Values) -> list[Any] | None:
    """Returns the first of `LABEL_COLUMNS` that holds a list: words or triples; None if neither column does."""
    return next((values[name] for name in LABEL_COLUMNS if isinstance(values.get(name), list)), None)


def _is_triple(item: Any) -> bool:
    """Tells whether an item of a label column may be a span, `[start, end, "LABEL"]`; `make_span` checks the types."""
    return isinstance(item, list) and len(item) == 3


def convert(table: Table) -> Table:
    """Returns the rows with `spans` and `relations`, or with labels of whole texts.

    Labels of a whole text are the list `labels`, and `label`: the only one, or the same list if there are several.
    """
    items = [item for row in table.rows for item in _label_list(row.values) or ()]
    label_whole_texts = any(isinstance(item, str) for item in items)
    return table.convert(_convert_labels if label_whole_texts else _convert_spans, table.columns)


def _convert_labels(values: Values) -> Values:
    labels = _label_list(values)
    if labels is None or not all(isinstance(label, str) for label in labels):
        found = next((values[name] for name in LABEL_COLUMNS if name in values), None)
        raise ValueError(f"the labels are {shorten(str(found))}, expected a list of words as in other rows")
    return {**values, "label": labels[0] if len(labels) == 1 else labels, "labels": labels}


def _convert_spans(values: Values) -> Values:
    text = values.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text is {text!r}, expected one that is not empty")
    triples, entities = _label_list(values), values.get("entities")
    if isinstance(entities, list):
        spans = [_span_of_entity(entity, text) for entity in entities]
    elif triples is not None:
        spans = [_span_of_triple(triple, text, index) for index, triple in enumerate(triples)]
    else:
        raise ValueError(f"there is no list of labels or entities, expected {EXPECTED_LABELS}")
    span_ids = {span["id"] for span in spans}
    relations = values.get("relations") or []
    if not isinstance(relations, list):
        raise ValueError(f"the relations are {shorten(str(relations))}, expected a list")
    return {**values, "spans": spans, "relations": [_convert_relation(relation, span_ids) for relation in relations]}


def _span_of_triple(triple: Any, text: str, index: int) -> dict[str, Any]:
    """Returns the span `[start, end, "LABEL"]`, whose id is its index in the row, since Doccano gives it none."""
    if not _is_triple(triple):
        raise ValueError(f'a span is {shorten(str(triple))}, expected [start, end, "LABEL"]')
    start, end, label = triple
    return make_span(text, start, end, label, index)


def _span_of_entity(entity: Any, text: str) -> dict[str, Any]:
    if not isinstance(entity, Mapping):
        found = shorten(str(entity))
        raise ValueError(f"an entity is {found}, expected an object with id, start_offset, end_offset and label")
    return make_span(text, *map(entity.get, ("start_offset", "end_offset", "label", "id")))


def _convert_relation(relation: Any, span_ids: set[str]) -> dict[str, Any]:
    if not isinstance(relation, Mapping):
        raise ValueError(f"a relation is {shorten(str(relation))}, expected an object with from_id, to_id and type")
    return make_relation(relation.get("from_id"), relation.get("to_id"), relation.get("type"), span_ids)
