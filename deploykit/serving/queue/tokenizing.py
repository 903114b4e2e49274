"""Tokenizes the texts of requests: masks them first if the recipe asks for it, and cuts long ones into windows.

Short requests are tokenized on the event loop. Longer ones are tokenized in a thread, in pieces, and clients take turns
(see `fair_queue`), so that one client's long texts do not delay others. Text beyond the last window is not tokenized.
A request that would wait too long is refused at once.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.problems import queue_full_problem
from deploykit.serving.queue import jobs
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import EMPTY_TEXT_COST, Input
from deploykit.tokenizer import Features

MAX_INLINE_CHARACTERS = 2000  # of all texts of a request: tokenizing them blocks the event loop for about 1 ms
TARGET_PIECE_CHARACTERS = 16_000  # of one turn of the thread, about 10 ms; a longer text is one piece all the same
# Masking reads so many characters beyond the part that the model reads: they may complete a number or an address.
OVERHANG_CHARACTERS = 256
INITIAL_S_PER_CHARACTER = 1e-6  # predicted seconds of tokenizing, until pieces are measured

Encode = Callable[[Sequence[Input]], list[list[Features]]]  # from inputs to the features of the windows of each


@dataclass(eq=False)
class _Request:
    """A request that waits for its tokens.

    Attributes:
        client: name of its client.
        inputs: of the task.
        done: finished when all pieces are tokenized, or when the first one fails.
        features: of the windows of each input that is tokenized already.
    """

    client: str
    inputs: Sequence[Input]
    done: asyncio.Future[None]
    features: list[list[Features]] = field(default_factory=list)


@dataclass(eq=False)
class _Piece:
    """Neighbouring inputs of a request: `rows` of its inputs. `len` estimates their tokens, at 4 characters each."""

    job: _Request
    rows: slice
    characters: int

    @property
    def seconds(self) -> float:
        """Predicted time of the tokenizer, before it was measured."""
        return self.characters * INITIAL_S_PER_CHARACTER

    def __len__(self) -> int:
        return self.characters // 4 + 1


class TokenizerQueue:
    """The tokenizer's thread, and the requests that wait for it.

    Args:
        encode: tokenizes inputs, as the task does.
        max_characters: how many characters of a text are read.
        settings: what is masked, and the longest wait.
        metrics: counts masked data.
        find_names: finds the names of people; None if they are not masked.
    """

    def __init__(
        self,
        encode: Encode,
        max_characters: int,
        settings: Settings,
        metrics: Metrics,
        find_names: FindNames | None = None,
    ) -> None:
        self._encode, self._max_characters = encode, max_characters
        self._settings, self._metrics, self._find_names = settings, metrics, find_names
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._wait_estimator = WaitEstimator(streams=1)
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def tokenize(
        self,
        inputs: Sequence[Input],
        timeout_s: float,
        disconnected: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> list[list[Features]]:
        """Tokenizes the inputs of a request.

        Args:
            inputs: of the task.
            timeout_s: seconds until the deadline of the request.
            disconnected: finished when the client has disconnected.
            client: name of the client; clients share the thread fairly.

        Returns:
            For each input the features of its windows; a short text has one.

        Raises:
            Problem: 503 the wait would be too long, 504 the deadline has passed, 499 the client has disconnected.
        """
        finds_names = self._settings.redact and self._find_names is not None  # takes milliseconds for each text
        if not finds_names and sum(item.encoding_cost for item in inputs) <= MAX_INLINE_CHARACTERS:
            return self._encode_masked(inputs)
        request = _Request(client, inputs, asyncio.get_running_loop().create_future())
        pieces = list(self._split_pieces(request))
        work_ahead_s = self._waiting.work_ahead_s(client, sum(piece.seconds for piece in pieces))
        wait_s = self._wait_estimator.estimate_s(work_ahead_s)
        if self._waiting and wait_s > min(timeout_s, self._settings.max_wait_s):
            raise queue_full_problem(self._wait_estimator.estimate_s(self._waiting.total_s))
        for piece in pieces:
            self._waiting.add(piece)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            await jobs.wait_until_done(request.done, timeout_s, disconnected)
        finally:
            for piece in pieces:
                self._waiting.discard(piece)
        return request.features

    def close(self) -> None:
        """Ends the thread after its current piece."""
        self._pool.shutdown(wait=False)

    def _split_pieces(self, request: _Request) -> Iterator[_Piece]:
        """Splits the inputs of a request into pieces; each takes one turn of the thread. No input is split itself."""
        start, characters = 0, 0
        for index, item in enumerate(request.inputs):
            lengths = (min(len(text), self._max_characters) for text in item.texts)
            size = item.encoding_cost if item.FILES else sum(length + EMPTY_TEXT_COST for length in lengths)
            if characters and characters + size > TARGET_PIECE_CHARACTERS:
                yield _Piece(request, slice(start, index), characters)
                start, characters = index, 0
            characters += size
        yield _Piece(request, slice(start, len(request.inputs)), characters)

    async def _work(self) -> None:
        """Tokenizes one piece after the other until none waits."""
        while self._waiting:
            piece = self._waiting.next_item()
            self._waiting.take(piece)
            request, start = piece.job, perf_counter()
            loop = asyncio.get_running_loop()
            try:
                features = await loop.run_in_executor(self._pool, self._encode_masked, request.inputs[piece.rows])
            except Exception as error:
                jobs.fail(request.done, error)
                continue
            self._wait_estimator.learn_batch(perf_counter() - start, piece.seconds)
            request.features += features
            if len(request.features) == len(request.inputs) and not request.done.done():
                request.done.set_result(None)

    def _encode_masked(self, inputs: Sequence[Input]) -> list[list[Features]]:
        """Encodes inputs; masks them first, if the recipe asks for it."""
        if self._settings.redact:
            inputs = [item.with_texts(self._mask) for item in inputs]
        return self._encode(inputs)

    def _mask(self, text: str) -> str:
        """Masks personal data in the part of a text that is read, and counts it.

        The result is longer than that part if the text is, so that the tokenizer still counts the text as cut.
        """
        masked, counts = redact(text[: self._max_characters + OVERHANG_CHARACTERS], self._find_names)
        for kind, count in counts.items():
            self._metrics.redacted.labels(kind).inc(count)
        return masked
