"""A file that a running service follows: it is read again when it changes; a broken one leaves what was read before.

The path is looked up anew each time, through all of its links: Kubernetes updates a mounted file by exchanging the
directory that a link on the way names.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from deploykit.errors import InputError

Content = TypeVar("Content")

logger = logging.getLogger("deploykit.serving")


class WatchedFile(Generic[Content]):
    """What a file holds; `failures` counts how often it could not be read after a change.

    Args:
        name: what the file holds, in the plural, for the log.
        path: of the file.
        read: returns what it holds; raises an InputError where it is damaged.

    Raises:
        InputError: it cannot be read now.
    """

    def __init__(self, name: str, path: Path, read: Callable[[Path], Content]) -> None:
        self._name, self._path, self._read = name, path, read
        self._seen = self._broken = self._stamp()  # before the file is read: a change in between is seen next time
        self.content = read(path)
        self._looked = time.monotonic()
        self.failures = 0

    def look(self, poll_s: float, *, at_once: bool = False) -> None:
        """Reads the file again if it has changed; one that is broken is tried again until it can be read.

        Args:
            poll_s: seconds since the last look before which nothing is done.
            at_once: looks in any case, but leaves alone a file that is known, or known to be broken.
        """
        now = time.monotonic()
        if now - self._looked < poll_s and not at_once:
            return
        stamp = self._stamp()
        if at_once and stamp == self._broken:
            return
        self._looked = now
        if stamp == self._seen:
            return
        try:
            self.content = self._read(self._path)
        except InputError as error:
            self.failures += 1
            if stamp != self._broken:
                logger.error("%s stay as they were: %s", self._name, error)
            self._broken = stamp
        else:
            self._seen = self._broken = stamp
            logger.info("%s read again", self._name)

    def _stamp(self) -> tuple[int, ...] | None:
        """Returns what differs once the file has changed; the time of the change of state cannot be set back."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
