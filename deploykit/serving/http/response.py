"""The response on its way out: one shape for errors, whoever made them, and the request id on all.

Stands in for ASGI's `send`. BentoML's own error bodies differ from status to status, and one of them is a
list; they are dropped, and a problem is sent in their place.
"""

from collections.abc import Mapping

from starlette.types import Message, Send

from deploykit.serving import problems
from deploykit.serving.call import Call
from deploykit.serving.problems import NOT_READY, Problem

HIDDEN = (b"server", b"x-bentoml-request-id", b"x-bentoml-trace-id")
NO_CONTENT = 204  # has no body, and so no length
FAILED = "the service failed on this request; the log has the request id"
TOLD = {404: ("not_found", "there is no such path"), 503: ("not_ready", NOT_READY)}


class Reply:
    """One response; `status` and `sent` (bytes) are for the log, `reason` is why it was refused.

    Args:
        send: the server's.
        call: the request that is answered.
        marks: headers that every response has, whatever its status.
    """

    def __init__(self, send: Send, call: Call, marks: Mapping[str, str]) -> None:
        self.status: int | None = None
        self.sent = 0
        self.reason = ""
        self._send = send
        self._call = call
        self._marks = marks
        self._held: int | None = None

    async def __call__(self, message: Message) -> None:
        """Takes what the application sends."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._held = message["status"]
                return
            kept = [header for header in message.get("headers", ()) if header[0].lower() not in HIDDEN]
            await self._start(message["status"], kept)
        elif self._held is None:
            self.sent += len(message.get("body", b""))
            await self._send(message)
        elif not message.get("more_body", False):
            await self.finish()

    async def finish(self) -> None:
        """Sends what is still owed: the problem in place of an error, or of silence."""
        if self.status is None:
            status = self._held or 503
            await self.refuse(Problem(status, *TOLD.get(status, ("failed", FAILED))))

    async def refuse(self, problem: Problem) -> None:
        """Sends a problem, unless a response is already on its way."""
        if self.status is None:
            self.reason = problem.reason
            headers = {"content-type": problems.MEDIA_TYPE, **problem.headers}
            await self.whole(problem.status, headers, problems.body(problem, self._call.id))

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends a response in one piece."""
        pairs = {**headers} if status == NO_CONTENT else {**headers, "content-length": str(len(body))}
        await self._start(status, [(name.encode(), value.encode()) for name, value in pairs.items()])
        self.sent = len(body)
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        own = {"x-request-id": self._call.id, "server-timing": self._call.timing(), **self._marks}
        headers = [*headers, *((name.encode(), value.encode()) for name, value in own.items())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
