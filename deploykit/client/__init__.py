"""A client of a running service, blocking or asynchronous: `Client` and `AsyncClient`.

It uses the service's public HTTP interface only.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import httpx

from deploykit.client.answers import Entity, Explanation, Part, Prediction, Ranked, Relation
from deploykit.client.conversation import Conversation, Outcome, Steps, T

NO_PROXY = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # no proxy reaches this machine


class Client(Conversation):
    """Sends requests to a service and waits for the answers.

    Example:
        >>> with Client("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     client.predict(["The invoice is wrong."])[0].label
        'billing'
    """

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(event_hooks={"response": [_bound_stream]}, mounts=NO_PROXY)

    def predict(
        self,
        texts: Sequence[str] = (),
        text_pairs: Sequence[str] | None = None,
        *,
        inputs: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Prediction]:
        """Returns one answer a text, in the order of the texts.

        Args:
            texts: as many as the service accepts at once.
            text_pairs: the second texts, for a model that reads pairs.
            inputs: for tasks whose inputs are not texts alone, such as `{"question": ..., "context": ...}`, or
                `{"image": Path("photo.jpg")}` with the path or the bytes of a file.

        Raises:
            InputError: a text cannot be sent.
            ServiceError: the service refused, failed or did not answer in time, or it is no deploykit service.
        """
        return self._run(self._predict(texts, text_pairs, inputs))

    def rank(self, query: str, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Returns candidates for a query, the most relevant first (default: all of them).

        Raises:
            InputError: a text cannot be sent.
            ServiceError: the service refused, failed, or did not answer in time; 404 if its model ranks nothing.
        """
        return self._run(self._rank(query, candidates, top_k))

    def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label (default: the most probable).

        Raises:
            ServiceError: the service refused, failed, or did not answer in time.
        """
        return self._run(self._explain(text, label, text_pair))

    def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Tells the service the right label of an answer; returns whether that is stored: not every answer is recorded.

        Raises:
            ServiceError: the service refused, failed, or did not answer in time; 404 if it keeps no records.
        """
        return self._run(self._feedback(prediction, label, comment))

    def ready(self) -> bool:
        """Says whether the service is ready; asks once."""
        return self._run(self._ready())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            outcome = self._do(step)

    def _do(self, step: httpx.Request | float) -> Outcome:
        if isinstance(step, float):
            time.sleep(step)
            return None
        try:
            return self._http.send(step)
        except httpx.RequestError as error:
            return error


class AsyncClient(Conversation):
    """Sends requests to a service without blocking the event loop; any number of calls may be in progress.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     (await client.predict(["The invoice is wrong."]))[0].label
        'billing'
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _http: httpx.AsyncClient

    async def predict(
        self,
        texts: Sequence[str] = (),
        text_pairs: Sequence[str] | None = None,
        *,
        inputs: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Prediction]:
        """Returns one answer a text; see `Client.predict`."""
        return await self._run(self._predict(texts, text_pairs, inputs))

    async def rank(self, query: str, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Returns candidates for a query, the most relevant first; see `Client.rank`."""
        return await self._run(self._rank(query, candidates, top_k))

    async def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label; see `Client.explain`."""
        return await self._run(self._explain(text, label, text_pair))

    async def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Tells the service the right label of an answer; see `Client.feedback`."""
        return await self._run(self._feedback(prediction, label, comment))

    async def ready(self) -> bool:
        """Says whether the service is ready; asks once."""
        return await self._run(self._ready())

    async def close(self) -> None:
        """Closes the connections."""
        if self._loop is not None:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop that opened them, and end with it
            self._loop, self._http = loop, httpx.AsyncClient(mounts=NO_PROXY)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            outcome = await self._do(step)

    async def _do(self, step: httpx.Request | float) -> Outcome:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            async with asyncio.timeout(step.extensions["end"] - time.monotonic()):
                return await self._http.send(step)
        except TimeoutError:
            return httpx.ReadTimeout("the answer took too long", request=step)
        except httpx.RequestError as error:
            return error


class _BoundedStream(httpx.SyncByteStream):
    """The rest of a response until the end of its time; httpx's own timeout starts again with every piece."""

    def __init__(self, stream: httpx.SyncByteStream, end: float) -> None:
        self._stream, self._end = stream, end

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._end:
                raise httpx.ReadTimeout("the answer took too long")
            yield piece

    def close(self) -> None:
        self._stream.close()


def _bound_stream(response: httpx.Response) -> None:
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _BoundedStream(response.stream, response.request.extensions["end"])


__all__ = ["AsyncClient", "Client", "Entity", "Explanation", "Part", "Prediction", "Ranked", "Relation"]
