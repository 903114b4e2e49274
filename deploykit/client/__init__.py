"""A client of a running service, blocking or asynchronous: `Client` and `AsyncClient`.

It uses the service's public HTTP interface only.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from deploykit.client.answers import Entity, Explanation, Part, Prediction
from deploykit.client.conversation import Conversation, Outcome, Steps

NO_PROXY = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # no proxy reaches this machine


class Client(Conversation):
    """Asks a service and waits.

    Example:
        >>> with Client("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     client.predict(["The invoice is wrong."])[0].label
        'billing'
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        super().__init__(url, key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.Client(event_hooks={"response": [_bound_stream]}, mounts=NO_PROXY)

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


class AsyncClient(Conversation):
    """Asks a service without holding up the event loop; any number of calls may be in progress.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     (await client.predict(["The invoice is wrong."]))[0].label
        'billing'
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        super().__init__(url, key, timeout_s=timeout_s, retries=retries)
        self._http = httpx.AsyncClient(mounts=NO_PROXY)
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
            self._http = httpx.AsyncClient(mounts=NO_PROXY)
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


class _BoundedStream(httpx.SyncByteStream):
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


def _bound_stream(response: httpx.Response) -> None:
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _BoundedStream(response.stream, response.request.extensions["end"])


__all__ = ["AsyncClient", "Client", "Entity", "Explanation", "Part", "Prediction"]
