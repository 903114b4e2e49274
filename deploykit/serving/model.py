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
from deploykit.serving.privacy.person_names import PersonNameFinder
from deploykit.serving.privacy.redaction import FindNames
from deploykit.serving.problems import Problem
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import Batcher
from deploykit.serving.queue.tokenizing import TokenizerQueue
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Arrays, Input, Prediction
from deploykit.tokenizer import Features

# Numbers in an answer: probabilities, and those of each token or pair of tokens. Larger answers are decoded outside the
# event loop.
LARGE_ANSWER_NUMBERS = 1024
WARM_UP_BUDGET_S = 1.5  # for compiling the likelier shapes of batches before the service is ready

# makes the queue in front of an engine, as `make_batcher` does
MakeBatcher = Callable[[Predictor, Bounds, Metrics, Manifest], Batcher]


def make_batcher(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> Batcher:
    """Makes the queue in front of a predictor's engine."""
    engine = predictor.engine
    # CPU time would not count the time of a GPU
    clock = thread_time if engine.execution.device == "cpu" else perf_counter
    streams = engine.execution.streams
    return Batcher(predictor.run, bounds, metrics, manifest.cost, streams, padded_shape=engine.shape, clock=clock)


@dataclass(frozen=True)
class ServedModel:
    """A predictor and its queues.

    Attributes:
        predictor: the loaded model.
        served: which graph of the package this machine runs, and how.
        find_names: finds the names of people; None if they are not masked.
        tokenizer: the queue in front of the tokenizer.
        batcher: the queue in front of the engine.
        compiled_shapes: number of batch shapes that were compiled before the first request.
    """

    predictor: Predictor
    served: fallback.Served
    find_names: FindNames | None
    tokenizer: TokenizerQueue
    batcher: Batcher
    compiled_shapes: int

    @classmethod
    def load(cls, settings: Settings, artifact: Artifact, metrics: Metrics, make_batcher: MakeBatcher) -> "ServedModel":
        """Verifies a package, loads the graph that this machine can run, replays the golden set, and starts the queues.

        Raises:
            ArtifactError: a file changed, the signature is wrong, or golden answers moved.
            InputError: the model that finds names of people cannot be loaded.
        """
        artifact.verify()
        if settings.signed_by is not None:
            signing.check(artifact, settings.signed_by)
        predictor, served = fallback.load(artifact, settings.cores)
        golden.replay(golden.load(artifact), predictor, served.expected)
        find_names = None if settings.redact_names is None else PersonNameFinder(settings.redact_names)
        batch_tokens = min(settings.max_batch_tokens, served.execution.batch_tokens)
        bounds = Bounds(batch_tokens, settings.max_batch_items, settings.max_queue_tokens, settings.max_wait_s)
        compiled_shapes = predictor.warm(batch_tokens, WARM_UP_BUDGET_S)

        def encode(inputs: Sequence[Input]) -> list[list[Features]]:
            """Encodes inputs; decodes their images, too, because this runs in the tokenizer's thread."""
            return [[window.with_loaded_arrays() for window in windows] for windows in predictor.encode(inputs)]

        tokenizer = TokenizerQueue(encode, predictor.max_characters, settings, metrics, find_names)
        batcher = make_batcher(predictor, bounds, metrics, artifact.manifest)
        return cls(predictor, served, find_names, tokenizer, batcher, compiled_shapes)

    @cached_property
    def _label_count(self) -> int:
        """Number of labels of the model: each answer has the probabilities of all."""
        return len(tasks.observed_labels(self.predictor.task, self.predictor.spec))

    @cached_property
    def _token_axis_count(self) -> int:
        """How many axes of the largest output are tokens: 1, or 2 if the model scores pairs of tokens."""
        return max(1, *(axes.count("tokens") for axes in self.predictor.task.OUTPUTS.values()))

    def close(self) -> None:
        """Ends the threads after their current work."""
        self.batcher.close()
        self.tokenizer.close()

    async def tokenize(self, inputs: Sequence[Input], timeout_s: float, call: Call) -> list[list[Features]]:
        """Returns the features of the windows of each input; adds the tokens and the time of that to `call`."""
        start = perf_counter()
        try:
            features = await self.tokenizer.tokenize(inputs, timeout_s, call.disconnected, call.client.name)
        except InputError as error:  # an image is damaged, or a text is missing
            raise Problem(422, "invalid", str(error)) from None
        call.tokenize_s = perf_counter() - start
        call.phases["tokenize"] = (start, start + call.tokenize_s)
        lengths = [len(window) for windows in features for window in windows]
        call.input_count, call.token_count = len(inputs), sum(lengths)
        answer_numbers = sum(length**self._token_axis_count for length in lengths) + len(inputs) * self._label_count
        call.large = answer_numbers > LARGE_ANSWER_NUMBERS
        return features

    async def run(self, features: Sequence[Sequence[Features]], timeout_s: float, call: Call) -> list[Arrays]:
        """Waits for the outputs of the model for each window, in order; adds the times of that to `call`.

        Args:
            features: for each input those of its windows.
            timeout_s: seconds until the deadline.
            call: the request.
        """
        all_windows = [window for windows in features for window in windows]
        outputs, timing = await self.batcher.submit(all_windows, timeout_s, call.disconnected, call.client.name)
        call.queue_s, call.inference_s = timing.queue_s, timing.inference_s
        call.phases["queue"] = (timing.arrived_at, timing.arrived_at + timing.queue_s)
        call.phases["inference"] = (timing.first_batch_start, timing.last_batch_end)
        return outputs

    def decode_answers(
        self, inputs: Sequence[Input], features: Sequence[Sequence[Features]], outputs: Sequence[Arrays]
    ) -> tuple[list[BaseModel], list[Prediction]]:
        """Decodes the outputs of the model.

        Args:
            inputs: of the request.
            features: for each input those of its windows.
            outputs: of the model for each window, in the same order.

        Returns:
            The answers and the predictions, one for each input.
        """
        task, spec, remaining_outputs = self.predictor.task, self.predictor.spec, iter(outputs)
        predictions = [
            task.decode(list(islice(remaining_outputs, len(windows))), windows, item, spec)
            for windows, item in zip(features, inputs, strict=True)
        ]
        rows = zip(predictions, features, inputs, strict=True)
        return [task.answer(prediction, windows, item, spec) for prediction, windows, item in rows], predictions
