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
TASK_COLUMNS = {"data", "annotations"}
MINIMAL_COLUMNS = {"annotation_id", "lead_time"}  # in every row of JSON-MIN
# Types of results. A region is a labelled span, and choices are labels of the whole text.
REGION_TYPE, CHOICES_TYPE, RELATION_TYPE, SCORE_TYPES = "labels", "choices", "relation", ("rating", "number")
Result = Mapping[str, Any]  # what one control recorded in an annotation: its `type`, `from_name`, `value`, `id`


def recognizes(table: Table) -> bool:
    """Tells whether rows are tasks with annotations, or those of JSON-MIN."""
    columns = set(table.columns)
    return columns >= MINIMAL_COLUMNS or (columns >= TASK_COLUMNS and any(_is_task(row.values) for row in table.rows))


def _is_task(values: Values) -> bool:
    return isinstance(values.get("data"), Mapping) and isinstance(values.get("annotations"), list)


def convert(table: Table) -> Table:
    """Returns the tasks as rows, with warnings about annotations that disagree and results that are not read."""
    if set(table.columns) >= MINIMAL_COLUMNS and not any(_is_task(row.values) for row in table.rows):
        has_regions = any(_region_columns(row.values) for row in table.rows)
        return table.convert(lambda values: _convert_minimal(values, has_regions))
    first_annotations = [(_annotations(row.values) or [{}])[0] for row in table.rows]
    results = [result for annotation in first_annotations for result in _results(annotation)]
    choice_controls = {str(result.get("from_name")) for result in results if result.get("type") == CHOICES_TYPE}
    has_several_controls = len(choice_controls) > 1
    columns = () if table.rows else COLUMNS
    converted = table.convert(lambda values: _convert_task(values, has_several_controls), columns)
    return replace(converted, warnings=(*table.warnings, *_warnings(table, results)))


def _warnings(table: Table, results: Sequence[Result]) -> list[str]:
    """Lists the warnings about tasks.

    Args:
        table: the tasks, not converted.
        results: of the first annotation of each task.
    """
    warnings = []
    disagreeing = sum(_do_annotations_disagree(row.values) for row in table.rows)
    if disagreeing:
        warnings.append(
            f"{table.name} has several annotations that disagree in {disagreeing} of {len(table.rows)} tasks; the first"
            " of each task that was not cancelled is read."
        )
    read_types = (REGION_TYPE, CHOICES_TYPE, RELATION_TYPE, *SCORE_TYPES)
    unread = Counter(str(result.get("type")) for result in results if result.get("type") not in read_types)
    if unread:
        counts = ", ".join(f"{kind} ({count})" for kind, count in sorted(unread.items()))
        warnings.append(f"{table.name} has results of types that are not read: {counts}.")
    return warnings


def _annotations(values: Values) -> list[Mapping[str, Any]]:
    """Lists the annotations of a task that were not cancelled."""
    annotations = values.get("annotations")
    if not isinstance(annotations, list):
        return []
    return [item for item in annotations if isinstance(item, Mapping) and not item.get("was_cancelled")]


def _results(annotation: Mapping[str, Any]) -> list[Result]:
    results = annotation.get("result")
    return [result for result in results if isinstance(result, Mapping)] if isinstance(results, list) else []


def _do_annotations_disagree(values: Values) -> bool:
    """Tells whether the annotations of a task differ in more than the ids of regions and the order of results."""
    contents = [_comparable(_results(annotation)) for annotation in _annotations(values)]
    return any(content != contents[0] for content in contents)


def _comparable(results: Sequence[Result]) -> list[str]:
    """Returns sorted texts that are equal if two annotations say the same.

    Ids differ between annotations, so a relation is written with the regions that it refers to.
    """
    value_of_id = {str(result.get("id")): result.get("value") for result in results}
    keys = ("type", "from_name", "value", "labels", "direction")
    texts = []
    for result in results:
        ends = [value_of_id.get(str(result.get(end))) for end in ("from_id", "to_id")]
        texts.append(str([*map(result.get, keys), *ends]))
    return sorted(texts)


def _convert_task(values: Values, has_several_controls: bool) -> Values:
    """Returns the columns of a task.

    Args:
        values: the task.
        has_several_controls: whether the tasks have choices of several controls. Then each control is a column;
            otherwise the choices are also the columns `label` and `labels`.
    """
    if not _is_task(values):
        raise ValueError("there is no `data` or no list of `annotations`, expected a task with both")
    annotations = _annotations(values)
    if not annotations:
        raise ValueError("there is no annotation that was not cancelled, expected at least one: label this task")
    result_list = annotations[0].get("result")
    if not isinstance(result_list, list) or not all(isinstance(result, Mapping) for result in result_list):
        raise ValueError(f"the `result` of the annotation is {shorten(str(result_list))}, expected a list of objects")
    data, results = values["data"], _results(annotations[0])
    text = _find_text(data)
    spans = [span for result in results if result.get("type") == REGION_TYPE for span in _spans(result, text)]
    span_ids = {span["id"] for span in spans}
    relations = [
        relation
        for result in results
        if result.get("type") == RELATION_TYPE
        for relation in _relations(result, span_ids)
    ]
    scores = [_value(result).get(result["type"]) for result in results if result.get("type") in SCORE_TYPES]
    if len(scores) > 1:
        raise ValueError(f"there are {len(scores)} ratings or numbers ({shorten(str(scores))}), expected one")
    choices = {
        str(result.get("from_name")): _choices(result) for result in results if result.get("type") == CHOICES_TYPE
    }
    columns = {control: _unwrap_single(labels) for control, labels in choices.items()}
    if not has_several_controls:
        labels = next(iter(choices.values()), None)
        columns |= {"label": _unwrap_single(labels), "labels": labels}
    row = {"id": values.get("id"), **data, "text": text, "spans": spans, "relations": relations}
    return {**row, **columns, "score": scores[0] if scores else None}


def _find_text(data: Mapping[str, Any]) -> str:
    """Returns the field `text`, or the only field that is a text."""
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    candidates = [texts["text"]] if "text" in texts else list(texts.values())
    if len(candidates) != 1 or not candidates[0].strip():
        names = ", ".join(texts) or "none"
        raise ValueError(f"the texts of `data` are: {names}; expected one that is not empty, or one called text")
    return candidates[0]


def _value(result: Result) -> Mapping[str, Any]:
    """Returns the field `value`, or an empty mapping if that is no mapping."""
    value = result.get("value")
    return value if isinstance(value, Mapping) else {}


def _choices(result: Result) -> list[str]:
    choices = _value(result).get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"the choices are {shorten(str(choices))}, expected a list of words")
    return choices


def _unwrap_single(labels: list[str] | None) -> Any:
    """Returns the label of a list of one, and anything else as it is."""
    return labels[0] if labels and len(labels) == 1 else labels


def _spans(region: Result, text: str) -> list[dict[str, Any]]:
    """Returns the span of a region, once for each of its labels."""
    value = _value(region)
    labels = value.get("labels")
    if not isinstance(labels, list) or not labels:
        raise ValueError(f"the region {region.get('id')!r} has the labels {labels!r}, expected a list of at least one")
    start, end, quoted = value.get("start"), value.get("end"), value.get("text")
    return [make_span(text, start, end, label, region.get("id"), quoted) for label in labels]


def _relations(result: Result, span_ids: set[str]) -> list[dict[str, Any]]:
    """Returns a relation for each label, or one without a label; a relation in both directions becomes two."""
    forward = result.get("from_id"), result.get("to_id")
    backward = forward[::-1]
    pairs = {"left": [backward], "bi": [forward, backward]}.get(str(result.get("direction")), [forward])
    labels = result.get("labels") or [None]
    if not isinstance(labels, list):
        raise ValueError(f"the labels of a relation are {shorten(str(labels))}, expected a list")
    return [make_relation(head, tail, label, span_ids) for head, tail in pairs for label in labels]


def _region_columns(values: Values) -> dict[str, list[Any]]:
    """Returns the columns of a row of JSON-MIN that hold regions, which have `labels`."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and any(isinstance(item, Mapping) and "labels" in item for item in value)
    }


def _convert_minimal(values: Values, has_regions: bool) -> Values:
    """Returns the columns of a row of JSON-MIN.

    Args:
        values: the row.
        has_regions: whether any row of the file has regions; then each gets the column `spans`, which may be empty.
    """
    region_columns = _region_columns(values)
    if len(region_columns) > 1:
        raise ValueError(
            f"there are regions in {', '.join(region_columns)}, expected one such column: export as JSON instead"
        )
    choices = {
        name: _choices({"value": value})
        for name, value in values.items()
        if isinstance(value, Mapping) and CHOICES_TYPE in value
    }
    if not has_regions:
        return {**values, **choices}
    text = _find_text({"text": values.get("text")})
    regions = [region for column in region_columns.values() for region in column]
    # JSON-MIN gives regions no id, and has only the value of a result.
    spans = [span for index, region in enumerate(regions) for span in _spans({"id": index, "value": region}, text)]
    return {**values, **choices, "spans": spans}
