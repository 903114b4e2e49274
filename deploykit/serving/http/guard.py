"""The guard: the ASGI application around BentoML's, through which every request passes.

It stands outside BentoML's own middleware, which would count, log and parse requests before access is checked. Only the
paths in the list of routes exist. Requests with a body, and pages, are answered here; the other routes are answered by
BentoML. Every error becomes a problem. If the guard itself fails, the request is refused.
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
from deploykit.serving.call import REQUEST_ID_PATTERN, Call, Client, new_request_id
from deploykit.serving.http import bodies, cors, uploads
from deploykit.serving.http.connections import require_few_headers
from deploykit.serving.http.response import FAILED_DETAIL, NO_CONTENT_STATUS, Response
from deploykit.serving.http.routes import JSON_TYPE, UNKNOWN_ROUTE, Answer, Content, Route, match
from deploykit.serving.http.slots import RequestSlots
from deploykit.serving.problems import CLIENT_GONE_STATUS, Problem, retry_after_header
from deploykit.serving.queue.jobs import DEADLINE_DETAIL
from deploykit.serving.runtime import Runtime
from deploykit.serving.telemetry.logs import log_request

ANSWER_SLOTS, BODY_SLOTS = 512, 256  # for requests whose body is in memory, and for requests whose body is arriving
# The guard ends an answer so long after the deadline. The queue ends it at the deadline, unless something fails there.
BACKSTOP_DELAY_S = 5.0
TIMEOUT_MS_PATTERN = re.compile(r"0*[1-9][0-9]{0,8}")  # longer numbers are not converted

logger = logging.getLogger("deploykit.serving")


class Exchange(NamedTuple):
    """A request, with what ASGI gives for it and what the guard made of it, and its response."""

    method: str
    scope: Scope
    receive: Receive
    headers: Mapping[str, str]
    call: Call
    response: Response


class Guard:
    """The guard around an ASGI application.

    Args:
        app: the application of BentoML.
        routes: all routes of the service.
        runtime: keys, limits, metrics and settings.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route], runtime: Runtime) -> None:
        self._app = app
        self._routes = tuple(routes)
        self._runtime = runtime
        self._answer_slots = RequestSlots(ANSWER_SLOTS, "in progress")
        self._body_slots = RequestSlots(BODY_SLOTS, "waiting for their body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, passes the start and the end of the process on to BentoML, and closes websockets."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:  # no route uses websockets
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, counts it and logs it, whatever happens."""
        headers = _joined_headers(scope)
        request_id = headers.get("x-request-id", "")
        call = Call(request_id if REQUEST_ID_PATTERN.fullmatch(request_id) else new_request_id(), Client("none"))
        route, problem = match(self._routes, scope["method"], scope["path"])
        response = Response(send, call, cors.response_headers(self._runtime.settings.cors_origins, headers))
        exchange = Exchange(scope["method"], scope, receive, headers, call, response)
        metrics, start = self._runtime.metrics, perf_counter()
        with metrics.time_request(route.path):
            try:
                await self._respond(route, problem, exchange)
            except Problem as error:
                await self._refuse(response, error)
            except asyncio.CancelledError:  # the server stops, and its time for open requests is over
                detail = "the service is stopping and could not finish this; send it again"
                await self._refuse(response, Problem(503, "not_ready", detail, headers=retry_after_header(1)))
                raise
            except Exception:
                logger.exception("request %s failed in the guard", call.id)
                detail = "the service could not check this request and refused it; the log has the request id"
                await self._refuse(response, Problem(503, "failed", detail, headers=retry_after_header(1)))
            finally:
                status, seconds = response.status or CLIENT_GONE_STATUS, perf_counter() - start
                metrics.count_response(route.path, status)
                if response.reason:
                    metrics.rejected.labels(response.reason).inc()
                self._send_trace(route, status, exchange)
                log_request(call, route.path, status, response.sent_bytes, seconds)

    async def _respond(self, route: Route, problem: Problem | None, exchange: Exchange) -> None:
        """Answers a request, or raises a problem; preflights of browsers need no key."""
        headers, call = exchange.headers, exchange.call
        require_few_headers(exchange.scope["headers"])
        origins = self._runtime.settings.cors_origins
        preflight = cors.preflight_headers(origins, exchange.method, headers, route.methods)
        if preflight and route is not UNKNOWN_ROUTE:
            await exchange.response.send(NO_CONTENT_STATUS, preflight, b"")
            return
        if problem is not None:
            raise problem
        call.timeout_s = _timeout_s(headers)
        await self._admit(route, headers, call)
        with self._runtime.limits.in_progress(call.client):
            await self._handle(route, exchange)

    async def _admit(self, route: Route, headers: Mapping[str, str], call: Call) -> None:
        """Checks the key, the queue and the rate limits; raises a problem if the request is refused."""
        runtime = self._runtime
        if route.scope is None or (route.scope == "metrics" and runtime.settings.metrics_public):
            return
        client = runtime.identify(_sent_key(headers), route.scope)
        if isinstance(client, Refusal):
            challenge = {"www-authenticate": 'Bearer realm="deploykit"'} if client.status == 401 else {}
            raise Problem(client.status, client.reason, client.detail, headers=challenge)
        call.client = client
        if route.uses_engine:
            runtime.require_short_wait(client)
        await runtime.limits.count_request(client)

    async def _handle(self, route: Route, exchange: Exchange) -> None:
        """Answers an admitted request: with the answer to its body, a page, or the response of BentoML."""
        _, scope, receive, headers, call, response = exchange
        if route.body is not None and route.answer is not None:
            files = route.from_files is not None and uploads.are_files(headers)
            if not files:
                expected = uploads.EXPECTED_DETAIL if route.from_files else bodies.JSON_EXPECTED_DETAIL
                bodies.require_type(headers, binary=route.binary, expected=expected)
            with self._body_slots.use(call.client.name):
                body = await bodies.read(receive, headers, self._runtime.settings.max_body_bytes)
            with self._answer_slot(route, call):
                is_large = len(body) > bodies.LARGE_BODY_BYTES
                parsed = await self._runtime.offload.run(is_large, self._parse_body, route, body, headers)
                content = await self._answer(route.answer, parsed, receive, call)
                await response.send(200, content.headers, content.body)
        elif route.render is not None:
            with self._answer_slot(route, call):
                page = await asyncio.to_thread(route.render)
                await response.send(200, {"content-type": route.media_type, **route.headers}, page)
        else:
            with self._answer_slot(route, call):
                async with self._backstop():
                    await self._app(scope, receive, response)
            await response.finish()

    def _parse_body(self, route: Route, body: bytes, headers: Mapping[str, str]) -> BaseModel:
        """Parses and validates the body of a request; the header for binary data counts only on routes that take it."""
        model, max_texts = cast(type[BaseModel], route.body), self._runtime.settings.max_texts
        if route.from_files is not None and uploads.are_files(headers):
            return uploads.parse(model, route.from_files, body, headers, max_texts)
        return bodies.parse(model, body, headers if route.binary else {}, max_texts)

    async def _answer(self, answer: Answer, body: BaseModel, receive: Receive, call: Call) -> Content:
        """Returns the answer to a body; meanwhile watches for the client to disconnect, which ends its wait."""
        call.disconnected = asyncio.get_running_loop().create_future()
        watch = asyncio.create_task(_mark_disconnect(receive, call))
        try:
            async with self._backstop():
                content = await answer(body, call)
                return await self._runtime.offload.run(call.large, _serialize, content)
        except Problem:
            raise
        except Exception:
            logger.exception("request %s failed", call.id)
            raise Problem(500, "failed", FAILED_DETAIL) from None
        finally:
            watch.cancel()

    def _answer_slot(self, route: Route, call: Call) -> AbstractContextManager[None]:
        """Uses a slot for a request in progress while the block lasts; probes and metrics need none."""
        if route.scope is None or route.scope == "metrics":
            return nullcontext()
        return self._answer_slots.use(call.client.name)

    @asynccontextmanager
    async def _backstop(self) -> AsyncIterator[None]:
        """Ends an answer that takes longer than the longest deadline plus `BACKSTOP_DELAY_S`."""
        try:
            async with asyncio.timeout(self._runtime.settings.timeout_s + BACKSTOP_DELAY_S) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(504, "deadline", DEADLINE_DETAIL) from None

    def _send_trace(self, route: Route, status: int, exchange: Exchange) -> None:
        """Sends the trace of a request with a body, if traces are configured; a failure is only logged."""
        if self._runtime.traces is None or route.body is None:
            return
        method, call, headers = exchange.method, exchange.call, exchange.headers
        try:
            call.trace_id = self._runtime.traces.record(call, method, route.path, status, headers)
        except Exception:
            logger.exception("request %s has no trace", call.id)

    async def _refuse(self, response: Response, problem: Problem) -> None:
        """Sends a problem, if that is still possible."""
        with suppress(Exception):  # the connection may be closed
            await response.refuse(problem)
        problem.__traceback__ = None  # a reference cycle would keep the request in memory


def _joined_headers(scope: Scope) -> dict[str, str]:
    """Returns the headers of a request by their names in lower case.

    The values of a header that was sent more than once are joined (RFC 9110, 5.3), so that all code sees the same.
    """
    headers = dict[str, str]()
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _sent_key(headers: Mapping[str, str]) -> str | None:
    """Returns the key or token that the client sent, if any."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    """Returns the deadline that the client sent, in seconds from now; None if it sent none."""
    text = headers.get("x-request-timeout-ms")
    if text is None:
        return None
    if not TIMEOUT_MS_PATTERN.fullmatch(text):
        raise Problem(400, "malformed", "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
    return int(text) / 1000


def _serialize(answer: Any) -> Content:
    """Renders an answer as JSON, unless it is rendered already; NaN and infinity become null."""
    if isinstance(answer, Content):
        return answer
    return Content(to_json(answer, inf_nan_mode="null"), {"content-type": JSON_TYPE})


async def _mark_disconnect(receive: Receive, call: Call) -> None:
    """Waits until the client disconnects, and marks that in the call."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.mark_disconnected()
