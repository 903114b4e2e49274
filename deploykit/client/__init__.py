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
from deploykit.client.conversation import Conversation, Outcome, RequestOrPause, Steps, T

# Requests to this machine go past the proxy that the environment names, since a proxy cannot reach it.
NO_PROXY_MOUNTS = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}


class Client(Conversation):
    """Sends requests to a service and waits for the answers.

    Example:
        >>> with Client("http://127.0.0.1:3000", key) as client:  # doctest: +SKIP
        ...     client.predict(["The invoice is wrong."])[0].label
        'billing'
    """

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(event_hooks={"response": [_bound_stream]}, mounts=NO_PROXY_MOUNTS)

    def predict(
        self,
        texts: Sequence[str] = (),
        text_pairs: Sequence[str] | None = None,
        *,
        inputs: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Prediction]:
        """Returns one prediction per text, in the order of the texts.

        Args:
            texts: at most as many as the service accepts in one request.
            text_pairs: the second text of each pair, for a model that reads pairs.
            inputs: in place of texts, for tasks that read something else: `{"question": ..., "context": ...}`, or
                `{"image": Path("photo.jpg")}` with the path or the bytes of a file.

        Raises:
            InputError: the arguments have the wrong form, or a text or file cannot be sent.
            ServiceError: the service refused, failed or did not answer in time, or it is no deploykit service.
        """
        return self._run(self._predict(texts, text_pairs, inputs))

    def rank(self, query: str, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Returns the candidates for a query, the most relevant first.

        Args:
            query: what the candidates are ranked by.
            candidates: the texts to rank.
            top_k: how many to return; None returns all of them.

        Raises:
            InputError: the arguments have the wrong form, or a text cannot be sent.
            ServiceError: the service refused, failed, or did not answer in time; 404 if its model ranks nothing.
        """
        return self._run(self._rank(query, candidates, top_k))

    def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label.

        Args:
            text: the text, or the first of a pair.
            label: one of the labels of the model; None takes the most probable one.
            text_pair: the second text, for a model that reads pairs.

        Raises:
            InputError: a text cannot be sent.
            ServiceError: the service refused, failed, or did not answer in time.
        """
        return self._run(self._explain(text, label, text_pair))

    def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Tells the service the right label for a prediction.

        Args:
            prediction: from `predict`.
            label: the right label, one of those of the model.
            comment: a note for those who read the feedback.

        Returns:
            Whether the feedback was recorded. A service records feedback only on predictions that it has recorded, and
            it records only a share of its predictions.

        Raises:
            InputError: the comment cannot be sent.
            ServiceError: the service refused, failed, or did not answer in time; 404 if it keeps no records.
        """
        return self._run(self._feedback(prediction, label, comment))

    def ready(self) -> bool:
        """Tells whether the service is ready; asks once, without retries."""
        return self._run(self._ready())

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        """Takes the steps of a call one by one, and returns the answer at their end."""
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            outcome = self._take_step(step)

    def _take_step(self, step: RequestOrPause) -> Outcome:
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
        """Returns one prediction per text; see `Client.predict`."""
        return await self._run(self._predict(texts, text_pairs, inputs))

    async def rank(self, query: str, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """Returns the candidates for a query, the most relevant first; see `Client.rank`."""
        return await self._run(self._rank(query, candidates, top_k))

    async def explain(self, text: str, label: str | None = None, text_pair: str | None = None) -> Explanation:
        """Returns which parts of a text speak for a label; see `Client.explain`."""
        return await self._run(self._explain(text, label, text_pair))

    async def feedback(self, prediction: Prediction, label: str, comment: str | None = None) -> bool:
        """Tells the service the right label for a prediction; see `Client.feedback`."""
        return await self._run(self._feedback(prediction, label, comment))

    async def ready(self) -> bool:
        """Tells whether the service is ready; asks once, without retries."""
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
        """Takes the steps of a call one by one, and returns the answer at their end."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # connections belong to the loop that opened them, and end with it
            self._loop, self._http = loop, httpx.AsyncClient(mounts=NO_PROXY_MOUNTS)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            outcome = await self._take_step(step)

    async def _take_step(self, step: RequestOrPause) -> Outcome:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            async with asyncio.timeout(step.extensions["deadline"] - time.monotonic()):
                return await self._http.send(step)
        except TimeoutError:
            return httpx.ReadTimeout("the answer took too long", request=step)
        except httpx.RequestError as error:
            return error


class _BoundedStream(httpx.SyncByteStream):
    """The body of a response, which raises `httpx.ReadTimeout` after a deadline.

    The timeout of httpx does not suffice, because it starts again with every chunk.

    Args:
        stream: the body.
        deadline: on the clock `time.monotonic`.
    """

    def __init__(self, stream: httpx.SyncByteStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("the answer took too long")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _bound_stream(response: httpx.Response) -> None:
    """Gives the body of a response the deadline of its request."""
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _BoundedStream(response.stream, response.request.extensions["deadline"])


__all__ = ["AsyncClient", "Client", "Entity", "Explanation", "Part", "Prediction", "Ranked", "Relation"]
