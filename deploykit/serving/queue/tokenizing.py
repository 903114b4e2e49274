"""Tokenizes the texts of requests: masked if the recipe asks for it, long ones in windows.

Short requests are tokenized on the event loop. Longer ones are tokenized in a thread, in pieces, and clients take turns
(see `fair_queue`), so that one client's long texts do not hold up others. Text beyond the last window is not tokenized.
A request that would wait too long is refused at once.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import perf_counter

from deploykit.serving.privacy.redaction import FindNames, redact
from deploykit.serving.problems import busy
from deploykit.serving.queue import jobs
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, Tokenizer, Window

MAX_INLINE_CHARACTERS = 2000  # of texts and pairs: tokenizing them holds the event loop for about a millisecond
PIECE_CHARACTERS = 16_000  # of one turn of the thread: about ten milliseconds
OVERHANG_CHARACTERS = 256  # read only for masking: they may complete a number or an address at the end of the text
INITIAL_S_PER_CHARACTER = 1e-6  # until the first pieces are measured

TextWindows = list[list[Window]]  # of each text


@dataclass(eq=False)
class _Request:
    """A request; `done` when all its pieces are tokenized, or when the first one fails."""

    client: str
    texts: Sequence[str]
    pairs: Sequence[str] | None
    done: asyncio.Future[None]
    windows: TextWindows = field(default_factory=list)


@dataclass(eq=False)
class _Piece:
    """Some texts of a request. Its length is a rough number of tokens, four characters each."""

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
        tokenizer: of the model.
        settings: say what is masked, the most windows of a text, and the longest wait.
        metrics: count masked data.
        names: finds the names of people, if they are masked.
    """

    def __init__(
        self, tokenizer: Tokenizer, settings: Settings, metrics: Metrics, names: FindNames | None = None
    ) -> None:
        self._tokenizer, self._settings, self._metrics, self._names = tokenizer, settings, metrics, names
        max_tokens = settings.max_windows * tokenizer.max_tokens
        self._max_characters = max_tokens * MAX_CHARACTERS_PER_TOKEN  # of a text; the rest is cut off
        self._waiting: FairQueue[_Piece] = FairQueue()
        self._waits = WaitEstimator(1)
        self._worker: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def tokenize(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        timeout_s: float,
        disconnect: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> TextWindows:
        """Tokenizes the texts of a request; a long text becomes windows, a long pair is cut.

        Args:
            texts: the first, or only, text of each input.
            pairs: the second texts, for a model that reads pairs.
            timeout_s: seconds until the deadline of the request.
            disconnect: done when the client has left.
            client: name of the client; clients share the thread fairly.

        Raises:
            Problem: 503 the wait would be too long, 504 the deadline has passed, 499 the client left.
        """
        finds_names = self._settings.redact and self._names is not None  # takes milliseconds per text
        if not finds_names and sum(map(len, texts)) + sum(map(len, pairs or ())) <= MAX_INLINE_CHARACTERS:
            return self._windows(texts, pairs)
        request = _Request(client, texts, pairs, asyncio.get_running_loop().create_future())
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
        return request.windows

    def close(self) -> None:
        """Ends the thread after its current piece."""
        self._pool.shutdown(wait=False)

    def _pieces(self, request: _Request) -> Iterator[_Piece]:
        """Splits a request into pieces, each tokenized in one turn of the thread; texts are not split."""
        sizes = [min(len(text), self._max_characters) for text in request.texts]
        if request.pairs is not None:
            pair_sizes = [min(len(text), self._max_characters) for text in request.pairs]
            sizes = [sum(both) for both in zip(sizes, pair_sizes, strict=True)]
        start, characters = 0, 0
        for index, size in enumerate(sizes):
            if characters and characters + size > PIECE_CHARACTERS:
                yield _Piece(request, slice(start, index), characters)
                start, characters = index, 0
            characters += size
        yield _Piece(request, slice(start, len(sizes)), characters)

    async def _work(self) -> None:
        """Tokenizes one piece after the other until none waits."""
        while self._waiting:
            piece = self._waiting.first()
            self._waiting.take(piece)
            request, start = piece.job, perf_counter()
            texts, pairs = request.texts[piece.rows], request.pairs and request.pairs[piece.rows]
            loop = asyncio.get_running_loop()
            try:
                windows = await loop.run_in_executor(self._pool, self._windows, texts, pairs)
            except Exception as error:
                jobs.fail(request.done, error)
                continue
            self._waits.learn_batch(perf_counter() - start, piece.seconds)
            request.windows += windows
            if len(request.windows) == len(request.texts) and not request.done.done():
                request.done.set_result(None)

    def _windows(self, texts: Sequence[str], pairs: Sequence[str] | None) -> TextWindows:
        first, second = self._masked(texts), pairs and self._masked(pairs)
        if second is None:
            windows = self._tokenizer.windows(first, self._settings.max_windows)
        else:
            encodings = self._tokenizer.encode(first, second)
            windows = [[Window(text, 0, encoding)] for text, encoding in zip(first, encodings, strict=True)]
        for row, sides in enumerate(zip(texts, pairs or texts, strict=True)):
            if max(map(len, sides)) > self._max_characters:
                last = windows[row][-1]
                windows[row][-1] = replace(last, encoding=replace(last.encoding, truncated=True))
        return windows

    def _masked(self, texts: Sequence[str]) -> Sequence[str]:
        """Returns texts as the model reads them: cut, and masked if the recipe asks for it."""
        if not self._settings.redact:
            return [text[: self._max_characters] for text in texts]
        masked = [redact(text[: self._max_characters + OVERHANG_CHARACTERS], self._names) for text in texts]
        for kind, count in sum((counts for _, counts in masked), Counter[str]()).items():
            self._metrics.redacted.labels(kind).inc(count)
        return [text[: self._max_characters] for text, _ in masked]
