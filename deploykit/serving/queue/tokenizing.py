"""From texts to what the model reads: masked where that is asked for, tokenized, long ones in windows.

Short requests are read on the event loop; longer ones in a thread, in pieces, whose clients take turns (see
`fairness`), so that nobody's long texts hold up those of others. A text is read as far as its windows can hold it;
who would wait for too long is refused at once.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter

from deploykit.serving.privacy.person_names import Names
from deploykit.serving.privacy.redaction import redact
from deploykit.serving.problems import CLIENT_GONE, Problem, busy
from deploykit.serving.queue.batcher import CLIENT_LEFT, MISSED_DEADLINE
from deploykit.serving.queue.fair_queue import FairQueue
from deploykit.serving.queue.wait_estimate import WaitEstimator
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tokenizer import CHARACTERS, Tokenizer, Window

INLINE = 2000  # characters that are read on the event loop: a thread would cost more
PIECE = 16_000  # characters of one turn of the thread: some ten milliseconds
BEHIND = 256  # characters that are masked with those before them, which they may make a number or an address
PACE = 1e-6  # seconds a character, before any were read

Read = list[list[Window]]  # the windows of each text


@dataclass(eq=False)
class Piece:
    """Some texts of a request; its length is in tokens, roughly."""

    job: "Job"
    place: slice
    characters: int
    seconds: float  # that it takes, alone, as far as one can say beforehand

    def __len__(self) -> int:
        return self.characters // 4 + 1


@dataclass(eq=False)
class Job:
    """One request: done when all its pieces are read, or with the first that fails."""

    client: str
    texts: Sequence[str]
    pairs: Sequence[str] | None
    done: asyncio.Future[None]
    found: Read = field(default_factory=list)


class Reader:
    """The thread that reads, and who waits for it.

    Args:
        tokenizer: the model's.
        settings: what is masked, how many windows a text has, and how long anybody waits.
        metrics: where masked data is counted.
        names: finds the names of people, where they are masked.
    """

    def __init__(self, tokenizer: Tokenizer, settings: Settings, metrics: Metrics, names: Names | None = None) -> None:
        self._tokenizer, self._settings, self._metrics, self._names = tokenizer, settings, metrics, names
        self._room = settings.max_windows * tokenizer.max_tokens * CHARACTERS  # characters of a text that are read
        self._waiting: FairQueue[Piece] = FairQueue()
        self._waits = WaitEstimator(1)
        self._work: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def read(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        timeout_s: float,
        gone: asyncio.Future[None] | None = None,
        client: str = "none",
    ) -> Read:
        """Reads the texts of a request, as long as its client waits; a long text becomes windows, a long pair is cut.

        Args:
            texts: the first, or only, text of each input.
            pairs: the second texts, for a model that reads pairs.
            timeout_s: how long the client will wait, in seconds.
            gone: done when the client has left.
            client: who asks; clients share the thread.

        Raises:
            Problem: 503 the wait would be too long, 504 the deadline has passed, 499 the client left.
        """
        finding = self._settings.redact and self._names is not None  # takes milliseconds a text
        if not finding and sum(map(len, texts)) + sum(map(len, pairs or ())) <= INLINE:
            return self._read(texts, pairs)
        job = Job(client, texts, pairs, asyncio.get_running_loop().create_future())
        pieces = list(self._pieces(job))
        ahead = self._waits.estimate_s(self._waiting.ahead_of(client, sum(piece.seconds for piece in pieces)))
        if self._waiting and ahead > min(timeout_s, self._settings.max_wait_s):
            raise busy(self._waits.estimate_s(self._waiting.seconds))
        for piece in pieces:
            self._waiting.add(piece)
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._run())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait({job.done, gone or job.done}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done.done():
                raise Problem(CLIENT_GONE, "client_gone", CLIENT_LEFT)
            job.done.result()
        except TimeoutError:
            raise Problem(504, "deadline", MISSED_DEADLINE) from None
        finally:
            job.done.cancel()  # what the thread still reads has nobody to tell
            for piece in pieces:
                self._waiting.discard(piece)
        return job.found

    def close(self) -> None:
        """Ends the thread once it is done."""
        self._pool.shutdown(wait=False)

    def _pieces(self, job: Job) -> Iterator[Piece]:
        """Parts a request into turns of the thread, of whole texts."""
        sizes = [min(len(text), self._room) for text in job.texts]
        if job.pairs is not None:
            sizes = [size + min(len(pair), self._room) for size, pair in zip(sizes, job.pairs, strict=True)]
        start, characters = 0, 0
        for index, size in enumerate(sizes):
            if characters and characters + size > PIECE:
                yield Piece(job, slice(start, index), characters, characters * PACE)
                start, characters = index, 0
            characters += size
        yield Piece(job, slice(start, len(sizes)), characters, characters * PACE)

    async def _run(self) -> None:
        """Reads pieces, one after the other, until nobody waits."""
        while self._waiting:
            piece = self._waiting.first()
            self._waiting.take(piece)
            job, start = piece.job, perf_counter()
            pairs = job.pairs and job.pairs[piece.place]
            reading = asyncio.get_running_loop().run_in_executor(self._pool, self._read, job.texts[piece.place], pairs)
            try:
                found = await reading
            except Exception as error:
                with suppress(asyncio.InvalidStateError):  # nobody waits any more
                    job.done.set_exception(error)
                continue
            self._waits.learn_batch(perf_counter() - start, piece.seconds)
            job.found += found
            if len(job.found) == len(job.texts) and not job.done.done():
                job.done.set_result(None)

    def _read(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Read:
        first, second = self._masked(texts), pairs and self._masked(pairs)
        if second is None:
            found = self._tokenizer.windows(first, self._settings.max_windows)
        else:
            encodings = self._tokenizer.encode(first, second)
            found = [[Window(text, 0, encoding)] for text, encoding in zip(first, encodings, strict=True)]
        for place, whole in enumerate(zip(texts, pairs or texts, strict=True)):
            if max(map(len, whole)) > self._room:
                last = found[place][-1]
                found[place][-1] = replace(last, encoding=replace(last.encoding, truncated=True))
        return found

    def _masked(self, texts: Sequence[str]) -> Sequence[str]:
        """Returns of texts what the model may read."""
        if not self._settings.redact:
            return [text[: self._room] for text in texts]
        masked = [redact(text[: self._room + BEHIND], self._names) for text in texts]
        for kind, count in sum((found for _, found in masked), Counter[str]()).items():
            self._metrics.redacted.labels(kind).inc(count)
        return [text[: self._room] for text, _ in masked]
