"""Sampled records: what was asked and what was answered, masked, to be looked at and labelled later.

Nothing is stored unless the recipe says how much (`serve.records`) and the machine says where. Personal data is masked
before anything is written, whatever the model reads. Which text belongs to the sample follows from the request's id,
so that every replica knows whether feedback has a record to go with. A thread of its own writes; when the disk is slow
or full, records are dropped and counted, and no request waits or fails.
"""

import hashlib
import json
import logging
import os
import queue
import tempfile
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from errno import EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from deploykit.artifact import Artifact, RecordOptions
from deploykit.artifact.record_files import FEEDBACK, PATTERN, PREDICTION
from deploykit.errors import InputError
from deploykit.serving.api.protocols import version_of
from deploykit.serving.call import Call
from deploykit.serving.privacy.redaction import Find, redact
from deploykit.serving.settings import RECORDS, Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tokenizer import Encoding

MASKED = ("text", "text_pair", "comment")
MEGABYTE = 1_000_000
FILES = 8  # that share the room: the oldest goes as a whole
MOST_FILES = 64  # short ones, where a service is often started
MOST_WAITING = 200
MOST_CHARACTERS = 50_000  # of one record; what waits is bounded by both
CLOSE_S = 5.0

logger = logging.getLogger("deploykit.serving")


class Recorder:
    """Takes records and writes them in the background.

    Args:
        folder: where; it exists.
        options: how many, and how much room.
        artifact: the package that answers.
        metrics: count what is written and what is dropped.
        names: finds names of people to be masked, where that is asked for.
    """

    def __init__(
        self, folder: Path, options: RecordOptions, artifact: Artifact, metrics: Metrics, names: Find | None = None
    ) -> None:
        self._share, self._metrics, self._names = options.share, metrics, names
        self._files = Files(folder, options.megabytes * MEGABYTE)
        manifest = artifact.manifest
        self._model = {"model": manifest.name, "version": version_of(manifest), "digest": artifact.digest[:12]}
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="records", daemon=True)
        self._thread.start()

    def sampled(self, request: str, index: int) -> bool:
        """Says whether a text is in the sample; all replicas say the same."""
        digest = hashlib.blake2b(f"{request} {index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._share * 2**64

    def answered(
        self,
        call: Call,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        read: Sequence[Encoding],
        answers: Sequence[BaseModel],
    ) -> None:
        """Takes the texts of a request that are in the sample, with their answers."""
        for index, (text, encoding, answer) in enumerate(zip(texts, read, answers, strict=True)):
            if self.sampled(call.id, index):
                second = {"text_pair": pairs[index]} if pairs else {}
                self._put(PREDICTION, call, call.id, index, text=text, **second, tokens=len(encoding), **_said(answer))

    def feedback(self, call: Call, request: str, index: int, label: str, comment: str | None) -> bool:
        """Takes what would have been right; returns whether there is room for it."""
        return self._put(FEEDBACK, call, request, index, label=label, comment=comment)

    def close(self) -> None:
        """Writes what waits, as long as that does not take long."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _put(self, kind: str, call: Call, request: str, index: int, **content: Any) -> bool:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"kind": kind, "time": now, "id": request, "index": index, "client": call.client.name, **self._model}
        try:
            if sum(len(content.get(name) or "") for name in MASKED) > MOST_CHARACTERS:
                raise queue.Full
            self._queue.put_nowait(record | content)
        except queue.Full:
            self._metrics.records_dropped.inc()
            return False
        return True

    def _write(self) -> None:
        """Writes until it is told to end; what goes wrong is said once, until it goes right again."""
        while True:
            record = self._queue.get()
            if record is None:
                return
            try:
                self._files.write(_line(record, self._names))
                self._metrics.records_written.inc()
                self._failing = False
            except Exception as error:  # of any kind: a thread that ends would drop all that comes
                self._metrics.records_dropped.inc()
                if not self._failing:
                    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                    logger.error("records are dropped, because they cannot be written: %s", reason)
                self._failing = True


class Files:
    """Files of one process in a folder that others may share, and that never holds more than it may.

    Args:
        folder: that exists.
        most: bytes of all files together.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._current = self._next()

    def write(self, line: bytes) -> None:
        """Adds a line, or nothing of it; the oldest files go where there is no room for it.

        Raises:
            OSError: the disk is full or refuses to be written, or the line is longer than all files may be.
        """
        if len(line) > self._most:
            raise OSError(EFBIG, os.strerror(EFBIG))
        if self._size() and self._size() + len(line) > self._most // FILES:
            self._current = self._next()
        self._make_room(len(line))
        file = os.open(self._current, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            before = os.fstat(file).st_size
            if os.write(file, line) < len(line):
                os.ftruncate(file, before)
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        finally:
            os.close(file)

    def _make_room(self, size: int) -> None:
        found = sorted(self._folder.glob(PATTERN))
        sizes = {file: _size(file) for file in found}
        while found and (sum(sizes.values()) + size > self._most or len(found) >= MOST_FILES):
            oldest = found.pop(0)
            oldest.unlink(missing_ok=True)
            del sizes[oldest]

    def _size(self) -> int:
        return _size(self._current)

    def _next(self) -> Path:
        return self._folder / f"records-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}.jsonl"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # not begun, or taken away by another process
        return 0


def _line(record: Mapping[str, Any], names: Find | None) -> bytes:
    """Renders a record, masked."""
    masked = {name: redact(record[name], names)[0] for name in MASKED if record.get(name) is not None}
    return json.dumps({**record, **masked}, ensure_ascii=False).encode(errors="replace") + b"\n"


def _said(answer: BaseModel) -> dict[str, Any]:
    """Returns what an answer says, without parts of the text."""
    content = answer.model_dump()
    if "label" in content:
        return {"label": content["label"], "confidence": content["score"]}
    spans = content.get("entities", ())
    return {"entities": [{name: span[name] for name in ("label", "start", "end", "score")} for span in spans]}


def require_folder(settings: Settings) -> None:
    """Makes sure that records can be kept where that is asked for, before a service starts.

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
