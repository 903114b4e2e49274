"""One TCP connection: what uvicorn's protocol lacks for clients behind a load balancer.

A request that offers another protocol (HTTP/2, TLS) keeps its body, a client that does not read its response is
disconnected, and idle connections stay open for longer than those of proxies, so that no proxy sends a request on a
connection that was just closed. Slow or endless headers and floods of connections are left to the load balancer.
"""

import asyncio
from collections.abc import Sequence

import httptools
import uvicorn.config

from deploykit.serving import patches
from deploykit.serving.problems import Problem

with patches.expected("uvicorn", patches.SERVER):
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS, MAX_HEADER_BYTES = 64, 16 * 1024  # of a request
UVICORN_KEEP_ALIVE_S, KEEP_ALIVE_S = 5, 75  # of an idle connection: uvicorn's default, and its replacement
READ_PERIOD_S, READ_BYTES = 20.0, 65536  # a client must read so many bytes of a waiting response in each period


class PlainParser(httptools.HttpRequestParser):
    """httptools' parser, but it reads a request that offers another protocol as if it had no such offer.

    A server may ignore the offer (RFC 9110, 7.8). httptools stops at the end of the header section, because what
    follows belongs to the other protocol: the body would be lost, and then be read as the next request. So the parser
    starts again with the same header section without the offer.
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
    """uvicorn's protocol with `PlainParser`, a limit for slow readers, and a longer keep-alive."""

    _slow_reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Replaces the parser, and the keep-alive unless `--timeout-keep-alive` sets one."""
        super().connection_made(transport)
        self.parser = PlainParser(self)
        if self.timeout_keep_alive == UVICORN_KEEP_ALIVE_S:
            self.timeout_keep_alive = KEEP_ALIVE_S

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def headers_without_offer(self) -> bytes:
        """Returns the header section of the current request, without the header `Upgrade`."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_headers_complete(self) -> None:
        """Starts a request; one with an offer is parsed again first."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends the body of a request; one with an offer is parsed again first."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Starts the timer, because the client does not read its response."""
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        """Stops the timer, because the client has read."""
        self._stop_timer()
        super().resume_writing()

    def _start_timer(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._slow_reader_timer = self.loop.call_later(READ_PERIOD_S, self._require_progress, unread)

    def _require_progress(self, unread: int) -> None:
        if unread - self.transport.get_write_buffer_size() < READ_BYTES:
            self.transport.abort()
        else:
            self._start_timer()

    def _stop_timer(self) -> None:
        if self._slow_reader_timer is not None:
            self._slow_reader_timer.cancel()


def install() -> None:
    """Makes uvicorn use these connections; to be called before it reads its configuration."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def require_few(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises a problem (431) if headers are too many or too long."""
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        bounds = f"{MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together"
        raise Problem(431, "headers", f"a request may have {bounds}; send fewer or shorter ones")
