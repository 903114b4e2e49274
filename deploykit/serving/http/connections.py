"""Connections below the application: the head of a request arrives in time, or the connection ends.

The guard sees a request once its head is complete. Before that there is only the server, which waits for ever; so its
protocol is extended here by timers, after `heads` has bounded what it keeps. And a client that does not read its
answers would hold them, and the request, for as long as it likes: that connection ends, too. An idle one outlives those
of proxies, so that it is the proxy that closes it, and no request finds it closed.
"""

import asyncio
from collections import deque

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deploykit.serving.http.heads import BoundedProtocol

HEAD_S = 20.0  # from the first byte that is not part of a request in progress
DEFAULT_S, KEEP_ALIVE_S = 5, 75  # between two requests: the server's own where nobody says another, and ours for it
READ_S, READ_BYTES = 20.0, 65536  # of what fills all buffers on the way, a client reads so much in so many seconds


class Connection(BoundedProtocol):
    """One connection; a request in progress has the guard's time limits instead of these."""

    _timer: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives a connection on which nothing arrives as long as one between two requests."""
        super().connection_made(transport)
        if self.timeout_keep_alive == DEFAULT_S:
            self.timeout_keep_alive = KEEP_ALIVE_S
        self._cycles = deque[RequestResponseCycle]()  # requests without their answers, the oldest first
        self._idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timers, and tells all requests; the server tells the last one, and the others would write on."""
        self._stop()
        self._drained()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Notes that a request begins."""
        super().on_headers_complete()
        self._cycles.append(self.cycle)

    def on_response_complete(self) -> None:
        """Notes that the oldest request has its answer."""
        self._cycles.popleft()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Reads on, and looks whether a request has come of it."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._between and self.cycle is not None:  # the rest of a body that has its answer, or an empty line
            self._stop()
            self._idle()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self._late)

    def pause_writing(self) -> None:
        """Notes that the client does not read, and gives it some time."""
        super().pause_writing()
        self._patient()

    def resume_writing(self) -> None:
        """Notes that the client has read."""
        self._drained()
        super().resume_writing()

    def _patient(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._full = self.loop.call_later(READ_S, self._read_on, left)

    def _read_on(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < READ_BYTES:
            self.transport.abort()
        else:
            self._patient()

    def _drained(self) -> None:
        if self._full is not None:
            self._full.cancel()
            self._full = None

    def _idle(self) -> None:
        if self.timeout_keep_alive_task is None:
            wait, end = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(wait, end)

    def _late(self) -> None:
        self._timer = None
        self.transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def install() -> None:
    """Makes the server of this process use these connections; before it reads its configuration."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
