"""A lock that allows one run at a time in a directory."""

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
WAIT_S = 2.0  # the system may take this long to end all processes of a run that was just killed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a run's directory; the system releases the lock when the process ends, even if it is killed.

    Raises:
        BusyError: another process holds the lock.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a+", encoding="utf-8") as stream:
            if not _lock(stream):
                stream.seek(0)
                raise BusyError(
                    f"another run{_holder(stream.read())} is working in {folder}."
                    " Wait for it, or choose another directory with `output:` in the recipe."
                )
            stream.truncate(0)
            stream.write(json.dumps({"pid": os.getpid()}))
            stream.flush()
            yield


def _lock(stream: IO[str]) -> bool:
    """Tries to lock a file for `WAIT_S` seconds, and says whether it succeeded."""
    for _ in range(20):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(WAIT_S / 20)
        else:
            return True
    return False


def _holder(content: str) -> str:
    try:
        return f" (process {json.loads(content)['pid']})"
    except (ValueError, KeyError):
        return ""
