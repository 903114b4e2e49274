"""A client of a running service, for one request at a time or for many: `Client` and `AsyncClient`.

What a busy service refuses (429, 503) is asked again when it says so, and a connection that fails once more, as long
as there is time: asking for a prediction twice does no harm. It needs nothing of a service but its public interface.
"""

import asyncio
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ConfigDict

from deploykit.errors import InputError, ServiceError

AGAIN = (429, 502, 503)  # who answers so has not begun to work
USELESS = (httpx.ReadTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError)  # to try again
LONGEST_S = 999_999.0  # what a service can be told
FIRST_S, MOST_S = 0.1, 5.0  # between two attempts, where the service does not say


class Received(BaseModel):
    """Base of what comes back; fields of newer services are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Entity(Received):
    """A labelled stretch of a text, with character offsets into it."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Prediction(Received):
    """The answer for one text: `label` and `scores` of a classifier of texts, `entities` of one of words.

    `request` is the id of the request that it is of, `index` its place in there.
    """

    request: str = ""
    index: int = 0
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = {}
    entities: list[Entity] = []
    tokens: int
    truncated: bool


class Part(Received):
    """A part of a text, and what the probability of the label loses without it."""

    text: str
    start: int
    end: int
    weight: float


class Explanation(Received):
    """Which parts of a text speak for a label."""

    label: str
    score: float
    parts: list[Part]


DIRECT = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # no proxy reaches this machine
Outcome = httpx.Response | httpx.RequestError | None
Steps = Generator[httpx.Request | float, Outcome, Any]  # a step: a request to send, or seconds to sleep


class _Conversation:
    """What both clients do, but for waiting.

    Args:
        url: of the service, for example `http://127.0.0.1:3000`.
        key: that opens it; None where access control is off.
        timeout_s: for each call, all attempts together; a `Client` bounds every read until an answer begins, and from
            then on looks at the clock with each piece.
        retries: attempts after the first.

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        self._url, self._timeout_s, self._retries = _checked(url), min(timeout_s, LONGEST_S), retries
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("a key has letters, digits, `_`, `-` and `.` only. Copy it again, as it was shown.")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def _predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None) -> Steps:
        if isinstance(texts, str) or isinstance(text_pairs, str):
            raise InputError("texts are a list: predict([text]), not predict(text).")
        texts = list(texts)
        pairs = {} if text_pairs is None else {"text_pairs": list(text_pairs)}

        def read(found: httpx.Response) -> list[Prediction]:
            request, answers = found.headers.get("x-request-id", ""), found.json()["predictions"]
            if len(answers) != len(texts):
                raise ValueError(f"{len(answers)} answers to {len(texts)} texts")
            return [
                Prediction.model_validate({"request": request, "index": at, **one}) for at, one in enumerate(answers)
            ]

        return (yield from self._asked("POST", "/v1/predict", {"texts": texts, **pairs}, read))

    def _explain(self, text: str, label: str | None, text_pair: str | None) -> Steps:
        pairs = {} if text_pair is None else {"text_pairs": [text_pair]}
        body = {"texts": [text], **pairs, **({} if label is None else {"label": label})}
        return (
            yield from self._asked("POST", "/v1/explain", body, lambda found: Explanation.model_validate(found.json()))
        )

    def _feedback(self, prediction: Prediction, label: str, comment: str | None) -> Steps:
        body = {"id": prediction.request, "index": prediction.index, "label": label, "comment": comment}
        return (yield from self._asked("POST", "/v1/feedback", body, lambda found: bool(found.json()["recorded"])))

    def _ready(self) -> Steps:
        found = yield httpx.Request("GET", f"{self._url}/readyz", extensions=_timeouts(self._timeout_s))
        return isinstance(found, httpx.Response) and found.status_code == 200

    def _asked(self, method: str, path: str, body: Mapping[str, Any], read: Callable[[httpx.Response], Any]) -> Steps:
        end = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            left = max(end - time.monotonic(), 0.001)
            headers = {**self._headers, "x-request-timeout-ms": str(max(1, int(1000 * left)))}
            try:
                request = httpx.Request(
                    method, self._url + path, json=body, headers=headers, extensions=_timeouts(left)
                )
            except UnicodeEncodeError as error:
                raise InputError(
                    f"a text holds what is no character: {error}. Replace half surrogates in it."
                ) from None
            found = yield request
            if isinstance(found, httpx.Response) and found.status_code == 200:
                return _content(found, read, self._url)
            pause = _pause(found, attempt)
            if pause is None or attempt == self._retries or time.monotonic() + pause >= end:
                raise _error(found, self._url)
            yield pause
        raise AssertionError("not reached")


class Client(_Conversation):
    """Asks a service and waits.

    Example:
        >>> with Client("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     client.predict(["The invoice is wrong."])[0].label
        'billing'
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        super().__init__(url, key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.Client(event_hooks={"response": [_bound]}, mounts=DIRECT)

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Returns one answer a text, in the order asked.

        Args:
            texts: as many as the service takes at once.
            text_pairs: the second texts, for a model that reads pairs.

        Raises:
            InputError: a text cannot be sent.
            ServiceError: the service refused, failed, did not answer in time, or is none of ours.
        """
        found: list[Prediction] = self._run(self._predict(texts, text_pairs))
        return found

    def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label (default: the most probable).

        Raises:
            ServiceError: the service refused, failed, or did not answer in time.
        """
        found: Explanation = self._run(self._explain(text, label, text_pair))
        return found

    def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Says what the label of an answer should have been; returns whether that is kept: not every answer is.

        Raises:
            ServiceError: the service refused, failed, or did not answer in time; 404 where it keeps no records.
        """
        found: bool = self._run(self._feedback(prediction, label, comment))
        return found

    def ready(self) -> bool:
        """Says whether the service takes traffic; asks once."""
        return bool(self._run(self._ready()))

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps) -> Any:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value
            if isinstance(step, float):
                time.sleep(step)
                outcome = None
                continue
            try:
                outcome = self._http.send(step)
            except httpx.RequestError as error:
                outcome = error


class AsyncClient(_Conversation):
    """Asks a service without holding up the event loop; any number of calls may be in progress.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     (await client.predict(["The invoice is wrong."]))[0].label
        'billing'
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        super().__init__(url, key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.AsyncClient(mounts=DIRECT)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Returns one answer a text; see `Client.predict`."""
        found: list[Prediction] = await self._run(self._predict(texts, text_pairs))
        return found

    async def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label; see `Client.explain`."""
        found: Explanation = await self._run(self._explain(text, label, text_pair))
        return found

    async def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Says what the label of an answer should have been; see `Client.feedback`."""
        found: bool = await self._run(self._feedback(prediction, label, comment))
        return found

    async def ready(self) -> bool:
        """Says whether the service takes traffic; asks once."""
        return bool(await self._run(self._ready()))

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps) -> Any:
        loop, outcome = asyncio.get_running_loop(), None  # type: tuple[asyncio.AbstractEventLoop, Outcome]
        if self._loop not in (None, loop):  # connections belong to the loop that opened them, and end with it
            self._http = httpx.AsyncClient(mounts=DIRECT)
        self._loop = loop
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value
            if isinstance(step, float):
                await asyncio.sleep(step)
                outcome = None
                continue
            try:
                async with asyncio.timeout(step.extensions["end"] - time.monotonic()):
                    outcome = await self._http.send(step)
            except TimeoutError:
                outcome = httpx.ReadTimeout("the answer took too long", request=step)
            except httpx.RequestError as error:
                outcome = error


def _checked(url: str) -> str:
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        found = httpx.URL("")
    if found.scheme not in ("http", "https") or not found.host:
        raise InputError(f"{url!r} is no address of a service. Give one like http://127.0.0.1:3000.")
    return url.rstrip("/")


def _timeouts(seconds: float) -> dict[str, Any]:
    return {"timeout": httpx.Timeout(seconds).as_dict(), "end": time.monotonic() + seconds}


class _Bounded(httpx.SyncByteStream):
    """What is left of an answer, as long as there is time: otherwise every piece may take as long as the whole."""

    def __init__(self, stream: httpx.SyncByteStream, end: float) -> None:
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._end:
                raise httpx.ReadTimeout("the answer took too long")
            yield piece

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx.Response) -> None:
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Bounded(response.stream, response.request.extensions["end"])


def _content(found: httpx.Response, read: Callable[[httpx.Response], Any], url: str) -> Any:
    try:
        return read(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{url} answered, and not as a deploykit service does ({type(error).__name__}): {found.text[:200]!r}."
            " Is this its address?",
            found.status_code,
            found.headers.get("x-request-id"),
        ) from error


def _pause(found: Outcome, attempt: int) -> float | None:
    """Returns how long to wait before the next attempt; None where another one would be of no use."""
    own = min(FIRST_S * 2**attempt, MOST_S) * random.uniform(0.5, 1.0)  # noqa: S311  spreads clients, hides nothing
    if isinstance(found, httpx.Response):
        if found.status_code not in AGAIN:
            return None
        said = found.headers.get("retry-after", "")
        if found.status_code == 429 and not said:  # there will never be room
            return None
        return _told(said, own)
    return None if isinstance(found, USELESS) else own


def _told(said: str, own: float) -> float:
    """Reads Retry-After (RFC 9110): seconds or a date; what is neither leaves the choice to us."""
    if said.isdecimal():
        return float(said)
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return own


def _error(found: Outcome, url: str) -> ServiceError:
    if not isinstance(found, httpx.Response):
        return ServiceError(f"{url} did not answer: {type(found).__name__}. Is the service there, and is it ready?")
    try:
        content = found.json()
        errors = (f"{one['where']}: {one['message']}" for one in content.get("errors", ()))
        detail = "; ".join([content["detail"], *errors])
    except (ValueError, KeyError, TypeError, AttributeError):
        detail = found.text[:200]
    return ServiceError(f"{found.status_code}: {detail}", found.status_code, found.headers.get("x-request-id"))
