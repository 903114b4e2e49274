"""Label Studio's exports: tasks as a JSON list (JSON), and the shorter JSON-MIN.

A task becomes the fields of its `data`, and `text`, `spans`, `relations`, `label`, `labels` and `score` from its first
annotation that was not cancelled (https://labelstud.io/guide/export). JSON-MIN keeps its columns, which have the names
of the controls; its regions become `spans`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deploykit.data.formats.spans import make_relation, make_span, shorten
from deploykit.data.table import Table, Values

COLUMNS = ("id", "text", "spans", "relations", "label", "labels", "score")
TASK = {"data", "annotations"}
MINIMAL = {"annotation_id", "lead_time"}
REGIONS, CHOICES, RELATION, SCORES = "labels", "choices", "relation", ("rating", "number")


def recognizes(table: Table) -> bool:
    """Tells whether rows are tasks with annotations, or those of JSON-MIN."""
    columns = set(table.columns)
    return columns >= MINIMAL or (columns >= TASK and any(_is_task(row.values) for row in table.rows))


def _is_task(values: Values) -> bool:
    return isinstance(values.get("data"), Mapping) and isinstance(values.get("annotations"), list)


def convert(table: Table) -> Table:
    """Returns the tasks as rows, with warnings about annotations that disagree and results that are not read."""
    if set(table.columns) >= MINIMAL and not any(_is_task(row.values) for row in table.rows):
        has_regions = any(_regions(row.values) for row in table.rows)
        return table.convert(lambda values: _read_minimal(values, has_regions))
    read = [result for row in table.rows for result in _results((_annotations(row.values) or [{}])[0])]
    controls = {str(result.get("from_name")) for result in read if result.get("type") == CHOICES}
    several = len(controls) > 1
    converted = table.convert(lambda values: _read_task(values, several), () if table.rows else COLUMNS)
    return replace(converted, warnings=(*table.warnings, *_warnings(table, read)))


def _warnings(table: Table, results: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    disagreeing = sum(_disagree(row.values) for row in table.rows)
    if disagreeing:
        warnings.append(
            f"{table.name} has several annotations that disagree in {disagreeing} of {len(table.rows)} tasks; the first"
            " of each task that was not cancelled is read."
        )
    known = (REGIONS, CHOICES, RELATION, *SCORES)
    unread = Counter(str(result.get("type")) for result in results if result.get("type") not in known)
    if unread:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(unread.items()))
        warnings.append(f"{table.name} has results of types that are not read: {listed}.")
    return warnings


def _annotations(values: Values) -> list[Mapping[str, Any]]:
    annotations = values.get("annotations")
    listed = annotations if isinstance(annotations, list) else []
    return [part for part in listed if isinstance(part, Mapping) and not part.get("was_cancelled")]


def _results(annotation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    results = annotation.get("result")
    return [result for result in results if isinstance(result, Mapping)] if isinstance(results, list) else []


def _disagree(values: Values) -> bool:
    """Tells whether the annotations of a task differ, apart from the ids of regions."""
    meanings = [_meaning(_results(annotation)) for annotation in _annotations(values)]
    return any(meaning != meanings[0] for meaning in meanings)


def _meaning(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the results in an order of their own, with the regions that a relation refers to instead of their ids."""
    regions = {str(result.get("id")): result.get("value") for result in results}
    keys = ("type", "from_name", "value", "labels", "direction")
    return sorted(
        str([*map(result.get, keys), *(regions.get(str(result.get(end))) for end in ("from_id", "to_id"))])
        for result in results
    )


def _read_task(values: Values, several_controls: bool) -> Values:
    if not _is_task(values):
        raise ValueError("there is no `data` or no list of `annotations`, expected a task with both")
    annotations = _annotations(values)
    if not annotations:
        raise ValueError("there is no annotation that was not cancelled, expected at least one: label this task")
    listed = annotations[0].get("result")
    if not isinstance(listed, list) or not all(isinstance(result, Mapping) for result in listed):
        raise ValueError(f"the `result` of the annotation is {shorten(str(listed))}, expected a list of objects")
    data, results = values["data"], _results(annotations[0])
    text = _text(data)
    spans = [span for result in results if result.get("type") == REGIONS for span in _spans(result, text)]
    names = {span["id"] for span in spans}
    relations = [
        relation for result in results if result.get("type") == RELATION for relation in _relations(result, names)
    ]
    scores = [_value(result).get(result["type"]) for result in results if result.get("type") in SCORES]
    if len(scores) > 1:
        raise ValueError(f"there are {len(scores)} ratings or numbers ({shorten(str(scores))}), expected one")
    chosen = {str(result.get("from_name")): _choices(result) for result in results if result.get("type") == CHOICES}
    columns = {name: _only(labels) for name, labels in chosen.items()}
    if not several_controls:
        labels = next(iter(chosen.values()), None)
        columns |= {"label": _only(labels), "labels": labels}
    row = {"id": values.get("id"), **data, "text": text, "spans": spans, "relations": relations}
    return {**row, **columns, "score": scores[0] if scores else None}


def _text(data: Mapping[str, Any]) -> str:
    """Returns the field `text`, or the only field that is a text."""
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    candidates = [texts["text"]] if "text" in texts else list(texts.values())
    if len(candidates) != 1 or not candidates[0].strip():
        names = ", ".join(texts) or "none"
        raise ValueError(f"the texts of `data` are: {names}; expected one that is not empty, or one called text")
    return candidates[0]


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _choices(result: Mapping[str, Any]) -> list[str]:
    choices = _value(result).get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"the choices are {shorten(str(choices))}, expected a list of words")
    return choices


def _only(labels: list[str] | None) -> Any:
    return labels[0] if labels and len(labels) == 1 else labels


def _spans(result: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
    """Returns the span of a region, once for each of its labels."""
    value = _value(result)
    labels = value.get("labels")
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"the region {result.get('id')!r} has the labels {labels!r}, expected a list of at least one")
    start, end, quoted = value.get("start"), value.get("end"), value.get("text")
    return [make_span(text, start, end, label, result.get("id"), quoted) for label in labels]


def _relations(result: Mapping[str, Any], names: set[str]) -> list[dict[str, Any]]:
    """Returns a relation for each label, or one without; one that points both ways becomes two."""
    ends = result.get("from_id"), result.get("to_id")
    backward = ends[::-1]
    pairs = {"left": [backward], "bi": [ends, backward]}.get(str(result.get("direction")), [ends])
    labels = result.get("labels") or [None]
    if not isinstance(labels, list):
        raise ValueError(f"the labels of a relation are {shorten(str(labels))}, expected a list")
    return [make_relation(head, tail, label, names) for head, tail in pairs for label in labels]


def _regions(values: Values) -> dict[str, list[Any]]:
    """Returns the columns of JSON-MIN that hold regions."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and any(isinstance(part, Mapping) and "labels" in part for part in value)
    }


def _read_minimal(values: Values, has_regions: bool) -> Values:
    regions = _regions(values)
    if len(regions) > 1:
        raise ValueError(f"there are regions in {', '.join(regions)}, expected one such column: export as JSON instead")
    choices = {
        name: _choices({"value": value})
        for name, value in values.items()
        if isinstance(value, Mapping) and CHOICES in value
    }
    if not has_regions:
        return {**values, **choices}
    text = _text({"text": values.get("text")})
    listed = [part for column in regions.values() for part in column]
    spans = [span for index, part in enumerate(listed) for span in _spans({"id": index, "value": part}, text)]
    return {**values, **choices, "spans": spans}
