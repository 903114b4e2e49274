"""The door: a plain ASGI application around BentoML's, through which every request passes.

It stands outside BentoML's own middleware, because that would count, log and parse requests before anyone
had asked whether they are allowed. What is not in the table of routes does not exist; a body is read here, up
to its cap, checked against the schema and answered; only what has none goes on to BentoML. Errors from inside
leave as problem details, and when anything in here fails, the request is refused at once and not let through.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from time import perf_counter

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploykit.serving.access.check import Client, Refusal
from deploykit.serving.api.schemas import faults
from deploykit.serving.call import Call, new_id
from deploykit.serving.http import cors, json_bounds
from deploykit.serving.http.connections import require_few
from deploykit.serving.http.response import FAILED, NO_CONTENT, Reply
from deploykit.serving.http.routes import JSON, UNKNOWN, Route, match
from deploykit.serving.problems import CLIENT_GONE, Problem, retry_after
from deploykit.serving.runtime import Runtime
from deploykit.serving.telemetry.logs import request_line

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MOST_IN_FLIGHT = 512  # each may hold a body; more are refused before it is read
BACKSTOP_S = 5.0  # this much after the batcher's own deadline, which should always come first
DIGITS = 9  # of milliseconds
CONDITIONS = (b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since")
BODY_S = 20.0  # a client that sends its body slower than this is not waited for

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
        self._in_flight = 0

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
        self._in_flight += 1
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
                self._in_flight -= 1
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
        if route.scope is not None and self._in_flight > MOST_IN_FLIGHT:
            raise Problem(503, "busy", f"{MOST_IN_FLIGHT} requests are in progress", headers=retry_after(1))

    async def _handle(
        self, route: Route, scope: Scope, receive: Receive, reply: Reply, headers: Mapping[str, str], call: Call
    ) -> None:
        """Answers an admitted request; one with a body only as long as the client stays."""
        if route.page is not None:
            told = {"content-type": route.media, **route.headers}
            await reply.whole(200, told, await asyncio.to_thread(route.page))
            return
        if route.body is None or route.answer is None:
            async with self._in_time():
                await self._app(_plain(scope), _nothing(receive), reply)
            await reply.finish()
            return
        _require_json(headers)
        asked = _validated(route.body, await self._body(receive, headers))
        call.gone = asyncio.get_running_loop().create_future()
        watch = asyncio.create_task(_watch(receive, call))
        try:
            async with self._in_time():
                found = to_json(await route.answer(asked, call), inf_nan_mode="null")
        except Problem:
            raise
        except Exception:
            logger.exception("request %s failed", call.id)
            raise Problem(500, "failed", FAILED) from None
        finally:
            watch.cancel()
        await reply.whole(200, {"content-type": JSON}, found)

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

    async def _body(self, receive: Receive, headers: Mapping[str, str]) -> bytes:
        """Reads a body up to its cap; what the client announces is believed only if it is too much."""
        most = self._runtime.settings.max_body_bytes
        announced = headers.get("content-length", "")
        too_large = Problem(413, "too_large", f"a body may have {most} bytes; send fewer texts at once")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        try:
            async with asyncio.timeout(BODY_S):
                found = await _read(receive, most)
        except TimeoutError:
            raise Problem(408, "slow", f"the body did not arrive within {BODY_S:g} s") from None
        if found is None:
            raise too_large
        return found

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


def _plain(scope: Scope) -> Scope:
    """Takes out what asks for parts of a file, or for none that is known: nothing here is worth that code."""
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in CONDITIONS]}


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


async def _read(receive: Receive, most: int) -> bytes | None:
    """Reads a body; None as soon as it is longer than `most` bytes."""
    found, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(CLIENT_GONE, "client_gone", "the client left before its request was complete")
        found += message.get("body", b"")
        more = message.get("more_body", False)
        if len(found) > most:
            return None
    return bytes(found)


def _require_json(headers: Mapping[str, str]) -> None:
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, "media_type", "send JSON, with the header `Content-Type: application/json`")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "media_type", "send the body as it is, without a content encoding")


def _validated(model: type[BaseModel], body: bytes) -> BaseModel:
    if json_bounds.too_deep(body):
        raise Problem(
            400, "malformed", f"the body is not JSON that is read here: it nests over {json_bounds.MOST} levels"
        )
    if json_bounds.too_many(body):
        detail = f"the body has over {json_bounds.MEMBERS} objects and names; send fewer texts at once"
        raise Problem(400, "malformed", detail)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise Problem(400, "malformed", f"the body is not JSON: {errors[0]['msg']}") from None
        detail = f"the body does not fit: {len(errors)} mistake{'s' * (len(errors) > 1)}, see errors"
        raise Problem(422, "invalid", detail, errors=faults(errors)) from None


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
