"""A file that a running service reads again when it changes; if the new content is damaged, the old one stays.

The path is resolved each time: Kubernetes updates a mounted file by exchanging the directory that a symbolic link on
the way points to.
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
    """A file and its content.

    Args:
        name: what the file holds, in the plural, for the log.
        path: of the file.
        read: returns the content; raises an `InputError` if it is damaged.

    Attributes:
        content: what was read last without an error.
        failures: how often the file could not be read after a change.

    Raises:
        InputError: the file cannot be read now.
    """

    def __init__(self, name: str, path: Path, read: Callable[[Path], Content]) -> None:
        self._name, self._path, self._read = name, path, read
        # versions of the file that was read last without an error, and that was tried last; taken before the file is
        # read, so that a change in the meantime is noticed
        self._read_version = self._tried_version = self._version()
        self.content = read(path)
        self._checked_at = time.monotonic()
        self.failures = 0

    def refresh(self, poll_s: float, *, at_once: bool = False) -> None:
        """Reads the file again if it has changed.

        Args:
            poll_s: the file is checked at most once in so many seconds; a damaged one is tried again each time.
            at_once: checks the file now, whatever `poll_s`; a damaged one is not tried again.
        """
        now = time.monotonic()
        if now - self._checked_at < poll_s and not at_once:
            return
        version = self._version()
        if at_once and version == self._tried_version:
            return
        self._checked_at = now
        if version == self._read_version:
            return
        try:
            self.content = self._read(self._path)
        except InputError as error:
            self.failures += 1
            if version != self._tried_version:
                logger.error("%s stay as they were: %s", self._name, error)
        else:
            self._read_version = version
            logger.info("%s read again", self._name)
        self._tried_version = version

    def _version(self) -> tuple[int, ...] | None:
        """Returns numbers that differ after each change of the file; None if it cannot be found.

        The last one, the time of the last change of status, cannot be set back by a program.
        """
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
