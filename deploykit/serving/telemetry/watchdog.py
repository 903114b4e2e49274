"""Ends a process that stands still, so that its supervisor, or the container's, starts another one.

A thread of its own looks whether the event loop still turns and whether the engine still comes back with its batches.
It counts its own looks and not the time between them: a machine that was suspended has not stood still.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

STATUS = 70  # EX_SOFTWARE of sysexits.h
LOOKS = 10  # within the limit
TELL_S = 1.0  # at most, to say why: what stands still may be the log

logger = logging.getLogger("deploykit.serving")


class Watchdog:
    """Looks until it is closed.

    Args:
        loop: that must turn.
        batch: tells when the batch began that is longest in the engine; None when it is idle.
        limit_s: the longest that either may take, in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, batch: Callable[[], float | None], limit_s: float) -> None:
        self._loop, self._batch, self._limit_s = loop, batch, limit_s
        self._turned, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _look(self) -> None:
        silent, same, before = 0, 0, None
        while not self._closed.wait(self._limit_s / LOOKS):
            silent = 0 if self._turned.is_set() else silent + 1
            self._turned.clear()
            now = self._batch()
            same, before = (same + 1 if now is not None and now == before else 0), now
            if silent > LOOKS:
                self._end("the event loop")
            if same > LOOKS:
                self._end("the engine")
            try:
                self._loop.call_soon_threadsafe(self._turned.set)
            except RuntimeError:  # the loop is closed: the process ends by itself
                return

    def _end(self, what: str) -> NoReturn:
        telling = threading.Thread(target=self._tell, args=[what], daemon=True)
        with suppress(RuntimeError):  # there may be no thread left to have
            telling.start()
            telling.join(TELL_S)
        if os.environ.get("BENTOML_CONTAINERIZED"):  # where the supervisor leaves it to the container to start anew
            os.kill(os.getppid(), signal.SIGTERM)
        os._exit(STATUS)

    def _tell(self, what: str) -> None:
        logger.critical("%s has stood still for %g s: this process ends, to be started anew", what, self._limit_s)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
