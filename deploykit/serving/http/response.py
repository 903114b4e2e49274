"""The response to a request: errors get the same form wherever they come from, and every response the request id.

A `Response` takes the place of ASGI's `send`. Error bodies of BentoML, whose form depends on the status, are replaced
by problems.
"""

from collections.abc import Mapping

from starlette.types import Message, Send

from deploykit.serving import problems
from deploykit.serving.call import Call
from deploykit.serving.problems import NOT_READY, Problem

HIDDEN_HEADERS = (b"server", b"x-bentoml-request-id", b"x-bentoml-trace-id")
NO_CONTENT = 204  # a status without a body, and so without a length
FAILED = "the service failed on this request; the log has the request id"


class Response:
    """The response to a call; `headers` are added whatever its status.

    `status`, `sent_bytes` and `reason` (of a refusal) are for the log and the metrics.
    """

    def __init__(self, send: Send, call: Call, headers: Mapping[str, str]) -> None:
        self.status: int | None = None
        self.sent_bytes = 0
        self.reason = ""
        self._send = send
        self._call = call
        self._headers = headers
        self._error_status: int | None = None  # of the application, whose body is not sent

    async def __call__(self, message: Message) -> None:
        """Sends a message of the application, unless it belongs to an error."""
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
        """Sends a problem if the application failed or sent nothing."""
        if self.status is None:
            status = self._error_status or 503
            reason, detail = ("not_ready", NOT_READY) if status == 503 else ("failed", FAILED)
            await self.refuse(Problem(status, reason, detail))

    async def refuse(self, problem: Problem) -> None:
        """Sends a problem, unless a response has begun."""
        if self.status is None:
            self.reason = problem.reason
            headers = {"content-type": problems.MEDIA_TYPE, **problem.headers}
            await self.send(problem.status, headers, problems.body(problem, self._call.id))

    async def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends a whole response."""
        length = {} if status == NO_CONTENT else {"content-length": str(len(body))}
        await self._start(status, _encoded({**headers, **length}))
        self.sent_bytes = len(body)
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        own = {"x-request-id": self._call.id, "server-timing": self._call.timing(), **self._headers}
        await self._send({"type": "http.response.start", "status": status, "headers": headers + _encoded(own)})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
