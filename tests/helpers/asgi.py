"""A client that speaks ASGI to an application in this process, and can be as rude as a test needs."""

import asyncio
import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass

TIMEOUT_S = 20
PREDICT = "/v1/predict"
TEXTS = ["a great film", "the plot is weak"]
BODY = {"texts": TEXTS}


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self):
        return self.content.decode()

    def json(self):
        return json.loads(self.content)


class Client:
    """Runs an application's life and requests on a loop of its own.

    Args:
        app: of ASGI.
        headers: sent with every request that does not say otherwise.
    """

    def __init__(self, app, headers=None):
        self._app = app
        self._headers = headers or {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._inbox, self._outbox = asyncio.Queue(), asyncio.Queue()
        self._life = asyncio.run_coroutine_threadsafe(
            self._app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._inbox.get, self._outbox.put), self._loop
        )
        self._stage("startup")
        return self

    def __exit__(self, *_):
        self._stage("shutdown")
        self._life.result(TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _stage(self, name):
        async def pass_through():
            await self._inbox.put({"type": f"lifespan.{name}"})
            return await self._outbox.get()

        message = asyncio.run_coroutine_threadsafe(pass_through(), self._loop).result(TIMEOUT_S)
        assert message == {"type": f"lifespan.{name}.complete"}, message

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)

    def request(self, method, path, **options):
        return self.start(method, path, **options).result(TIMEOUT_S)

    def start(
        self, method, path, *, json_body=None, content=None, headers=None, leave_after=None, whole=True
    ) -> Future:
        """Begins a request.

        Args:
            json_body: sent as JSON.
            content: sent as it is; a list is sent in chunks.
            headers: added to the client's own; None as a value takes one away.
            leave_after: seconds until the client hangs up.
            whole: whether the body comes to its end.
        """
        given = {**self._headers}
        if json_body is not None:
            content, given["content-type"] = json.dumps(json_body).encode(), "application/json"
        given |= headers or {}
        chunks = content if isinstance(content, list) else [content or b""]
        if not isinstance(content, list):
            given.setdefault("content-length", str(len(chunks[0])))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.partition("?")[0],
            "raw_path": path.partition("?")[0].encode(),
            "query_string": path.partition("?")[2].encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in given.items() if value is not None],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        return asyncio.run_coroutine_threadsafe(self._exchange(scope, chunks, leave_after, whole), self._loop)

    async def _exchange(self, scope, chunks, leave_after, whole):
        incoming = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - whole}
            for index, chunk in enumerate(chunks)
        ]
        sent, finished = [], asyncio.Event()

        async def receive():
            if incoming:
                return incoming.pop(0)
            if leave_after is None:
                await finished.wait()
            else:
                await asyncio.sleep(leave_after)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                finished.set()

        await self._app(scope, receive, send)
        headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        return Response(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


def metrics(client):
    """The page of the metrics as `{name{labels}: value}`."""
    page = client.get("/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}


def assert_problem(answer, status, detail):
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == status
    assert content["instance"] == answer.headers["x-request-id"]
    assert content["title"]
    assert detail in content["detail"]
