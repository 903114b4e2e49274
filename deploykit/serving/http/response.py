"""The response to a request. All errors get the same form, wherever they come from, and all responses the request id.

BentoML's application gets a `Response` in place of ASGI's `send`. The bodies of BentoML's errors, whose form depends on
the status, are replaced by problems.
"""

from collections.abc import Mapping

from starlette.types import Message, Send

from deploykit.serving import problems
from deploykit.serving.call import Call
from deploykit.serving.problems import NOT_READY_DETAIL, Problem

HIDDEN_HEADERS = (b"server", b"x-bentoml-request-id", b"x-bentoml-trace-id")  # of BentoML's responses; not sent
NO_CONTENT_STATUS = 204  # its responses have no body, and so no header Content-Length
FAILED_DETAIL = "the service failed on this request; the log has the request id"


class Response:
    """The response to a call.

    Args:
        send: of ASGI.
        call: the request.
        extra_headers: are added whatever the status.

    Attributes:
        status: None until the response has begun.
        sent_bytes: of the body.
        reason: of a problem, one of `problems.PROBLEM_REASONS`; empty if there is none.
    """

    def __init__(self, send: Send, call: Call, extra_headers: Mapping[str, str]) -> None:
        self.status: int | None = None
        self.sent_bytes = 0
        self.reason = ""
        self._send = send
        self._call = call
        self._extra_headers = extra_headers
        self._error_status: int | None = None  # of a response of the application, whose body is not sent

    async def __call__(self, message: Message) -> None:
        """Sends a message of the application; in place of an error response, a problem."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._error_status = message["status"]
                return
            headers = [header for header in message.get("headers", ()) if header[0].lower() not in HIDDEN_HEADERS]
            await self._start(message["status"], headers)
        elif self._error_status is None:
            self.sent_bytes += len(message.get("body", b""))
            await self._send(message)
        elif not message.get("more_body", False):
            await self.finish()

    async def finish(self) -> None:
        """Sends a problem, if the application sent an error or no response at all."""
        if self.status is None:
            status = self._error_status or 503
            reason, detail = ("not_ready", NOT_READY_DETAIL) if status == 503 else ("failed", FAILED_DETAIL)
            await self.refuse(Problem(status, reason, detail))

    async def refuse(self, problem: Problem) -> None:
        """Sends a problem, unless the response has begun."""
        if self.status is None:
            self.reason = problem.reason
            headers = {"content-type": problems.PROBLEM_MEDIA_TYPE, **problem.headers}
            await self.send(problem.status, headers, problems.response_body(problem, self._call.id))

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends a whole response."""
        length = {} if status == NO_CONTENT_STATUS else {"content-length": str(len(body))}
        await self._start(status, _encode_headers({**headers, **length}))
        self.sent_bytes = len(body)
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends the status and the headers, with those that all responses have."""
        self.status = status
        common = {"x-request-id": self._call.id, "server-timing": self._call.server_timing(), **self._extra_headers}
        all_headers = headers + _encode_headers(common)
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})


def _encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Returns headers in the form that ASGI wants."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]
