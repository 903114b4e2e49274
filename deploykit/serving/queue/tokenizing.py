"""Tokenizes the texts of requests: masked if the recipe asks for it, long ones in windows.

Short requests are tokenized on the event loop. Longer ones are tokenized in a thread, in pieces, and clients take turns
(see `fair_queue`), so that one client's long texts do not hold up others. Text beyond the last window is not tokenized.
A request that would wait too long is refused at once.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.problems import busy
from deploykit.serving.queue import jobs
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import EMPTY_TEXT_COST, Input
from deploykit.tokenizer import Features

MAX_INLINE_CHARACTERS = 2000  # of texts and pairs: tokenizing them holds the event loop for about a millisecond
PIECE_CHARACTERS = 16_000  # of one turn of the thread: about ten milliseconds
OVERHANG_CHARACTERS = 256  # read only for masking: they may complete a number or an address at the end of the text
INITIAL_S_PER_CHARACTER = 1e-6  # until the first pieces are measured

Encode = Callable[[Sequence[Input]], list[list[Features]]]


@dataclass(eq=False)
class _Request:
    """A request; `done` when all its pieces are tokenized, or when the first one fails."""

    client: str
    inputs: Sequence[Input]
    done: asyncio.Future[None]
    features: list[list[Features]] = field(default_factory=list)


@dataclass(eq=False)
class _Piece:
    """Some inputs of a request. Its length is a rough number of tokens, four characters each."""

    job: _Request
    rows: slice
    characters: int

    @property
    def seconds(self) -> float:
        return self.characters * INITIAL_S_PER_CHARACTER

    def __len__(self) -> int:
        return self.characters // 4 + 1


class TokenizerQueue:
    """The tokenizer's thread, and the requests that wait for it.

    Args:
        encode: tokenizes inputs, as the task does.
        max_characters: of a text that are read; the rest is cut off.
        settings: say what is masked, and the longest wait.
        metrics: count masked data.
        names: finds the names of people, if they are masked.
    """

    def __init__(
        self,
        encode: Encode,
        max_characters: int,
        settings: Settings,
        metrics: Metrics,
        names: FindNames | None = None,
    ) -> None:
        self._encode, self._max_characters = encode, max_characters
        self._settings, self._metrics, self._names = settings, metrics, names
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._waits = WaitEstimator(1)
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def tokenize(
        self,
        inputs: Sequence[Input],
        timeout_s: float,
        disconnect: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> list[list[Features]]:
        """Tokenizes the inputs of a request.

        Args:
            inputs: of the task.
            timeout_s: seconds until the deadline of the request.
            disconnect: done when the client has left.
            client: name of the client; clients share the thread fairly.

        Raises:
            Problem: 503 the wait would be too long, 504 the deadline has passed, 499 the client left.
        """
        finds_names = self._settings.redact and self._names is not None  # takes milliseconds per text
        if not finds_names and sum(item.encoding_cost for item in inputs) <= MAX_INLINE_CHARACTERS:
            return self._features(inputs)
        request = _Request(client, inputs, asyncio.get_running_loop().create_future())
        pieces = list(self._pieces(request))
        ahead_s = self._waits.estimate_s(self._waiting.ahead_of(client, sum(piece.seconds for piece in pieces)))
        if self._waiting and ahead_s > min(timeout_s, self._settings.max_wait_s):
            raise busy(self._waits.estimate_s(self._waiting.seconds))
        for piece in pieces:
            self._waiting.add(piece)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            await jobs.wait(request.done, timeout_s, disconnect)
        finally:
            for piece in pieces:
                self._waiting.discard(piece)
        return request.features

    def close(self) -> None:
        """Ends the thread after its current piece."""
        self._pool.shutdown(wait=False)

    def _pieces(self, request: _Request) -> Iterator[_Piece]:
        """Splits a request into pieces, each tokenized in one turn of the thread; inputs are not split."""
        start, characters = 0, 0
        for index, item in enumerate(request.inputs):
            lengths = (min(len(text), self._max_characters) for text in item.texts)
            size = item.encoding_cost if item.FILES else sum(length + EMPTY_TEXT_COST for length in lengths)
            if characters and characters + size > PIECE_CHARACTERS:
                yield _Piece(request, slice(start, index), characters)
                start, characters = index, 0
            characters += size
        yield _Piece(request, slice(start, len(request.inputs)), characters)

    async def _work(self) -> None:
        """Tokenizes one piece after the other until none waits."""
        while self._waiting:
            piece = self._waiting.first()
            self._waiting.take(piece)
            request, start = piece.job, perf_counter()
            loop = asyncio.get_running_loop()
            try:
                features = await loop.run_in_executor(self._pool, self._features, request.inputs[piece.rows])
            except Exception as error:
                jobs.fail(request.done, error)
                continue
            self._waits.learn_batch(perf_counter() - start, piece.seconds)
            request.features += features
            if len(request.features) == len(request.inputs) and not request.done.done():
                request.done.set_result(None)

    def _features(self, inputs: Sequence[Input]) -> list[list[Features]]:
        """Encodes inputs, masked if the recipe asks for it."""
        return self._encode([item.with_texts(self._masked) for item in inputs] if self._settings.redact else inputs)

    def _masked(self, text: str) -> str:
        """Masks the part of a text that is read."""
        masked, counts = redact(text[: self._max_characters + OVERHANG_CHARACTERS], self._names)
        for kind, count in counts.items():
            self._metrics.redacted.labels(kind).inc(count)
        return masked.ljust(self._max_characters + 1) if len(text) > self._max_characters else masked  # counts as cut
