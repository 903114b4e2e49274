"""Connections below the application: how much a head may have, how long it may take, and which protocol is spoken.

The guard sees a request once its head is complete. Before that there is only the server, which would keep a header
without an end, wait for ever, and lose the body after an offer of another protocol; its protocol is extended here. A
client that does not read its answers would hold them for as long as it likes: that connection ends, too. An idle one
outlives those of proxies, so that it is the proxy that closes it, and no request finds it closed.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Sequence

import httptools
import uvicorn.config

from deploykit.serving import patches, problems
from deploykit.serving.problems import Problem

with patches.expected("uvicorn", patches.SERVER):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADERS, MAX_HEAD_BYTES = 64, 16 * 1024  # of a request; the bytes also bound trailers, which follow a body
TOO_MANY_HEADERS = (
    f"a request may have {MAX_HEADERS} headers of {MAX_HEAD_BYTES} bytes together; send fewer or shorter ones"
)
HEAD_TIMEOUT_S = 20.0  # from the first byte that is not part of a request in progress
SERVER_KEEP_ALIVE_S, KEEP_ALIVE_S = 5, 75  # between two requests: the server's default, and ours in its place
READ_PERIOD_S, READ_BYTES = 20.0, 65536  # a client reads at least so many bytes in each period

logger = logging.getLogger("deploykit.serving")


class PlainParser(httptools.HttpRequestParser):
    """The server's parser, which reads a request with an offer of another protocol as if the offer were not there.

    The offer is optional to take (RFC 9110, 7.8). The parser itself would take what follows the head for the other
    protocol: the body would be lost, and then be read as a request of its own. So it starts again with a head without
    the offer; that is done when the whole head is known, wherever packets were cut.

    Args:
        connection: whose callbacks are called.
    """

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self._connection = connection
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as the server has it: such data is ignored

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Reads what has arrived.

        Raises:
            HttpParserError: it is not HTTP, or asks for a tunnel, after which there is no more HTTP.
        """
        while True:
            try:
                return super().feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("tunnels are not supported") from None
                data = self._connection.head_without_offer() + data[offer.args[0] :]
                self.__init__(self._connection)  # type: ignore[misc]


class Connection(HttpToolsProtocol):
    """One connection; a request in progress has the guard's time limits instead of these.

    Closes when more than `MAX_HEAD_BYTES` arrive that neither complete a head nor belong to a body.
    """

    _unread = 0
    _moved = False
    _between = True  # two requests
    _timer: asyncio.TimerHandle | None = None
    _full: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Gives a connection on which nothing arrives as long as one between two requests."""
        super().connection_made(transport)
        self.parser = PlainParser(self)
        if self.timeout_keep_alive == SERVER_KEEP_ALIVE_S:
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

    def data_received(self, data: bytes) -> None:
        """Reads on, and looks whether a request has come of it."""
        self._moved = False
        super().data_received(data)
        self._unread = 0 if self._moved else self._unread + len(data)
        if self.transport.is_closing():
            return
        if self._unread > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._between and self.cycle is not None:  # the rest of a body that has its answer, or an empty line
            self._stop()
            self._idle()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._late)

    def head_without_offer(self) -> bytes:
        """Returns the head of the request that begins, without the header that offers another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        """Notes that a request begins."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Notes progress; a head with an offer is read once more."""
        if not self.parser.should_upgrade():
            self._moved = True
            super().on_headers_complete()
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Notes progress; a body has a cap of its own."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Notes progress, and that the request is whole."""
        if not self.parser.should_upgrade():
            self._moved = self._between = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Notes that the oldest request has its answer."""
        self._cycles.popleft()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Notes that the client does not read, and gives it some time."""
        super().pause_writing()
        self._patient()

    def resume_writing(self) -> None:
        """Notes that the client has read."""
        self._drained()
        super().resume_writing()

    def _refuse_head(self) -> None:
        logger.warning("a connection was closed: it sent more than %d bytes of headers", MAX_HEAD_BYTES)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_refusal())
        self.transport.close()

    def _patient(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._full = self.loop.call_later(READ_PERIOD_S, self._read_on, left)

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


def require_few(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuses headers that are too many or too long.

    Raises:
        Problem: 431 they are.
    """
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise Problem(431, "headers", TOO_MANY_HEADERS)


def _refusal() -> bytes:
    identity = f"{random.getrandbits(128):032x}"
    body = problems.body(Problem(431, "headers", TOO_MANY_HEADERS), identity)
    head = f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nx-request-id: {identity}"
    head += "\r\nconnection: close"
    return f"HTTP/1.1 431 Request Header Fields Too Large\r\n{head}\r\n\r\n".encode() + body
