"""Turns what a service has recorded into labelled data: records joined with the feedback on them.

Feedback is not a random sample, because people write when something is wrong. The accuracy on it can compare models
that the same people used, but does not say how good a model is.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from deploykit.artifact import atomic
from deploykit.artifact.record_format import FEEDBACK, PATTERN, PREDICTION
from deploykit.errors import DataError, storage_errors

COMMON = ("time", "client", "id", "index")
NEEDED = {PREDICTION: (*COMMON, "model", "version"), FEEDBACK: (*COMMON, "label")}


@dataclass(frozen=True)
class JoinedRecords:
    """Rows to train on, and by model version the number of records, those with feedback, and those that were right.

    `lost` counts feedback without a record, `broken` lines that are neither record nor feedback.
    """

    rows: list[dict[str, str]]
    records: Counter[str]
    corrected: Counter[str]
    right: Counter[str]
    lost: int
    broken: int


def join(folder: Path) -> JoinedRecords:
    """Joins the records in a folder, and in folders below it, with the last feedback on each.

    A client can give feedback only on its own requests.

    Raises:
        DataError: there are no records.
    """
    files = sorted(folder.rglob(PATTERN))
    if not files:
        raise DataError(f"{folder} holds no records ({PATTERN}). Name the directory of DEPLOYKIT_RECORDS.")
    contents = b"\n".join(file.read_bytes() for file in files)
    lines = list(filter(None, contents.split(b"\n")))  # not splitlines: texts may contain other line ends
    events = [event for event in map(_event, lines) if event is not None]
    records: list[dict[str, Any]] = []
    newest: dict[tuple[str, str, int], int] = {}
    labels: dict[int, str] = {}
    lost = 0
    for event in sorted(events, key=lambda event: event["time"]):
        request = (event["client"], event["id"], event["index"])
        if event["kind"] == PREDICTION:
            newest[request] = len(records)
            records.append(event)
        elif request in newest:
            labels[newest[request]] = event["label"]
        else:
            lost += 1
    answered = [(records[index], label) for index, label in labels.items() if "text" in records[index]]
    return JoinedRecords(
        rows=[
            {**{name: record[name] for name in ("text", "text_pair") if name in record}, "label": label}
            for record, label in answered
        ],
        records=Counter(map(_version, records)),
        corrected=Counter(_version(record) for record, _ in answered),
        right=Counter(_version(record) for record, label in answered if record.get("label") == label),
        lost=lost,
        broken=len(lines) - len(events),
    )


def write(joined: JoinedRecords, target: Path) -> None:
    """Writes the rows as JSON lines, which a recipe's `data` reads.

    Raises:
        StorageError: the disk is full or the file cannot be written.
    """
    with storage_errors(target, "`--to`"):
        atomic.write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined.rows))


def tabulate(joined: JoinedRecords) -> list[tuple[str, ...]]:
    """Returns a row for each model version: records, those with feedback, and the accuracy on these."""
    rows: list[tuple[str, ...]] = []
    for version, count in sorted(joined.records.items()):
        corrected = joined.corrected[version]
        rows.append((version, f"{count:,}", f"{corrected:,}", _share(joined.right[version], corrected)))
    return rows


def _share(right: int, total: int) -> str:
    """Formats an accuracy with its 95 % interval (Wilson, 1927)."""
    if not total:
        return "none given"
    interval = binomtest(right, total).proportion_ci(method="wilson")
    return f"{right / total:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _version(record: dict[str, Any]) -> str:
    return f"{record['model']} {record['version']}"


def _event(line: bytes) -> dict[str, Any] | None:
    """Parses a line; None if it is broken, as the last line of a file may be after a crash or during a write."""
    try:
        event: dict[str, Any] = json.loads(line)
        return event if all(name in event for name in NEEDED[event["kind"]]) else None
    except (ValueError, KeyError, TypeError):
        return None
