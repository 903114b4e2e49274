"""Records of a random sample of texts and answers, masked, for later inspection and labelling.

Nothing is stored unless the recipe says how much (`serve.records`) and the machine says where. Personal data is masked
before anything is written, even if the model reads it unmasked. Chance alone decides which answers are recorded, so
that a client cannot choose. Feedback is accepted for answers that this process has recorded. A separate thread writes:
if the disk is slow or full, records are dropped and counted, and no request waits or fails.
"""

import json
import logging
import queue
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple

from prometheus_client import Counter
from pydantic import BaseModel

from deploykit import tasks
from deploykit.artifact import Artifact, RecordOptions
from deploykit.artifact.record_format import FEEDBACK_KIND, PREDICTION_KIND
from deploykit.errors import InputError
from deploykit.serving.call import Call
from deploykit.serving.privacy.record_files import RecordFiles
from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.settings import RECORDS_VARIABLE, Settings
from deploykit.tasks import Input
from deploykit.tokenizer import Features

BYTES_PER_MEGABYTE = 1_000_000
MAX_WAITING_RECORDS = 200  # in the queue; with the next constant, it limits the memory of the queue
MAX_RECORD_CHARACTERS = 50_000  # of the texts of one record
MAX_REMEMBERED_ANSWERS = 50_000  # answers for which feedback is accepted: about 10 MB
FORGOTTEN_AT_ONCE = 500  # answers; many at once, because the client with the most is searched for each time
CLOSE_TIMEOUT_S = 5.0  # to write the waiting records when the service stops

logger = logging.getLogger("deploykit.serving")


class Comment(Input):
    """The comment of a feedback, as an input whose text can be masked."""

    comment: str | None


class Record(NamedTuple):
    """What is written: facts that contain no text, and texts that are masked first."""

    facts: dict[str, Any]
    texts: Input


class Recorder:
    """Takes records and writes them in the background.

    Args:
        folder: an existing one.
        options: the share of texts that is recorded, and the limit on the size of all files.
        artifact: the package that answers.
        written: counts the records that are stored.
        dropped: counts the records that are not stored.
        find_names: finds the names of people; None if they are not masked.
    """

    def __init__(
        self,
        folder: Path,
        options: RecordOptions,
        artifact: Artifact,
        written: Counter,
        dropped: Counter,
        find_names: FindNames | None = None,
    ) -> None:
        self._share, self._written, self._dropped, self._find_names = options.share, written, dropped, find_names
        self._files = RecordFiles(folder, options.megabytes * BYTES_PER_MEGABYTE)
        manifest = artifact.manifest
        self._task = tasks.task_of(manifest)
        self._model = {"model": manifest.name, "version": manifest.version, "digest": artifact.digest[:12]}
        self._queue: queue.Queue[Record | None] = queue.Queue(MAX_WAITING_RECORDS)  # None ends the thread
        # not the ordinary generator: it makes the request ids, from which clients could predict its next numbers
        self._random = SystemRandom()
        self._recorded = RecordedAnswers()
        self._failing = False  # whether the last record could not be written
        self._thread = threading.Thread(target=self._write_records, name="records", daemon=True)
        self._thread.start()

    def has_recorded(self, client: str, request_id: str, index: int) -> bool:
        """Says whether this process has recorded an answer to a client, and still remembers it.

        Args:
            client: name of the client.
            request_id: of the request.
            index: position of the text in the request.
        """
        return self._recorded.contains(client, request_id, index)

    def record_answers(
        self,
        call: Call,
        inputs: Sequence[Input],
        features: Sequence[Sequence[Features]],
        answers: Sequence[BaseModel],
    ) -> None:
        """Records a random share of the inputs of a request, with their answers; `features` are of their windows."""
        for index, (item, windows, answer) in enumerate(zip(inputs, features, answers, strict=True)):
            if self._random.random() < self._share:
                content = {**self._task.record(answer), "tokens": sum(map(len, windows))}
                if self._enqueue(PREDICTION_KIND, call, call.id, index, content, item):
                    self._recorded.add(call.client.name, call.id, index)

    def record_feedback(self, call: Call, request_id: str, index: int, label: str, comment: str | None) -> bool:
        """Records the right label of an earlier answer; returns whether the queue had room for it.

        Args:
            call: the request that brings the feedback.
            request_id: of the request that was answered.
            index: position of the text in that request.
            label: the right label.
            comment: of the client, if any.
        """
        content = {"label": label, "comment": None}
        return self._enqueue(FEEDBACK_KIND, call, request_id, index, content, Comment(comment=comment))

    def close(self) -> None:
        """Writes the waiting records; gives up after `CLOSE_TIMEOUT_S`."""
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_TIMEOUT_S)

    def _enqueue(
        self, kind: str, call: Call, request_id: str, index: int, content: Mapping[str, Any], texts: Input
    ) -> bool:
        """Queues a record; if its texts are too long or the queue is full, counts it as dropped and returns False."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        facts = {"kind": kind, "time": now, "id": request_id, "index": index, "client": call.client.name, **self._model}
        try:
            if sum(map(len, texts.texts)) > MAX_RECORD_CHARACTERS:
                raise queue.Full
            # the facts come first in the line, and no field of an answer replaces one
            self._queue.put_nowait(Record({**facts, **content, **facts}, texts.without_files()))
        except queue.Full:
            self._dropped.inc()
            return False
        return True

    def _write_records(self) -> None:
        """Writes records until the queue yields None; of several failures in a row, logs only the first."""
        while record := self._queue.get():
            try:
                self._files.write(_line(record, self._find_names), record.facts["client"])
                self._written.inc()
                self._failing = False
            except Exception as error:  # of any kind: without the thread, all later records would be dropped
                self._dropped.inc()
                if not self._failing:
                    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                    logger.error("records are dropped, because they cannot be written: %s", reason)
                self._failing = True


class RecordedAnswers:
    """Remembers which answers this process has recorded.

    If there are more than `MAX_REMEMBERED_ANSWERS`, the oldest ones of the client with the most are forgotten.
    """

    def __init__(self) -> None:
        # from client to request id and index; a dictionary as an ordered set, the oldest first
        self._answers: defaultdict[str, dict[tuple[str, int], None]] = defaultdict(dict)
        self._count = 0
        self._lock = threading.Lock()  # large answers are recorded in another thread

    def add(self, client: str, request_id: str, index: int) -> None:
        """Remembers an answer."""
        with self._lock:
            self._add(client, request_id, index)

    def _add(self, client: str, request_id: str, index: int) -> None:
        """Remembers an answer, and forgets old ones if there are too many; the caller holds the lock."""
        answers = self._answers[client]
        self._count += (request_id, index) not in answers
        answers[request_id, index] = None
        if self._count > MAX_REMEMBERED_ANSWERS:
            busiest = max(self._answers, key=lambda name: len(self._answers[name]))
            oldest = list(islice(self._answers[busiest], FORGOTTEN_AT_ONCE))
            for answer in oldest:
                del self._answers[busiest][answer]
            self._count -= len(oldest)
            if not self._answers[busiest]:
                del self._answers[busiest]

    def contains(self, client: str, request_id: str, index: int) -> bool:
        """Says whether an answer is remembered."""
        with self._lock:
            return client in self._answers and (request_id, index) in self._answers[client]


def _line(record: Record, find_names: FindNames | None) -> bytes:
    """Renders a record as one line of JSON, with its texts masked."""
    masked = record.texts.with_texts(lambda text: redact(text, find_names)[0])
    content = {**record.facts, **masked.model_dump(exclude_none=True)}
    return json.dumps(content, ensure_ascii=False).encode(errors="replace") + b"\n"


def require_folder(settings: Settings) -> None:
    """Checks before a service starts that records can be written, if they are configured.

    Raises:
        InputError: nothing can be written there.
    """
    folder = settings.records_folder
    if folder is None or settings.records is None:
        missing = RECORDS_VARIABLE if settings.records else "serve.records in the recipe"
        if folder or settings.records:
            logger.warning("no records are kept: %s is not set", missing)
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(
            f"{RECORDS_VARIABLE} names {folder}, and records cannot be written there ({error.strerror})."
            " Give this user access to it, name another directory, or unset it to keep none."
        ) from error
