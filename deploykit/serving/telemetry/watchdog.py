"""Ends a process that hangs, so that its supervisor, or that of the container, starts another one.

A thread checks whether the event loop still runs callbacks, and whether the engine still finishes its batches. It does
not read a clock but counts failed checks, because a machine that was suspended has not hung.
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

EXIT_STATUS = 70  # of a process that was ended: EX_SOFTWARE of sysexits.h
CHECKS_PER_LIMIT = 10  # in the time after which the event loop or the engine counts as hung
LOG_TIMEOUT_S = 1.0  # to log the reason: the log itself may hang

logger = logging.getLogger("deploykit.serving")


class Watchdog:
    """The thread, which checks until it is closed.

    Args:
        loop: the event loop.
        oldest_batch_start: returns when the oldest running batch started; None if the engine is idle.
        limit_s: seconds after which the loop or the engine counts as hung.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, oldest_batch_start: Callable[[], float | None], limit_s: float
    ) -> None:
        self._loop, self._oldest_batch_start, self._limit_s = loop, oldest_batch_start, limit_s
        self._loop_ran, self._closed = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Ends the checks."""
        self._closed.set()

    def _watch(self) -> None:
        """Runs in the thread."""
        loop_misses, same_batch_checks, previous_start = 0, 0, None  # checks in a row that found it hung
        while not self._closed.wait(self._limit_s / CHECKS_PER_LIMIT):
            loop_misses = 0 if self._loop_ran.is_set() else loop_misses + 1
            self._loop_ran.clear()
            start = self._oldest_batch_start()
            same_batch = start is not None and start == previous_start
            same_batch_checks, previous_start = (same_batch_checks + 1 if same_batch else 0), start
            if loop_misses > CHECKS_PER_LIMIT:
                self._end_process("the event loop")
            if same_batch_checks > CHECKS_PER_LIMIT:
                self._end_process("the engine")
            try:
                self._loop.call_soon_threadsafe(self._loop_ran.set)
            except RuntimeError:  # the loop is closed: the process is ending
                return

    def _end_process(self, part: str) -> NoReturn:
        """Logs which part has hung, and ends the process at once."""
        log = threading.Thread(target=self._log, args=[part], daemon=True)
        with suppress(RuntimeError):  # no more threads can be started
            log.start()
            log.join(LOG_TIMEOUT_S)
        if os.environ.get("BENTOML_CONTAINERIZED"):  # BentoML's supervisor would not restart it; the container's does
            os.kill(os.getppid(), signal.SIGTERM)
        os._exit(EXIT_STATUS)

    def _log(self, part: str) -> None:
        """Logs which part has hung; runs in a thread of its own, because the log may hang."""
        logger.critical("%s has hung for %g s: this process ends, to be started again", part, self._limit_s)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
