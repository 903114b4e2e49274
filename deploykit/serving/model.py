"""The model of a service process: loaded, checked and warm, with the queues for its tokenizer and its engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter, thread_time

from pydantic import BaseModel

from deploykit.artifact import Artifact, Manifest, signing
from deploykit.inference import fallback, golden
from deploykit.inference.predictor import Predictor
from deploykit.serving.call import Call
from deploykit.serving.privacy.person_names import Names
from deploykit.serving.privacy.redaction import FindNames
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import Batcher
from deploykit.serving.queue.tokenizing import TextWindows, TokenizerQueue
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Float32
from deploykit.tokenizer import Encoding, joined

LARGE_ANSWER = 1024  # tokens and probabilities; more are decoded and written beside the event loop
WARM_UP_S = 1.5  # to compile the likelier shapes of batches before the first request comes
MakeBatcher = Callable[[Predictor, Bounds, Metrics, Manifest], Batcher]


def make_batcher(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> Batcher:
    """Makes the queue for a predictor's engine."""
    engine = predictor.engine
    clock = thread_time if engine.execution.device == "cpu" else perf_counter  # the thread sleeps while a GPU works
    streams, shape = engine.execution.streams, engine.shape
    return Batcher(predictor.scores, bounds, metrics, manifest.cost, streams, shape=shape, clock=clock)


@dataclass(frozen=True)
class Model:
    """A predictor and its queues.

    `served` says what this machine runs of the package, `names` finds the names of people, if they are masked, and
    `compiled_shapes` counts the shapes of batches that were compiled ahead.
    """

    predictor: Predictor
    served: fallback.Served
    names: FindNames | None
    tokenizer: TokenizerQueue
    batcher: Batcher
    compiled_shapes: int

    @classmethod
    def load(cls, settings: Settings, artifact: Artifact, metrics: Metrics, make_batcher: MakeBatcher) -> "Model":
        """Verifies a package, loads what this machine can run, and replays the golden set.

        Raises:
            ArtifactError: a file changed, the signature is wrong, or golden answers moved.
            InputError: the model that finds names cannot be loaded.
        """
        artifact.verify()
        if settings.signed_by is not None:
            signing.check(artifact, settings.signed_by)
        predictor, served = fallback.load(artifact, settings.cores)
        golden.replay(golden.load(artifact), predictor, served.expected)
        names = None if settings.redact_names is None else Names(settings.redact_names)
        batch_tokens = min(settings.max_batch_tokens, served.execution.batch_tokens)
        bounds = Bounds(batch_tokens, settings.max_batch_items, settings.max_queue_tokens, settings.max_wait_s)
        compiled_shapes = predictor.warm(batch_tokens, WARM_UP_S)
        tokenizer = TokenizerQueue(predictor.tokenizer, settings, metrics, names)
        batcher = make_batcher(predictor, bounds, metrics, artifact.manifest)
        return cls(predictor, served, names, tokenizer, batcher, compiled_shapes)

    def close(self) -> None:
        """Ends the threads after their current work."""
        self.batcher.close()
        self.tokenizer.close()

    async def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, timeout_s: float, call: Call
    ) -> TextWindows:
        """Tokenizes the texts of a request, and notes in `call` how many tokens there are and how long it took."""
        start = perf_counter()
        windows = await self.tokenizer.tokenize(texts, pairs, timeout_s, call.gone, call.client.name)
        call.tokenize_s = perf_counter() - start
        call.phases["tokenize"] = (start, start + call.tokenize_s)
        call.items, call.tokens = len(texts), sum(len(window.encoding) for parts in windows for window in parts)
        call.large = call.tokens + call.items * len(self.predictor.labels) > LARGE_ANSWER
        return windows

    async def scores(self, windows: TextWindows, timeout_s: float, call: Call) -> list[Float32]:
        """Waits for the scores of all windows, and notes in `call` how long that took."""
        parts = [window for text_windows in windows for window in text_windows]
        texts, encodings = [window.text for window in parts], [window.encoding for window in parts]
        scores, timing = await self.batcher.submit(texts, encodings, timeout_s, call.gone, call.client.name)
        call.queue_s, call.inference_s = timing.queue_s, timing.inference_s
        call.phases["queue"] = (timing.since, timing.since + timing.queue_s)
        call.phases["inference"] = (timing.begun, timing.ended)
        return scores

    def answers(
        self, texts: Sequence[str], windows: TextWindows, window_scores: Sequence[Float32]
    ) -> tuple[list[BaseModel], list[Float32], list[Encoding]]:
        """Merges the scores of the windows of each text; returns the answers, scores and encodings of the texts."""
        task, rest = self.predictor.task, iter(window_scores)
        scores = [
            next(rest) if len(parts) == 1 else task.merge(list(islice(rest, len(parts))), parts, text)
            for parts, text in zip(windows, texts, strict=True)
        ]
        encodings = list(map(joined, windows))
        rows = zip(scores, texts, encodings, strict=True)
        answers = [task.answer(row, text, encoding, self.predictor.labels) for row, text, encoding in rows]
        return answers, scores, encodings
