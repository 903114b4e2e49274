"""Sampled records of texts and answers, masked, for later inspection and labelling.

Nothing is stored unless the recipe says how much (`serve.records`) and the machine says where. Personal data is masked
before anything is written, whatever the model reads. Chance alone decides which answers are recorded, so that a client
cannot choose; feedback is accepted for answers that this process has recorded. A thread of its own writes: if the disk
is slow or full, records are dropped and counted, and no request waits or fails.
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
from deploykit.serving.privacy.record_files import Files
from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.settings import RECORDS, Settings
from deploykit.tasks import Input
from deploykit.tokenizer import Features

BYTES_PER_MEGABYTE = 1_000_000
MAX_WAITING = 200  # records
MAX_CHARACTERS = 50_000  # of one record; both bound the memory of the queue
MAX_REMEMBERED = 50_000  # answers for which feedback is accepted; about 10 MB
FORGOTTEN_AT_ONCE = 500  # answers: the client with the most is then rarely searched for
CLOSE_S = 5.0

logger = logging.getLogger("deploykit.serving")


class Comment(Input):
    """What a client wrote about an answer."""

    comment: str | None


class Record(NamedTuple):
    """What is written: facts that hold no text, and texts, which are masked first."""

    facts: dict[str, Any]
    texts: Input


class Recorder:
    """Takes records and writes them in the background.

    Args:
        folder: an existing one.
        options: the share of texts that is recorded, and the bytes of all files.
        artifact: the package that answers.
        written: counts the records that are stored.
        dropped: counts those that are not.
        names: finds the names of people, if they are masked.
    """

    def __init__(
        self,
        folder: Path,
        options: RecordOptions,
        artifact: Artifact,
        written: Counter,
        dropped: Counter,
        names: FindNames | None = None,
    ) -> None:
        self._share, self._written, self._dropped, self._names = options.share, written, dropped, names
        self._files = Files(folder, options.megabytes * BYTES_PER_MEGABYTE)
        manifest = artifact.manifest
        self._task = tasks.task_of(manifest)
        self._model = {"model": manifest.name, "version": manifest.version, "digest": artifact.digest[:12]}
        self._queue: queue.Queue[Record | None] = queue.Queue(MAX_WAITING)
        self._random = SystemRandom()  # ids of requests are from the ordinary generator and would reveal its numbers
        self._recorded = RecordedAnswers()
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="records", daemon=True)
        self._thread.start()

    def recorded(self, client: str, request: str, index: int) -> bool:
        """Says whether this process has recorded an answer to a client, and still remembers it."""
        return self._recorded.holds(client, request, index)

    def answered(
        self,
        call: Call,
        inputs: Sequence[Input],
        features: Sequence[Sequence[Features]],
        answers: Sequence[BaseModel],
    ) -> None:
        """Records a random share of the inputs of a request, with their answers."""
        for index, (item, parts, answer) in enumerate(zip(inputs, features, answers, strict=True)):
            if self._random.random() < self._share:
                content = {**self._task.record(answer), "tokens": sum(map(len, parts))}
                if self._put(PREDICTION_KIND, call, call.id, index, content, item):
                    self._recorded.add(call.client.name, call.id, index)

    def feedback(self, call: Call, request: str, index: int, label: str, comment: str | None) -> bool:
        """Records the right label of an answer; returns whether the queue had room for it."""
        content = {"label": label, "comment": None}
        return self._put(FEEDBACK_KIND, call, request, index, content, Comment(comment=comment))

    def close(self) -> None:
        """Writes the waiting records, for a few seconds at most."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _put(self, kind: str, call: Call, request: str, index: int, content: Mapping[str, Any], texts: Input) -> bool:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        facts = {"kind": kind, "time": now, "id": request, "index": index, "client": call.client.name, **self._model}
        try:
            if sum(map(len, texts.texts)) > MAX_CHARACTERS:
                raise queue.Full
            self._queue.put_nowait(Record({**facts, **content, **facts}, texts.without_files()))
        except queue.Full:
            self._dropped.inc()
            return False
        return True

    def _write(self) -> None:
        """Writes records until the queue yields None; logs the first of several failures in a row."""
        while record := self._queue.get():
            try:
                self._files.write(_line(record, self._names), record.facts["client"])
                self._written.inc()
                self._failing = False
            except Exception as error:  # of any kind: without the thread, all later records would be dropped
                self._dropped.inc()
                if not self._failing:
                    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                    logger.error("records are dropped, because they cannot be written: %s", reason)
                self._failing = True


class RecordedAnswers:
    """The answers of this process that have a record; if there are too many, the busiest client loses its oldest."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, dict[tuple[str, int], None]] = defaultdict(dict)
        self._count = 0
        self._lock = threading.Lock()  # large answers are recorded in another thread

    def add(self, client: str, request: str, index: int) -> None:
        """Remembers an answer."""
        with self._lock:
            self._add(client, request, index)

    def _add(self, client: str, request: str, index: int) -> None:
        answers = self._answers[client]
        self._count += (request, index) not in answers
        answers[request, index] = None
        if self._count > MAX_REMEMBERED:
            busiest = max(self._answers, key=lambda name: len(self._answers[name]))
            oldest = list(islice(self._answers[busiest], FORGOTTEN_AT_ONCE))
            for answer in oldest:
                del self._answers[busiest][answer]
            self._count -= len(oldest)
            if not self._answers[busiest]:
                del self._answers[busiest]

    def holds(self, client: str, request: str, index: int) -> bool:
        """Says whether an answer is remembered."""
        with self._lock:
            return client in self._answers and (request, index) in self._answers[client]


def _line(record: Record, names: FindNames | None) -> bytes:
    """Renders a record, masked."""
    masked = record.texts.with_texts(lambda text: redact(text, names)[0])
    content = {**record.facts, **masked.model_dump(exclude_none=True)}
    return json.dumps(content, ensure_ascii=False).encode(errors="replace") + b"\n"


def require_folder(settings: Settings) -> None:
    """Checks before a service starts that records can be written, if they are configured.

    Raises:
        InputError: nothing can be written there.
    """
    folder = settings.records_folder
    if folder is None or settings.records is None:
        missing = RECORDS if settings.records else "serve.records in the recipe"
        if folder or settings.records:
            logger.warning("no records are kept: %s is not set", missing)
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(
            f"{RECORDS} names {folder}, and records cannot be written there ({error.strerror})."
            " Give this user access to it, name another directory, or unset it to keep none."
        ) from error
