"""BRAT standoff: a directory of texts (NAME.txt), each with its annotations (NAME.ann) beside it.

Entities become spans; relations and events become relations between spans, an event as one relation from its trigger
to each argument, labelled by the role (https://brat.nlplab.org/standoff.html). A row is a text.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.data import files
from deploykit.data.formats.spans import make_relation, make_span
from deploykit.data.table import Broken, Row, Table

COLUMNS = ("id", "text", "spans", "relations")
SUFFIXES = (".txt", ".ann")
ENTITY = re.compile(r"(\S+) (\d+) (\d+)")
DISCONTINUOUS = re.compile(r"\S+ \d+ \d+(;\d+ \d+)+")
UNREAD = {
    "A": "attributes (A)",
    "M": "modifications (M)",
    "N": "normalizations (N)",
    "#": "notes (#)",
    "*": "equivalences (*)",
}
READ = ("T", "R", "E")
Fault = tuple[int, str]  # the line of a .ann file, and what is wrong with it


@dataclass(frozen=True)
class Annotation:
    """A line of a .ann file; `fields` are separated by tabs and begin with the id."""

    line: int
    fields: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The first letter of the id, which says what is annotated."""
        return self.fields[0][:1]


def read(folder: Path) -> Table:
    """Reads all pairs of a directory in the order of their names; directories below it are not read."""
    rows: list[Row] = []
    broken: list[Broken] = []
    unread: Counter[str] = Counter()
    for name in sorted({path.stem for path in folder.iterdir() if path.suffix in SUFFIXES}):
        text, annotations = (folder / f"{name}{suffix}" for suffix in SUFFIXES)
        if not (text.is_file() and annotations.is_file()):
            lone, missing = (text, annotations) if text.is_file() else (annotations, text)
            broken.append(Broken(f"{lone.name}:1", f"expected {missing.name} beside it, there is none"))
            continue
        lines = _annotations(annotations)
        unread.update(line.kind for line in lines if line.kind in UNREAD)
        values, faults = _read_pair(files.read_text(text), lines)
        broken += [Broken(f"{annotations.name}:{line}", why) for line, why in sorted(faults)]
        if not faults:
            rows.append(Row(f"{text.name}:1", {"id": name, **values}))
    listed = "; ".join(f"{UNREAD[kind]}, {count}" for kind, count in sorted(unread.items()))
    warnings = (f"{folder} has annotations that are not read: {listed}.",) if unread else ()
    return Table(str(folder), "line", COLUMNS, tuple(rows), tuple(broken), warnings)


def _annotations(path: Path) -> list[Annotation]:
    lines = enumerate(files.read_text(path).split("\n"), start=1)
    return [Annotation(number, tuple(line.rstrip("\r").split("\t"))) for number, line in lines if line.strip()]


def _read_pair(text: str, lines: Sequence[Annotation]) -> tuple[dict[str, Any], list[Fault]]:
    """Returns the columns of a row, and the faults of the annotations."""
    faults = [(line.line, _unknown(line)) for line in lines if line.kind not in (*READ, *UNREAD)]
    if not text.strip():
        faults.append((1, "the text beside it is empty, expected one with words"))
    counts = Counter(line.fields[0] for line in lines if line.kind in READ)
    faults += [
        (line.line, f"the id {line.fields[0]!r} occurs {counts[line.fields[0]]} times, expected ids that differ")
        for line in lines
        if counts[line.fields[0]] > 1
    ]
    spans, span_faults = _read_each(lines, "T", lambda line: _span(line, text))
    triggers, trigger_faults = _read_each(lines, "E", _trigger)
    faults += span_faults + trigger_faults
    if faults:  # relations to what is broken would be faults, too
        return {}, faults
    names = {span["id"] for span in spans}
    targets = {**{name: name for name in names}, **dict(triggers)}
    relations, faults = _read_each(lines, "R", lambda line: _relation(line, targets, names))
    events, event_faults = _read_each(lines, "E", lambda line: _roles(line, targets, names))
    relations += [relation for roles in events for relation in roles]
    return {"text": text, "spans": spans, "relations": relations}, faults + event_faults


def _read_each(
    lines: Sequence[Annotation], kind: str, read: Callable[[Annotation], Any]
) -> tuple[list[Any], list[Fault]]:
    """Reads the annotations of a kind; returns what was read, and the faults."""
    results, faults = [], []
    for line in lines:
        if line.kind == kind:
            try:
                results.append(read(line))
            except ValueError as error:
                faults.append((line.line, str(error)))
    return results, faults


def _unknown(line: Annotation) -> str:
    return f"begins with {line.fields[0]!r}, expected an id of T, R, E, A, M, N or #, or *, and then a tab"


def _span(line: Annotation, text: str) -> dict[str, Any]:
    if len(line.fields) < 2 or not (match := ENTITY.fullmatch(line.fields[1])):
        if len(line.fields) > 1 and DISCONTINUOUS.fullmatch(line.fields[1]):
            raise ValueError(
                f"the entity {line.fields[0]} is discontinuous ({line.fields[1]}), expected one start and one end,"
                " since a span has no gaps; split it into entities of their own"
            )
        raise ValueError(f"the entity is {line.fields!r}, expected: id, tab, LABEL START END, tab, its text")
    if len(line.fields) < 3:
        raise ValueError(f"the entity {line.fields[0]} has no text after its offsets, expected a tab and its text")
    label, start, end = match[1], int(match[2]), int(match[3])
    quoted = "\t".join(line.fields[2:])
    if _one_line(text[start:end]) == quoted:
        quoted = text[start:end]
    return make_span(text, start, end, label, line.fields[0], quoted)


def _one_line(text: str) -> str:
    """Replaces line breaks by spaces, as .ann files do."""
    return text.replace("\r", " ").replace("\n", " ")


def _relation(line: Annotation, targets: Mapping[str, str], spans: Collection[str]) -> dict[str, Any]:
    match = re.fullmatch(r"(\S+) \S+?:(\S+) \S+?:(\S+)", line.fields[1].strip()) if len(line.fields) > 1 else None
    if not match:
        raise ValueError(f"the relation is {line.fields!r}, expected: id, tab, LABEL Arg1:ID Arg2:ID")
    return make_relation(targets.get(match[2], match[2]), targets.get(match[3], match[3]), match[1], spans)


def _parts(line: Annotation) -> list[list[str]]:
    parts = [part.rsplit(":", 1) for part in line.fields[1].split()] if len(line.fields) > 1 else []
    if not parts or any(len(part) != 2 for part in parts):
        raise ValueError(f"the event is {line.fields!r}, expected: id, tab, LABEL:TRIGGER ROLE:ID ...")
    return parts


def _trigger(line: Annotation) -> tuple[str, str]:
    return line.fields[0], _parts(line)[0][1]


def _roles(line: Annotation, targets: Mapping[str, str], spans: Collection[str]) -> list[dict[str, Any]]:
    (label, trigger), *arguments = _parts(line)
    if trigger not in spans:
        raise ValueError(f"the event {label} has the trigger {trigger!r}, expected the id of an entity")
    return [make_relation(trigger, targets.get(name, name), role, spans) for role, name in arguments]
