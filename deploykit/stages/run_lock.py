"""One run at a time in a directory."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deploykit.errors import BusyError, storage_errors

LOCK = ".lock"
GONE_S = 2.0  # within which the system ends the processes of a run that was killed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run's directory; the system lets go of it when the process ends, however it ends.

    Raises:
        BusyError: another process holds it.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a+", encoding="utf-8") as stream:
            if not _taken(stream):
                stream.seek(0)
                raise BusyError(
                    f"another run{_holder(stream.read())} is working in {folder}."
                    " Wait for it, or choose another directory with `output:` in the recipe."
                )
            stream.truncate(0)
            stream.write(json.dumps({"pid": os.getpid()}))
            stream.flush()
            yield


def _taken(stream: IO[str]) -> bool:
    """Takes a lock; a run that was killed a moment ago may hold it until the last of its processes is gone."""
    end = time.monotonic() + GONE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(GONE_S / 20)
        else:
            return True


def _holder(content: str) -> str:
    try:
        return f" (process {json.loads(content)['pid']})"
    except (ValueError, KeyError):
        return ""
