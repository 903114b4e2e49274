"""One TCP connection: what uvicorn's protocol class lacks for a service behind a load balancer.

A request that offers to upgrade to another protocol (HTTP/2, TLS) keeps its body. A client that does not read its
response is disconnected. Idle connections stay open for longer than proxies keep theirs, so that no proxy sends a
request on a connection that was just closed. Slow headers and floods of connections are left to the load balancer.
"""

import asyncio
from collections.abc import Sequence

import httptools
import uvicorn.config

from deploykit.serving import patches
from deploykit.serving.problems import Problem

with patches.library_errors("uvicorn", patches.UVICORN_PROTOCOL_MODULE):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS, MAX_HEADER_BYTES = 64, 16 * 1024  # of a request: number of headers, and bytes of all together
UVICORN_KEEP_ALIVE_S, KEEP_ALIVE_S = 5, 75  # of an idle connection: uvicorn's default, and its replacement
MAX_UNPARSED_BYTES = 256 * 1024  # of headers that do not end: httptools would keep them in memory for ever
READ_PERIOD_S, MIN_READ_BYTES = 20.0, 65536  # a client must read so many bytes of a waiting response in each period


class PlainParser(httptools.HttpRequestParser):
    """httptools' parser, but it ignores the offer of a request to upgrade to another protocol (RFC 9110, 7.8).

    httptools stops after the headers of such a request, because it expects data of the other protocol. The body would
    be lost, and then be read as the next request. So the parser starts again with the same headers without `Upgrade`.
    """

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self._connection = connection
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does: such data is ignored

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Parses the next data of a connection.

        Raises:
            HttpParserError: it is not HTTP, or asks for a tunnel, after which no HTTP follows.
        """
        while True:
            try:
                return super().feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("tunnels are not supported") from None
                data = self._connection.headers_without_offer() + data[offer.args[0] :]
                self.__init__(self._connection)  # type: ignore[misc]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol class with `PlainParser`, limits for slow readers and endless headers, and long keep-alive."""

    _slow_reader_timer: asyncio.TimerHandle | None = None
    _unparsed_bytes = 0  # since the last complete header section or piece of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Replaces the parser, and the keep-alive unless `--timeout-keep-alive` sets one."""
        super().connection_made(transport)
        self.parser = PlainParser(self)
        if self.timeout_keep_alive == UVICORN_KEEP_ALIVE_S:
            self.timeout_keep_alive = KEEP_ALIVE_S

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer of slow readers."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses data; disconnects a client whose headers have no end."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_UNPARSED_BYTES:
            self.transport.abort()

    def headers_without_offer(self) -> bytes:
        """Returns the header section of the current request, without the header `Upgrade`."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_headers_complete(self) -> None:
        """Starts a request; one that offers an upgrade is first parsed again without the offer."""
        self._unparsed_bytes = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Receives a piece of a body, whose size the guard limits."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the body of a request; one that offers an upgrade is first parsed again without the offer."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Starts the timer of slow readers, because the client does not read its response."""
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        """Stops the timer of slow readers, because the client has read."""
        self._stop_timer()
        super().resume_writing()

    def _start_timer(self) -> None:
        """Plans a check that the client has read `MIN_READ_BYTES` by the end of a period."""
        unread = self.transport.get_write_buffer_size()
        self._slow_reader_timer = self.loop.call_later(READ_PERIOD_S, self._require_progress, unread)

    def _require_progress(self, unread: int) -> None:
        """Disconnects the client if it has read too little since `unread` bytes were waiting for it."""
        if unread - self.transport.get_write_buffer_size() < MIN_READ_BYTES:
            self.transport.abort()
        else:
            self._start_timer()

    def _stop_timer(self) -> None:
        """Cancels the planned check, if there is one."""
        if self._slow_reader_timer is not None:
            self._slow_reader_timer.cancel()


def install() -> None:
    """Makes uvicorn use `Connection`; must be called before uvicorn reads its configuration."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def require_few_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises a problem (431) if headers are too many or too long."""
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        limits = f"{MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together"
        raise Problem(431, "headers", f"a request may have {limits}; send fewer or shorter ones")
