"""The server's HTTP protocol, with a bound on what comes before a body, and after it.

The parser has none: a header without an end would be kept, and copied with every packet, until memory is full, before
anybody has seen a request. Headers that are complete are counted by the guard, which can say more.
"""

import logging
import random
import re
from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deploykit.serving import problems
from deploykit.serving.problems import Problem

MOST, MOST_BYTES = 64, 16 * 1024  # headers of a request, and their bytes
DETAIL = f"a request may have {MOST} headers of {MOST_BYTES} bytes together; send fewer or shorter ones"
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
logger = logging.getLogger("deploykit.serving")


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection that sends more than `MOST_BYTES` without completing headers or sending a body.

    An offer to go on in another protocol is not read: the parser would take what follows for that, and lose the body.
    """

    _unread = 0
    _moved = False
    _between = _in_head = True  # two requests; before a body

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived."""
        self._moved = False
        if self._in_head:
            head, end, body = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"", head) + end + body
        super().data_received(data)
        self._unread = 0 if self._moved else self._unread + len(data)
        if self._unread > MOST_BYTES and not self.transport.is_closing():
            logger.warning("a connection was closed: it sent more than %d bytes of headers", MOST_BYTES)
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_refusal())
            self.transport.close()

    def on_message_begin(self) -> None:
        """Notes that a request begins."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Notes progress; what is complete, the guard looks at."""
        self._moved, self._in_head = True, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Notes progress; a body has a cap of its own."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Notes progress, and that the request is whole."""
        self._moved = self._between = self._in_head = True
        super().on_message_complete()


def _refusal() -> bytes:
    identity = f"{random.getrandbits(128):032x}"
    body = problems.body(Problem(431, "headers", DETAIL), identity)
    head = f"content-type: {problems.MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nx-request-id: {identity}"
    head += "\r\nconnection: close"
    return f"HTTP/1.1 431 Request Header Fields Too Large\r\n{head}\r\n\r\n".encode() + body


def require_few(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuses headers that are too many or too long.

    Raises:
        Problem: 431 they are.
    """
    if len(headers) > MOST or sum(len(name) + len(value) for name, value in headers) > MOST_BYTES:
        raise Problem(431, "headers", DETAIL)
