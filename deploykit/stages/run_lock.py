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

LOCK_FILE = ".lock"
LOCK_TIMEOUT_S = 2.0  # ending all processes of a run that was just killed may take this long
LOCK_ATTEMPTS = 20  # spread evenly over the timeout


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a run's directory, which is made if it does not exist.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        BusyError: another process holds the lock.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("a+", encoding="utf-8") as stream:
            if not _try_to_lock(stream):
                stream.seek(0)
                raise BusyError(
                    f"another run{_holder(stream.read())} is working in {folder}."
                    " Wait for it, or choose another directory with `output:` in the recipe."
                )
            stream.truncate(0)
            stream.write(json.dumps({"pid": os.getpid()}))
            stream.flush()
            yield


def _try_to_lock(stream: IO[str]) -> bool:
    """Tries to lock a file until `LOCK_TIMEOUT_S` seconds are over, and says whether it succeeded."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_TIMEOUT_S / LOCK_ATTEMPTS)
        else:
            return True
    return False


def _holder(content: str) -> str:
    """Returns for a message which process holds the lock, from the content of its file; empty if that is damaged."""
    try:
        return f" (process {json.loads(content)['pid']})"
    except (ValueError, KeyError):
        return ""
