"""Sampled records: what was asked and what was answered, masked, to be looked at and labelled later.

Nothing is stored unless the recipe says how much (`serve.records`) and the machine says where. Personal data is masked
before anything is written, whatever the model reads. Chance decides which answers are recorded, and nothing that a
client chooses; feedback is taken on answers that this process has recorded. A thread of its own writes; when the disk
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
from typing import Any

from prometheus_client import Counter
from pydantic import BaseModel

from deploykit.artifact import Artifact, RecordOptions
from deploykit.artifact.record_format import FEEDBACK, PREDICTION
from deploykit.errors import InputError
from deploykit.serving.call import Call
from deploykit.serving.privacy.record_files import Files
from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.settings import RECORDS, Settings
from deploykit.tokenizer import Encoding

MASKED = ("text", "text_pair", "comment")
MEGABYTE = 1_000_000
MAX_WAITING = 200
MAX_CHARACTERS = 50_000  # of one record; what waits is bounded by both
MAX_REMEMBERED = 50_000  # answers on which feedback is taken; some 10 MB
FORGOTTEN_AT_ONCE = 500  # so that the client that has most is seldom looked for
CLOSE_S = 5.0

logger = logging.getLogger("deploykit.serving")


class Recorder:
    """Takes records and writes them in the background.

    Args:
        folder: where; it exists.
        options: how many, and how much room.
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
        self._files = Files(folder, options.megabytes * MEGABYTE)
        manifest = artifact.manifest
        self._model = {"model": manifest.name, "version": manifest.version, "digest": artifact.digest[:12]}
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._random = SystemRandom()  # the ids of requests would give away the next numbers of the ordinary one
        self._recorded = RecordedAnswers()
        self._failing = False
        self._thread = threading.Thread(target=self._write, name="records", daemon=True)
        self._thread.start()

    def recorded(self, client: str, request: str, index: int) -> bool:
        """Says whether this process has recorded an answer to a client, and still knows it."""
        return self._recorded.holds(client, request, index)

    def answered(
        self,
        call: Call,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        read: Sequence[Encoding],
        answers: Sequence[BaseModel],
    ) -> None:
        """Takes a share of the texts of a request, with their answers."""
        for index, (text, encoding, answer) in enumerate(zip(texts, read, answers, strict=True)):
            if self._random.random() < self._share:
                content = {"text": text, **({"text_pair": pairs[index]} if pairs else {}), "tokens": len(encoding)}
                if self._put(PREDICTION, call, call.id, index, **content, **_said(answer)):
                    self._recorded.add(call.client.name, call.id, index)

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
            if sum(len(content.get(name) or "") for name in MASKED) > MAX_CHARACTERS:
                raise queue.Full
            self._queue.put_nowait(record | content)
        except queue.Full:
            self._dropped.inc()
            return False
        return True

    def _write(self) -> None:
        """Writes until it is told to end; what goes wrong is said once, until it goes right again."""
        while True:
            record = self._queue.get()
            if record is None:
                return
            try:
                self._files.write(_line(record, self._names), record["client"])
                self._written.inc()
                self._failing = False
            except Exception as error:  # of any kind: a thread that ends would drop all that comes
                self._dropped.inc()
                if not self._failing:
                    reason = error.strerror if isinstance(error, OSError) else type(error).__name__
                    logger.error("records are dropped, because they cannot be written: %s", reason)
                self._failing = True


class RecordedAnswers:
    """Which answers of this process have a record; of too many, the client that has most loses its oldest."""

    def __init__(self) -> None:
        self._places: defaultdict[str, dict[tuple[str, int], None]] = defaultdict(dict)
        self._count = 0

    def add(self, client: str, request: str, index: int) -> None:
        """Remembers an answer."""
        places = self._places[client]
        self._count += (request, index) not in places
        places[request, index] = None
        if self._count > MAX_REMEMBERED:
            most = max(self._places, key=lambda name: len(self._places[name]))
            forgotten = list(islice(self._places[most], FORGOTTEN_AT_ONCE))
            for place in forgotten:
                del self._places[most][place]
            self._count -= len(forgotten)
            if not self._places[most]:
                del self._places[most]

    def holds(self, client: str, request: str, index: int) -> bool:
        """Says whether an answer is remembered."""
        return client in self._places and (request, index) in self._places[client]


def _line(record: Mapping[str, Any], names: FindNames | None) -> bytes:
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
