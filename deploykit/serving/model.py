"""The model of a service process: loaded, checked and warm, with the queues for its tokenizer and its engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from time import perf_counter, thread_time

from pydantic import BaseModel

from deploykit import tasks
from deploykit.artifact import Artifact, Manifest, signing
from deploykit.errors import InputError
from deploykit.inference import fallback, golden
from deploykit.inference.predictor import Predictor
from deploykit.serving.call import Call
from deploykit.serving.privacy.person_names import Names
from deploykit.serving.privacy.redaction import FindNames
from deploykit.serving.problems import Problem
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import Batcher
from deploykit.serving.queue.tokenizing import TokenizerQueue
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Arrays, Input, Prediction
from deploykit.tokenizer import Features

LARGE_ANSWER = 1024  # tokens, or pairs of them, and probabilities; more are decoded beside the event loop
WARM_UP_S = 1.5  # to compile the likelier shapes of batches before the first request comes
MakeBatcher = Callable[[Predictor, Bounds, Metrics, Manifest], Batcher]


def make_batcher(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> Batcher:
    """Makes the queue for a predictor's engine."""
    engine = predictor.engine
    clock = thread_time if engine.execution.device == "cpu" else perf_counter  # the thread sleeps while a GPU works
    streams, shape = engine.execution.streams, engine.shape
    return Batcher(predictor.run, bounds, metrics, manifest.cost, streams, shape=shape, clock=clock)


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

        def encode(inputs: Sequence[Input]) -> list[list[Features]]:
            """Decodes images here, too: in the tokenizer's thread."""
            return [[part.with_loaded_arrays() for part in parts] for parts in predictor.encode(inputs)]

        tokenizer = TokenizerQueue(encode, predictor.max_characters, settings, metrics, names)
        batcher = make_batcher(predictor, bounds, metrics, artifact.manifest)
        return cls(predictor, served, names, tokenizer, batcher, compiled_shapes)

    @cached_property
    def _labels(self) -> int:
        """Number of labels that an answer may have."""
        return len(tasks.observed_labels(self.predictor.task, self.predictor.spec))

    @cached_property
    def _token_axes(self) -> int:
        """How often the tokens are an axis of an output: 2 for pairs of tokens."""
        return max(1, *(axes.count("tokens") for axes in self.predictor.task.OUTPUTS.values()))

    def close(self) -> None:
        """Ends the threads after their current work."""
        self.batcher.close()
        self.tokenizer.close()

    async def tokenize(self, inputs: Sequence[Input], timeout_s: float, call: Call) -> list[list[Features]]:
        """Tokenizes the inputs of a request, and notes in `call` how many tokens there are and how long it took."""
        start = perf_counter()
        try:
            features = await self.tokenizer.tokenize(inputs, timeout_s, call.gone, call.client.name)
        except InputError as error:  # an image is damaged, or a text is missing
            raise Problem(422, "invalid", str(error)) from None
        call.tokenize_s = perf_counter() - start
        call.phases["tokenize"] = (start, start + call.tokenize_s)
        call.items, call.tokens = len(inputs), sum(len(part) for parts in features for part in parts)
        sizes = (len(part) ** self._token_axes for parts in features for part in parts)
        call.large = sum(sizes) + call.items * self._labels > LARGE_ANSWER
        return features

    async def run(self, features: Sequence[Sequence[Features]], timeout_s: float, call: Call) -> list[Arrays]:
        """Waits for the outputs of the model for all features, and notes in `call` how long that took."""
        parts = [part for of_input in features for part in of_input]
        outputs, timing = await self.batcher.submit(parts, timeout_s, call.gone, call.client.name)
        call.queue_s, call.inference_s = timing.queue_s, timing.inference_s
        call.phases["queue"] = (timing.since, timing.since + timing.queue_s)
        call.phases["inference"] = (timing.begun, timing.ended)
        return outputs

    def answers(
        self, inputs: Sequence[Input], features: Sequence[Sequence[Features]], outputs: Sequence[Arrays]
    ) -> tuple[list[BaseModel], list[Prediction]]:
        """Decodes the outputs of the model; returns the answers and the predictions, one for each input."""
        task, spec, rest = self.predictor.task, self.predictor.spec, iter(outputs)
        predictions = [
            task.decode(list(islice(rest, len(parts))), parts, item, spec)
            for parts, item in zip(features, inputs, strict=True)
        ]
        rows = zip(predictions, features, inputs, strict=True)
        return [task.answer(prediction, parts, item, spec) for prediction, parts, item in rows], predictions
