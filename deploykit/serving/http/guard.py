"""The ASGI application around BentoML's, through which every request passes.

It stands outside BentoML's own middleware, which would count, log and parse requests before access is checked. A path
that is not in the table of routes does not exist; a body is read, validated and answered here; only routes without one
go on to BentoML. Every error becomes a problem, and if the guard itself fails, the request is refused.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from time import perf_counter
from typing import Any, NamedTuple, cast

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from deploykit.serving.access.check import Refusal
from deploykit.serving.call import REQUEST_ID, Call, Client, new_id
from deploykit.serving.http import bodies, cors, uploads
from deploykit.serving.http.connections import require_few
from deploykit.serving.http.response import FAILED, NO_CONTENT, Response
from deploykit.serving.http.routes import JSON, UNKNOWN, Answer, Content, Route, match
from deploykit.serving.http.slots import Slots
from deploykit.serving.problems import CLIENT_GONE, Problem, retry_after
from deploykit.serving.queue.jobs import DEADLINE_DETAIL
from deploykit.serving.runtime import Runtime
from deploykit.serving.telemetry.logs import request_line

MAX_ANSWERED, MAX_ARRIVING = 512, 256  # requests whose body is in memory, and requests whose body is arriving
BACKSTOP_S = 5.0  # after the deadline that the queue enforces, so that this one applies only if that fails
TIMEOUT_MS = re.compile(r"0*[1-9][0-9]{0,8}")  # longer numbers are not converted

logger = logging.getLogger("deploykit.serving")


class Exchange(NamedTuple):
    """A request of ASGI and its response."""

    method: str
    scope: Scope
    receive: Receive
    headers: Mapping[str, str]
    call: Call
    response: Response


class Guard:
    """Wraps an ASGI application.

    Args:
        app: of BentoML.
        routes: all that exist.
        runtime: keys, limits, metrics and settings.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route], runtime: Runtime) -> None:
        self._app = app
        self._routes = tuple(routes)
        self._runtime = runtime
        self._answered = Slots(MAX_ANSWERED, "in progress")
        self._arriving = Slots(MAX_ARRIVING, "waiting for their body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or the start and the end of the process."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:  # no route uses websockets
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens, counts it and logs it."""
        headers = _headers(scope)
        request_id = headers.get("x-request-id", "")
        call = Call(request_id if REQUEST_ID.fullmatch(request_id) else new_id(), Client("none"))
        route, problem = match(self._routes, scope["method"], scope["path"])
        response = Response(send, call, cors.response_headers(self._runtime.settings.cors_origins, headers))
        exchange = Exchange(scope["method"], scope, receive, headers, call, response)
        metrics, start = self._runtime.metrics, perf_counter()
        with metrics.answering(route.path):
            try:
                await self._respond(route, problem, exchange)
            except Problem as error:
                await self._refuse(response, error)
            except asyncio.CancelledError:  # the server stops, and its time for open requests is over
                detail = "the service is stopping and could not finish this; send it again"
                await self._refuse(response, Problem(503, "not_ready", detail, headers=retry_after(1)))
                raise
            except Exception:
                logger.exception("request %s failed in the guard", call.id)
                detail = "the service could not check this request and refused it; the log has the request id"
                await self._refuse(response, Problem(503, "failed", detail, headers=retry_after(1)))
            finally:
                status, seconds = response.status or CLIENT_GONE, perf_counter() - start
                metrics.status(route.path, status)
                if response.reason:
                    metrics.rejected.labels(response.reason).inc()
                self._trace(route, status, exchange)
                request_line(call, route.path, status, response.sent_bytes, seconds)

    async def _respond(self, route: Route, problem: Problem | None, exchange: Exchange) -> None:
        """Answers a request, or raises the problem; preflights of browsers need no key."""
        headers, call = exchange.headers, exchange.call
        require_few(exchange.scope["headers"])
        origins = self._runtime.settings.cors_origins
        preflight = cors.preflight(origins, exchange.method, headers, route.methods)
        if preflight and route is not UNKNOWN:
            await exchange.response.send(NO_CONTENT, preflight, b"")
            return
        if problem is not None:
            raise problem
        call.timeout_s = _timeout_s(headers)
        await self._admit(route, headers, call)
        with self._runtime.limits.running(call.client):
            await self._handle(route, exchange)

    async def _admit(self, route: Route, headers: Mapping[str, str], call: Call) -> None:
        """Checks the key, the queue and the limits; raises a problem if the request is refused."""
        runtime = self._runtime
        if route.scope is None or (route.scope == "metrics" and runtime.settings.metrics_public):
            return
        client = runtime.identify(_key(headers), route.scope)
        if isinstance(client, Refusal):
            challenge = {"www-authenticate": 'Bearer realm="deploykit"'} if client.status == 401 else {}
            raise Problem(client.status, client.reason, client.detail, headers=challenge)
        call.client = client
        if route.waits:
            runtime.check(client)
        await runtime.limits.request(client)

    async def _handle(self, route: Route, exchange: Exchange) -> None:
        """Answers an admitted request."""
        _, scope, receive, headers, call, response = exchange
        if route.body is not None and route.answer is not None:
            files = route.from_files is not None and uploads.are_files(headers)
            if not files:
                expected = uploads.EXPECTED if route.from_files else bodies.JSON_EXPECTED
                bodies.require_type(headers, binary=route.binary, expected=expected)
            with self._arriving.use(call.client.name):
                body = await bodies.read(receive, headers, self._runtime.settings.max_body_bytes)
            with self._slot(route, call):
                parsed = await self._runtime.offload.run(
                    len(body) > bodies.LARGE_BYTES, self._parsed, route, body, headers
                )
                content = await self._answer(route.answer, parsed, receive, call)
                await response.send(200, content.headers, content.body)
        elif route.page is not None:
            with self._slot(route, call):
                page = await asyncio.to_thread(route.page)
                await response.send(200, {"content-type": route.media, **route.headers}, page)
        else:
            with self._slot(route, call):
                async with self._backstop():
                    await self._app(scope, receive, response)
            await response.finish()

    def _parsed(self, route: Route, body: bytes, headers: Mapping[str, str]) -> BaseModel:
        """Parses the body of a request; only routes for binary data look at what the headers say of its parts."""
        model, max_texts = cast(type[BaseModel], route.body), self._runtime.settings.max_texts
        if route.from_files is not None and uploads.are_files(headers):
            return uploads.parse(model, route.from_files, body, headers, max_texts)
        return bodies.parse(model, body, headers if route.binary else {}, max_texts)

    async def _answer(self, answer: Answer, body: BaseModel, receive: Receive, call: Call) -> Content:
        """Returns the answer to a body, and marks the call once the client has disconnected."""
        call.gone = asyncio.get_running_loop().create_future()
        watch = asyncio.create_task(_mark_disconnect(receive, call))
        try:
            async with self._backstop():
                content = await answer(body, call)
                return await self._runtime.offload.run(call.large, _serialized, content)
        except Problem:
            raise
        except Exception:
            logger.exception("request %s failed", call.id)
            raise Problem(500, "failed", FAILED) from None
        finally:
            watch.cancel()

    def _slot(self, route: Route, call: Call) -> AbstractContextManager[None]:
        """Uses a slot of the requests in progress; probes and metrics need none."""
        if route.scope is None or route.scope == "metrics":
            return nullcontext()
        return self._answered.use(call.client.name)

    @asynccontextmanager
    async def _backstop(self) -> AsyncIterator[None]:
        """Ends an answer that takes much longer than the deadline."""
        try:
            async with asyncio.timeout(self._runtime.settings.timeout_s + BACKSTOP_S) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(504, "deadline", DEADLINE_DETAIL) from None

    def _trace(self, route: Route, status: int, exchange: Exchange) -> None:
        """Sends the spans of a request with a body, if traces are configured."""
        if self._runtime.traces is None or route.body is None:
            return
        method, call, headers = exchange.method, exchange.call, exchange.headers
        try:
            call.trace = self._runtime.traces.record(call, method, route.path, status, headers)
        except Exception:
            logger.exception("request %s has no trace", call.id)

    async def _refuse(self, response: Response, problem: Problem) -> None:
        with suppress(Exception):  # the connection may be closed
            await response.refuse(problem)
        problem.__traceback__ = None  # a reference cycle would keep the request in memory


def _headers(scope: Scope) -> dict[str, str]:
    """Joins the values of headers that were sent more than once (RFC 9110, 5.3), so that all readers see the same."""
    headers = dict[str, str]()
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _key(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    """Returns the client's deadline in seconds, if it sent one."""
    text = headers.get("x-request-timeout-ms")
    if text is None:
        return None
    if not TIMEOUT_MS.fullmatch(text):
        raise Problem(400, "malformed", "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
    return int(text) / 1000


def _serialized(answer: Any) -> Content:
    if isinstance(answer, Content):
        return answer
    return Content(to_json(answer, inf_nan_mode="null"), {"content-type": JSON})


async def _mark_disconnect(receive: Receive, call: Call) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.leave()
