"""BRAT standoff: a directory of texts (NAME.txt), each with its annotations (NAME.ann) beside it.

A row is a text. Entities become spans, and relations become relations between spans. An event becomes a relation from
its trigger to each of its arguments, labelled with the role of the argument (https://brat.nlplab.org/standoff.html).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.data import files
from deploykit.data.formats.spans import make_relation, make_span
from deploykit.data.table import BrokenRow, Row, Table

COLUMNS = ("id", "text", "spans", "relations")
SUFFIXES = (".txt", ".ann")
ENTITY = re.compile(r"(\S+) (\d+) (\d+)")  # LABEL START END
DISCONTINUOUS_ENTITY = re.compile(r"\S+ \d+ \d+(;\d+ \d+)+")  # LABEL START END;START END...
RELATION = re.compile(r"(\S+) \S+?:(\S+) \S+?:(\S+)")  # LABEL Arg1:ID Arg2:ID
READ_KINDS = ("T", "R", "E")  # entities, relations and events; a kind is the first letter of an id
UNREAD_KINDS = {
    "A": "attributes (A)",
    "M": "modifications (M)",
    "N": "normalizations (N)",
    "#": "notes (#)",
    "*": "equivalences (*)",
}
Fault = tuple[int, str]  # the number of a line of a .ann file, and what is wrong with the line


@dataclass(frozen=True)
class Annotation:
    """A line of a .ann file: its number from 1, and its fields, which tabs separate. The first field is the id."""

    line_number: int
    fields: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The first letter of the id, which says what is annotated."""
        return self.fields[0][:1]


def read(folder: Path) -> Table:
    """Reads all pairs of a directory in the order of their names; directories below it are not read."""
    rows: list[Row] = []
    broken_rows: list[BrokenRow] = []
    unread: Counter[str] = Counter()  # annotations by kind
    for name in sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES}):
        text_file, annotation_file = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
        if not (text_file.is_file() and annotation_file.is_file()):
            present, missing = (text_file, annotation_file) if text_file.is_file() else (annotation_file, text_file)
            broken_rows.append(BrokenRow(f"{present.name}:1", f"expected {missing.name} beside it, there is none"))
            continue
        annotations = _read_annotations(annotation_file)
        unread.update(annotation.kind for annotation in annotations if annotation.kind in UNREAD_KINDS)
        values, faults = _convert_text(files.read_text(text_file), annotations)
        broken_rows += [BrokenRow(f"{annotation_file.name}:{number}", reason) for number, reason in sorted(faults)]
        if not faults:
            rows.append(Row(f"{text_file.name}:1", {"id": name, **values}))
    counts = "; ".join(f"{UNREAD_KINDS[kind]}, {count}" for kind, count in sorted(unread.items()))
    warnings = (f"{folder} has annotations that are not read: {counts}.",) if unread else ()
    return Table(str(folder), "line", COLUMNS, tuple(rows), tuple(broken_rows), warnings)


def _read_annotations(path: Path) -> list[Annotation]:
    lines = enumerate(files.read_text(path).split("\n"), start=1)
    return [Annotation(number, tuple(line.rstrip("\r").split("\t"))) for number, line in lines if line.strip()]


def _convert_text(text: str, annotations: Sequence[Annotation]) -> tuple[dict[str, Any], list[Fault]]:
    """Returns `text`, `spans` and `relations` of a row, and the faults; with faults, the values are of no use."""
    faults = [
        (annotation.line_number, _explain_unknown_kind(annotation))
        for annotation in annotations
        if annotation.kind not in (*READ_KINDS, *UNREAD_KINDS)
    ]
    if not text.strip():
        faults.append((1, "the text beside it is empty, expected one with words"))
    id_counts = Counter(annotation.fields[0] for annotation in annotations if annotation.kind in READ_KINDS)
    faults += [
        (
            annotation.line_number,
            f"the id {annotation.fields[0]!r} occurs {id_counts[annotation.fields[0]]} times, expected ids that differ",
        )
        for annotation in annotations
        if id_counts[annotation.fields[0]] > 1
    ]
    spans, span_faults = _convert_kind(annotations, "T", lambda entity: _span(entity, text))
    triggers, trigger_faults = _convert_kind(annotations, "E", _event_id_and_trigger)
    faults += span_faults + trigger_faults
    if faults:  # relations to broken annotations would be reported as faults, too
        return {}, faults
    span_ids = {span["id"] for span in spans}
    span_of_argument = {**{span_id: span_id for span_id in span_ids}, **dict(triggers)}
    relations, faults = _convert_kind(
        annotations, "R", lambda relation: _relation(relation, span_of_argument, span_ids)
    )
    of_events, event_faults = _convert_kind(
        annotations, "E", lambda event: _event_relations(event, span_of_argument, span_ids)
    )
    relations += [relation for of_event in of_events for relation in of_event]
    return {"text": text, "spans": spans, "relations": relations}, faults + event_faults


def _convert_kind(
    annotations: Sequence[Annotation], kind: str, convert: Callable[[Annotation], Any]
) -> tuple[list[Any], list[Fault]]:
    """Converts the annotations of a kind; one for which `convert` raises ValueError becomes a fault."""
    results, faults = [], []
    for annotation in annotations:
        if annotation.kind == kind:
            try:
                results.append(convert(annotation))
            except ValueError as error:
                faults.append((annotation.line_number, str(error)))
    return results, faults


def _explain_unknown_kind(annotation: Annotation) -> str:
    return f"begins with {annotation.fields[0]!r}, expected an id of T, R, E, A, M, N or #, or *, and then a tab"


def _span(entity: Annotation, text: str) -> dict[str, Any]:
    """Returns the span of an entity: ID, tab, LABEL START END, tab, its text."""
    identifier, fields = entity.fields[0], entity.fields
    if len(fields) < 2 or not (match := ENTITY.fullmatch(fields[1])):
        if len(fields) > 1 and DISCONTINUOUS_ENTITY.fullmatch(fields[1]):
            raise ValueError(
                f"the entity {identifier} is discontinuous ({fields[1]}), expected one start and one end,"
                " since a span has no gaps; split it into entities of their own"
            )
        raise ValueError(f"the entity is {fields!r}, expected: id, tab, LABEL START END, tab, its text")
    if len(fields) < 3:
        raise ValueError(f"the entity {identifier} has no text after its offsets, expected a tab and its text")
    label, start, end = match[1], int(match[2]), int(match[3])
    quoted = "\t".join(fields[2:])  # the text itself may contain tabs
    if _without_line_breaks(text[start:end]) == quoted:
        quoted = text[start:end]
    return make_span(text, start, end, label, identifier, quoted)


def _without_line_breaks(text: str) -> str:
    """Replaces line breaks by spaces, as .ann files do."""
    return text.replace("\r", " ").replace("\n", " ")


def _relation(annotation: Annotation, span_of_argument: Mapping[str, str], span_ids: Collection[str]) -> dict[str, Any]:
    """Returns a relation: ID, tab, LABEL Arg1:ID Arg2:ID.

    Args:
        annotation: of the kind R.
        span_of_argument: the id of the span by the id of an entity or event; the span of an event is its trigger.
        span_ids: the ids of all spans.
    """
    match = RELATION.fullmatch(annotation.fields[1].strip()) if len(annotation.fields) > 1 else None
    if not match:
        raise ValueError(f"the relation is {annotation.fields!r}, expected: id, tab, LABEL Arg1:ID Arg2:ID")
    label, head, tail = match.groups()
    return make_relation(span_of_argument.get(head, head), span_of_argument.get(tail, tail), label, span_ids)


def _event_pairs(event: Annotation) -> list[list[str]]:
    """Returns the pairs of an event, LABEL:TRIGGER ROLE:ID ..., each split at its colon."""
    pairs = [pair.rsplit(":", 1) for pair in event.fields[1].split()] if len(event.fields) > 1 else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"the event is {event.fields!r}, expected: id, tab, LABEL:TRIGGER ROLE:ID ...")
    return pairs


def _event_id_and_trigger(event: Annotation) -> tuple[str, str]:
    (_, trigger), *_ = _event_pairs(event)
    return event.fields[0], trigger


def _event_relations(
    event: Annotation, span_of_argument: Mapping[str, str], span_ids: Collection[str]
) -> list[dict[str, Any]]:
    """Returns a relation from the trigger of an event to each argument; see `_relation` for the other parameters."""
    (label, trigger), *arguments = _event_pairs(event)
    if trigger not in span_ids:
        raise ValueError(f"the event {label} has the trigger {trigger!r}, expected the id of an entity")
    return [
        make_relation(trigger, span_of_argument.get(argument, argument), role, span_ids) for role, argument in arguments
    ]
