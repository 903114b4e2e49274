"""The door: a plain ASGI application around BentoML's, through which every request passes.

It stands outside BentoML's own middleware, because that would count, log and parse requests before anyone
had asked whether they are allowed. What is not in the table of routes does not exist; a body is read here, up
to its cap, checked against the schema and answered; only what has none goes on to BentoML. Errors from inside
leave as problem details, and when anything in here fails, the request is refused at once and not let through.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from time import perf_counter
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploykit.serving.access.check import Client, Refusal
from deploykit.serving.call import REQUEST_ID, Call, new_id
from deploykit.serving.http import bodies, cors
from deploykit.serving.http.connections import require_few
from deploykit.serving.http.places import Places
from deploykit.serving.http.response import FAILED, NO_CONTENT, Reply
from deploykit.serving.http.routes import JSON, UNKNOWN, Answer, Content, Route, match
from deploykit.serving.problems import CLIENT_GONE, Problem, retry_after
from deploykit.serving.runtime import Runtime
from deploykit.serving.telemetry.logs import request_line

MAX_ANSWERED, MAX_ARRIVING = 512, 256  # requests that hold a body; and those whose body is on its way
BACKSTOP_S = 5.0  # this much after the batcher's own deadline, which should always come first
DIGITS = 9  # of milliseconds

logger = logging.getLogger("deploykit.serving")


class Guard:
    """Wraps an ASGI application.

    Args:
        app: BentoML's.
        routes: what exists.
        runtime: keys, limits, metrics and settings.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route], runtime: Runtime) -> None:
        self._app = app
        self._routes = tuple(routes)
        self._runtime = runtime
        self._answered = Places(MAX_ANSWERED, "in progress")
        self._arriving = Places(MAX_ARRIVING, "waiting for their body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection event: the life of the process, or a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:  # websockets: nothing here speaks them
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens, counts it and logs it."""
        headers = _headers(scope)
        asked = headers.get("x-request-id", "")
        call = Call(asked if REQUEST_ID.fullmatch(asked) else new_id(), Client("none"))
        route, problem = match(self._routes, scope["method"], scope["path"])
        reply = Reply(send, call, cors.marks(self._runtime.settings.cors_origins, headers))
        metrics, start = self._runtime.metrics, perf_counter()
        with metrics.answering(route.label):
            try:
                await self._respond(route, problem, scope, receive, reply, headers, call)
            except Problem as found:
                await self._refuse(reply, found)
            except asyncio.CancelledError:  # the server has waited for as long as it may
                detail = "the service is stopping and could not finish this; send it again"
                await self._refuse(reply, Problem(503, "not_ready", detail, headers=retry_after(1)))
                raise
            except Exception:
                logger.exception("request %s failed in the guard", call.id)
                detail = "the service could not check this request and refused it; the log has the request id"
                await self._refuse(reply, Problem(503, "failed", detail, headers=retry_after(1)))
            finally:
                metrics.status(route.label, reply.status or CLIENT_GONE)
                if reply.reason:
                    metrics.rejected.labels(reply.reason).inc()
                seconds = perf_counter() - start
                self._trace(route, scope["method"], reply, headers, call)
                request_line(call, route.label, reply.status or CLIENT_GONE, reply.sent, seconds)

    async def _respond(
        self,
        route: Route,
        problem: Problem | None,
        scope: Scope,
        receive: Receive,
        reply: Reply,
        headers: Mapping[str, str],
        call: Call,
    ) -> None:
        """Answers a request, or raises the problem why not; browsers may ask without a key what they may ask."""
        require_few(scope["headers"])
        origins = self._runtime.settings.cors_origins
        if route is not UNKNOWN and (told := cors.preflight(origins, scope["method"], headers, route.methods)):
            await reply.whole(NO_CONTENT, told, b"")
            return
        if problem is not None:
            raise problem
        call.timeout_s = _timeout(headers)
        await self._admit(route, headers, call)
        with self._runtime.limits.running(call.client):
            await self._handle(route, scope, receive, reply, headers, call)

    async def _admit(self, route: Route, headers: Mapping[str, str], call: Call) -> None:
        """Asks who it is, whether they may, and whether there is room; raises a problem if not."""
        runtime = self._runtime
        needed = None if route.scope == "metrics" and runtime.settings.metrics_public else route.scope
        if needed is not None:
            found = runtime.identify(_key(headers), needed)
            if isinstance(found, Refusal):
                challenge = {"www-authenticate": 'Bearer realm="deploykit"'} if found.status == 401 else {}
                raise Problem(found.status, found.reason, found.detail, headers=challenge)
            call.client = found
            if route.waits:
                runtime.check(found)
            await runtime.limits.request(found)

    async def _handle(
        self, route: Route, scope: Scope, receive: Receive, reply: Reply, headers: Mapping[str, str], call: Call
    ) -> None:
        """Answers an admitted request; one with a body only as long as the client stays."""
        if route.page is not None:
            told = {"content-type": route.media, **route.headers}
            with self._place(route, call):
                await reply.whole(200, told, await asyncio.to_thread(route.page))
            return
        if route.body is None or route.answer is None:
            with self._place(route, call):
                async with self._in_time():
                    await self._app(scope, _nothing(receive), reply)
            await reply.finish()
            return
        bodies.require_type(headers, binary=route.binary)
        with self._arriving.take(call.client.name):
            body = await bodies.read(receive, headers, self._runtime.settings.max_body_bytes)
        with self._place(route, call):
            large, limit = len(body) > bodies.LARGE_BYTES, self._runtime.settings.max_texts
            about = headers if route.binary else {}
            asked = await self._runtime.offload.run(large, bodies.parsed, route.body, body, about, limit)
            content = await self._answer(route.answer, asked, receive, call)
            await reply.whole(200, content.headers, content.body)

    async def _answer(self, answer: Answer, asked: BaseModel, receive: Receive, call: Call) -> Content:
        """Makes the answer to a body, as long as the client stays."""
        call.gone = asyncio.get_running_loop().create_future()
        watch = asyncio.create_task(_watch(receive, call))
        try:
            async with self._in_time():
                content = await answer(asked, call)
                return await self._runtime.offload.run(call.large, _rendered, content)
        except Problem:
            raise
        except Exception:
            logger.exception("request %s failed", call.id)
            raise Problem(500, "failed", FAILED) from None
        finally:
            watch.cancel()

    def _place(self, route: Route, call: Call) -> AbstractContextManager[None]:
        """Takes a place among the requests in progress; probes and scrapes need none."""
        if route.scope is None or route.scope == "metrics":
            return nullcontext()
        return self._answered.take(call.client.name)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Ends what takes longer than any answer may."""
        try:
            async with asyncio.timeout(self._runtime.settings.timeout_s + BACKSTOP_S) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(504, "deadline", "no answer in the time that this service allows") from None

    def _trace(self, route: Route, method: str, reply: Reply, headers: Mapping[str, str], call: Call) -> None:
        """Makes the spans of a request to the model, where traces are made; probes and scrapes would hide those."""
        if self._runtime.traces is None or route.body is None:
            return
        try:
            call.trace = self._runtime.traces.record(call, method, route.label, reply.status or CLIENT_GONE, headers)
        except Exception:
            logger.exception("request %s has no trace", call.id)

    async def _refuse(self, reply: Reply, problem: Problem) -> None:
        with suppress(Exception):  # the connection may be gone; there is nobody left to tell
            await reply.refuse(problem)
        problem.__traceback__ = None  # it would keep the request, which may keep the problem


def _headers(scope: Scope) -> dict[str, str]:
    """Joins headers that are sent more than once (RFC 9110, 5.3): whoever reads one of them would be told another."""
    found = dict[str, str]()
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _key(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _timeout(headers: Mapping[str, str]) -> float | None:
    """Returns how many seconds the client will wait, None where it does not say."""
    given = headers.get("x-request-timeout-ms")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) <= DIGITS and int(given)):
        raise Problem(400, "malformed", "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
    return int(given) / 1000


def _rendered(answer: Any) -> Content:
    """Writes an answer as JSON, unless it is written already."""
    if isinstance(answer, Content):
        return answer
    return Content(to_json(answer, inf_nan_mode="null"), {"content-type": JSON})


def _nothing(receive: Receive) -> Receive:
    """Gives the application an empty body, and after that only the news that the client has left."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def received() -> Message:
        if messages:
            return messages.pop()
        await _left(receive)
        return {"type": "http.disconnect"}

    return received


async def _watch(receive: Receive, call: Call) -> None:
    await _left(receive)
    call.leave()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
