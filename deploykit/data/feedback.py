"""From what a service kept to labelled data: records joined with the feedback on them.

Feedback is no random sample: people write when something is wrong. The accuracy on it tells one model from another
that was asked by the same people, and not how good a model is.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.artifact import atomic
from deploykit.artifact.record_format import FEEDBACK, PATTERN, PREDICTION
from deploykit.errors import DataError, storage_errors

COMMON = ("time", "client", "id", "index")
NEEDED = {PREDICTION: (*COMMON, "model", "version", "text"), FEEDBACK: (*COMMON, "label")}


@dataclass
class Found:
    """What was found: rows to train on, how many records each model version left, and how many it had right.

    `lost` counts feedback that has no record (any more), `broken` lines that are none.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    corrected: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    broken: int = 0


def join(folder: Path) -> Found:
    """Joins the records in a folder, and in folders below it, with their feedback; the last word counts.

    A client's feedback is of its own requests; that of another on the same id is not taken.

    Raises:
        DataError: there are no records.
    """
    found, events = Found(), list[dict[str, Any]]()
    files = sorted(folder.rglob(PATTERN))
    if not files:
        raise DataError(f"{folder} holds no records ({PATTERN}). Name the directory of DEPLOYKIT_RECORDS.")
    for file in files:
        events += _events(file, found)
    said: dict[int, str] = {}
    last: dict[tuple[str, str, int], int] = {}
    records: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda event: event["time"]):
        place = (event["client"], event["id"], event["index"])
        if event["kind"] == PREDICTION:
            last[place] = len(records)
            records.append(event)
        elif place in last:
            said[last[place]] = event["label"]
        else:
            found.lost += 1
    found.records.update(_version(record) for record in records)
    for index, label in said.items():
        record = records[index]
        second = {"text_pair": record["text_pair"]} if "text_pair" in record else {}
        found.rows.append({"text": record["text"], **second, "label": label})
        found.corrected[_version(record)] += 1
        found.right[_version(record)] += record.get("label") == label
    return found


def write(found: Found, target: Path) -> None:
    """Writes rows as a recipe's `data` reads them, one JSON object a line.

    Raises:
        StorageError: the disk is full or refuses to be written.
    """
    with storage_errors(target, "`--to`"):
        atomic.write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))


def table(found: Found) -> list[tuple[str, ...]]:
    """Renders a row for each model version: records, those with feedback, and the share of these that were right."""
    return [
        (version, f"{count:,}", f"{found.corrected[version]:,}", _share(found.right[version], found.corrected[version]))
        for version, count in sorted(found.records.items())
    ]


def _share(right: int, of: int) -> str:
    """Renders an accuracy with its 95 % interval (Wilson, 1927)."""
    if not of:
        return "none given"
    z, share = 1.96, right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return f"{share:.4f} ({max(middle - half, 0.0):.4f} to {min(middle + half, 1.0):.4f})"


def _version(record: dict[str, Any]) -> str:
    return f"{record['model']} {record['version']}"


def _events(file: Path, found: Found) -> Iterator[dict[str, Any]]:
    """Reads a file that a service may be writing to, and whose last line a crash may have cut."""
    for line in filter(None, file.read_bytes().split(b"\n")):  # texts may hold what else ends a line
        try:
            event = json.loads(line)
            complete = event["kind"] in (PREDICTION, FEEDBACK) and all(name in event for name in NEEDED[event["kind"]])
        except (ValueError, KeyError, TypeError):
            complete = False
        if complete:
            yield event
        else:
            found.broken += 1
