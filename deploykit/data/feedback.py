"""Turns what a service has recorded into labelled data: predictions joined with the feedback on them.

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
from deploykit.artifact.record_format import FEEDBACK_KIND, FILE_PATTERN, PREDICTION_KIND
from deploykit.errors import DataError, storage_errors

COMMON_KEYS = ("time", "client", "id", "index")
REQUIRED_KEYS_OF_KIND = {
    PREDICTION_KIND: (*COMMON_KEYS, "model", "version"),
    FEEDBACK_KIND: (*COMMON_KEYS, "label"),
}


@dataclass(frozen=True)
class JoinedRecords:
    """Labelled rows to train on, and counts.

    By model version, `prediction_counts` has the predictions that were recorded, `judged_counts` those of them with
    feedback, and `correct_counts` those whose label the feedback confirms. `unmatched_feedback` counts feedback on
    predictions that were not recorded, and `broken_lines` the lines that are neither a prediction nor feedback.
    """

    rows: list[dict[str, str]]
    prediction_counts: Counter[str]
    judged_counts: Counter[str]
    correct_counts: Counter[str]
    unmatched_feedback: int
    broken_lines: int


def join(folder: Path) -> JoinedRecords:
    """Joins the predictions recorded in a folder, and in folders below it, with the last feedback on each.

    A client can give feedback only on its own requests. Predictions of which no text was recorded become no rows.

    Raises:
        DataError: there are no records.
    """
    files = sorted(folder.rglob(FILE_PATTERN))
    if not files:
        raise DataError(f"{folder} holds no records ({FILE_PATTERN}). Name the directory of DEPLOYKIT_RECORDS.")
    contents = b"\n".join(file.read_bytes() for file in files)
    lines = list(filter(None, contents.split(b"\n")))  # not splitlines: texts may contain other line ends
    events = [event for event in map(_parse_event, lines) if event is not None]
    predictions: list[dict[str, Any]] = []
    # The last prediction so far for an input, as an index into `predictions`. A client may use a request id twice;
    # feedback then belongs to the last prediction before it.
    last_of_input: dict[tuple[str, str, int], int] = {}
    labels: dict[int, str] = {}  # from feedback, by index of the prediction
    unmatched_feedback = 0
    for event in sorted(events, key=lambda event: event["time"]):
        input_key = (event["client"], event["id"], event["index"])
        if event["kind"] == PREDICTION_KIND:
            last_of_input[input_key] = len(predictions)
            predictions.append(event)
        elif input_key in last_of_input:
            labels[last_of_input[input_key]] = event["label"]
        else:
            unmatched_feedback += 1
    judged = [(predictions[index], label) for index, label in labels.items() if "text" in predictions[index]]
    return JoinedRecords(
        rows=[
            {**{name: prediction[name] for name in ("text", "text_pair") if name in prediction}, "label": label}
            for prediction, label in judged
        ],
        prediction_counts=Counter(map(_model_version, predictions)),
        judged_counts=Counter(_model_version(prediction) for prediction, _ in judged),
        correct_counts=Counter(
            _model_version(prediction) for prediction, label in judged if prediction.get("label") == label
        ),
        unmatched_feedback=unmatched_feedback,
        broken_lines=len(lines) - len(events),
    )


def write(joined: JoinedRecords, target: Path) -> None:
    """Writes the rows as JSON lines, which a recipe's `data` reads.

    Raises:
        StorageError: the disk is full or the file cannot be written.
    """
    with storage_errors(target, "`--to`"):
        atomic.write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined.rows))


def tabulate(joined: JoinedRecords) -> list[tuple[str, ...]]:
    """Returns a row for each model version: predictions, those with feedback, and the accuracy on these."""
    rows: list[tuple[str, ...]] = []
    for version, count in sorted(joined.prediction_counts.items()):
        judged = joined.judged_counts[version]
        rows.append((version, f"{count:,}", f"{judged:,}", _format_accuracy(joined.correct_counts[version], judged)))
    return rows


def _format_accuracy(correct: int, total: int) -> str:
    """Formats an accuracy with its 95 % interval (Wilson, 1927)."""
    if not total:
        return "none given"
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return f"{correct / total:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _model_version(prediction: dict[str, Any]) -> str:
    return f"{prediction['model']} {prediction['version']}"


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """Parses a line as a prediction or feedback.

    Returns:
        None if the line is broken, as the last one of a file may be after a crash or during a write.
    """
    try:
        event: dict[str, Any] = json.loads(line)
        return event if all(name in event for name in REQUIRED_KEYS_OF_KIND[event["kind"]]) else None
    except (ValueError, KeyError, TypeError):
        return None
