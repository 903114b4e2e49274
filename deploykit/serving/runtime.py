"""What a service process serves with: the verified package, its predictor, the batcher, metrics and keys.

It knows nothing of HTTP or BentoML, so that tests need neither. If a package fails its checks (a changed file, golden
answers that moved), the process stays alive and never becomes ready: restarting would not help, and an operator finds
the reason in the log and in the metrics.
"""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter, thread_time

import numpy as np
from pydantic import BaseModel

from deploykit.artifact import Artifact, Manifest, signing
from deploykit.errors import DeploykitError
from deploykit.hardware import cpu_features
from deploykit.inference import fallback, golden
from deploykit.inference.drift import Drift, Feature, entropies
from deploykit.inference.predictor import Predictor
from deploykit.serving.access.check import Client, Keys, Refusal
from deploykit.serving.access.jwt import Tokens
from deploykit.serving.access.keys import Scope
from deploykit.serving.access.rate_limits import Limits, Windows
from deploykit.serving.call import Call
from deploykit.serving.privacy.person_names import Names
from deploykit.serving.privacy.records import Recorder
from deploykit.serving.problems import NOT_READY, Problem, retry_after
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import Batcher
from deploykit.serving.queue.offload import Offload
from deploykit.serving.queue.tokenizing import Read, Reader
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.logs import NEVER_READY
from deploykit.serving.telemetry.metrics import DRIFTING, Metrics
from deploykit.serving.telemetry.traces import Traces
from deploykit.serving.telemetry.watchdog import Watchdog
from deploykit.tasks import Float32, softmax
from deploykit.tokenizer import Encoding, joined

LOOK_S = 5.0  # largest age of another worker's gauges on a page of metrics
LARGE_ANSWER = 1024  # tokens and probabilities; more are decoded and written beside the event loop
PARALLELISM = "TOKENIZERS_PARALLELISM"  # whether the tokenizer takes threads of its own
WARM_S = 1.5  # to compile the likelier shapes of batches before the first request comes

MakeBatcher = Callable[[Predictor, Bounds, Metrics, Manifest], Batcher]
logger = logging.getLogger("deploykit.serving")


def make_batcher(predictor: Predictor, bounds: Bounds, metrics: Metrics, manifest: Manifest) -> Batcher:
    """Makes the queue in front of a predictor's engine."""
    engine = predictor.engine
    clock = thread_time if engine.execution.device == "cpu" else perf_counter  # beside a GPU the thread may sleep
    streams, shape = engine.execution.streams, engine.shape
    return Batcher(predictor.scores, bounds, metrics, manifest.cost, streams, shape=shape, clock=clock)


class Runtime:
    """One process's model and everything around it.

    Args:
        settings: what the process is told.
        artifact: the package.
        routes: the route labels for the metrics.
        make_batcher: makes the queue in front of the engine.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, routes: Sequence[str], make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings, self._make_batcher = settings, make_batcher
        self.keys = None if settings.keys is None else Keys(settings.keys)
        self.tokens = Tokens(*settings.jwt, settings.jwt_limits) if settings.jwt else None
        self.limits = Limits(Windows(settings.redis.get_secret_value()) if settings.redis else None)
        self.traces = Traces(artifact.manifest.name, artifact.manifest.version) if settings.traces else None
        self.metrics = Metrics(routes, artifact.manifest.labels)
        self.drift = Drift(reference_of(artifact.manifest))
        self.records: Recorder | None = None
        self.offload = Offload()
        self.fault = "the model is not loaded yet"
        self._artifact = artifact
        self._predictor: Predictor | None = None
        self._reader: Reader | None = None
        self._batcher: Batcher | None = None
        self._watchdog: Watchdog | None = None
        self._closed = threading.Event()
        self._set_parallelism = False

    def start(self) -> None:
        """Verifies the files, loads what this machine can run, replays the golden set; `fault` says what failed."""
        threading.Thread(target=self._keep_looking, name="gauges", daemon=True).start()
        if self.tokens is not None:
            self.tokens.start()
        self.metrics.features(cpu_features(), self._artifact.manifest.execution.features)
        self._set_parallelism = PARALLELISM not in os.environ
        os.environ.setdefault(PARALLELISM, "false")  # the cores are the engine's
        start = perf_counter()
        try:
            self._artifact.verify()
            if self.settings.signed_by is not None:
                signing.check(self._artifact, self.settings.signed_by)
            predictor, served = fallback.load(self._artifact, self.settings.cores)
            golden.replay(golden.load(self._artifact), predictor, served.expected)
            names = None if self.settings.redact_names is None else Names(self.settings.redact_names)
        except Exception as error:
            self.fault = str(error) or type(error).__name__
            logger.error("%s: %s", NEVER_READY, self.fault, exc_info=not isinstance(error, DeploykitError))
            return
        settings, manifest, execution = self.settings, self._artifact.manifest, served.execution
        model = (manifest.name, manifest.version, manifest.task, execution.engine, execution.precision, served.graph)
        batch_tokens = min(settings.max_batch_tokens, execution.batch_tokens)
        bounds = Bounds(batch_tokens, settings.max_batch_items, settings.max_queue_tokens, settings.max_wait_s)
        shapes = predictor.warm(batch_tokens, WARM_S)
        self._batcher = self._make_batcher(predictor, bounds, self.metrics, manifest)
        self._predictor, self._reader = predictor, Reader(predictor.tokenizer, settings, self.metrics, names)
        self._watchdog = Watchdog(asyncio.get_running_loop(), self._began, settings.stuck_s)
        if settings.records is not None and settings.records_folder is not None:
            folder, kept = settings.records_folder, settings.records
            self.records = Recorder(folder, kept, self._artifact, self.metrics, names)
        self.fault = ""
        gc.freeze()  # what is loaded stays: the collector, which stops every thread, then looks at requests only
        seconds = perf_counter() - start
        self.metrics.model_info.labels(*model).set(1)
        self.metrics.fallback.set(bool(served.reason))
        self.metrics.golden_passed.set(1)
        self.metrics.ready.set(1)
        self.metrics.load_seconds.set(seconds)
        told = (seconds, served.graph, execution, settings.cores, shapes)
        logger.info("ready after %.2f s: %s on %s, cores: %d, shapes compiled: %d", *told)

    def close(self) -> None:
        """Ends the threads once they are done; BentoML calls this when the last request has its answer."""
        self._closed.set()
        gc.unfreeze()
        if self._set_parallelism:
            os.environ.pop(PARALLELISM, None)
        self.metrics.ready.set(0)
        self.fault = "the service is stopping"
        if self._watchdog is not None:
            self._watchdog.close()
        if self.tokens is not None:
            self.tokens.close()
        if self.traces is not None:
            self.traces.close()
        if self._batcher is not None:
            self._batcher.close()
        if self.records is not None:
            self.records.close()
        if self._reader is not None:
            self._reader.close()
        self.offload.close()

    def _began(self) -> float | None:
        return None if self._batcher is None else self._batcher.began

    @property
    def ready(self) -> bool:
        """Whether traffic may come: the model answers, and nobody has asked to let it go."""
        return not self.fault and not self.settings.drain.exists()

    @property
    def alive(self) -> bool:
        """Whether the engine still comes back with its batches."""
        return self._batcher is None or self._batcher.busy_s < self.settings.stuck_s

    def identify(self, text: str | None, scope: Scope) -> Client | Refusal:
        """Decides whether a key, or a token where a provider is known, opens a scope; everybody may without keys."""
        if self.keys is None:
            return Client("none")
        if text and self.tokens is not None and self.tokens.is_one(text):
            return self.tokens.check(text, scope)
        return self.keys.check(text, scope)

    def check(self, client: Client) -> None:
        """Refuses early, where a client's texts wait for too long already, or too many tokens wait.

        Raises:
            Problem: 503 too busy.
        """
        if self._batcher is not None:
            self._batcher.check(client.name)

    async def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None, call: Call, *, counted: bool = True
    ) -> list[BaseModel]:
        """Answers a request.

        Args:
            texts: the first, or only, text of each input.
            pairs: the second texts, for a model that reads pairs.
            call: the request; gains its figures for the log.
            counted: whether these are predictions that the metrics tell of.

        Raises:
            Problem: 503 not ready or too busy, 504 too late, 499 the client left, 500 the model failed.
        """
        predictor, reader, batcher = self._predictor, self._reader, self._batcher
        if self.fault or predictor is None or reader is None or batcher is None:
            raise Problem(503, "not_ready", NOT_READY, headers=retry_after(10))
        start = perf_counter()
        limit = min(self.settings.timeout_s, call.timeout_s or self.settings.timeout_s)
        inputs = await reader.read(texts, pairs, limit, call.gone, call.client.name)
        call.tokenize_s = perf_counter() - start
        call.phases["tokenize"] = (start, start + call.tokenize_s)
        self.metrics.tokenize_seconds.observe(call.tokenize_s)
        parts = [window for windows in inputs for window in windows]
        encodings = [window.encoding for window in parts]
        call.items, call.tokens = len(texts), sum(map(len, encodings))
        call.large = call.tokens + call.items * len(predictor.labels) > LARGE_ANSWER
        left = limit - call.tokenize_s
        batcher.check(call.client.name, list(map(len, encodings)), left)  # who is refused here pays nothing
        await self.limits.tokens(call.client, call.tokens)
        given = [window.text for window in parts]
        found, timing = await batcher.submit(given, encodings, left, call.gone, call.client.name)
        call.queue_s, call.inference_s = timing.queue_s, timing.inference_s
        call.phases["queue"] = (timing.since, timing.since + timing.queue_s)
        call.phases["inference"] = (timing.begun, timing.ended)

        def finish() -> list[BaseModel]:
            """Decodes what the engine returned, counts it, and records it."""
            answers, scores, read = _decoded(predictor, found, inputs, texts)
            if counted:
                self._count(predictor, scores, read)
                if self.records is not None:
                    self.records.answered(call, texts, pairs, read, answers)
            return answers

        return await self.offload.run(call.large, finish)

    def _count(self, predictor: Predictor, found: Sequence[Float32], encodings: Sequence[Encoding]) -> None:
        """Counts the answers of a request, all units at once."""
        self.metrics.read(encodings)
        self.drift.see("length", list(map(len, encodings)))
        units = [len(scores) for scores in found if len(scores)]
        if not units:
            return
        rows = softmax(np.concatenate([scores for scores in found if len(scores)]))
        weights = 1 / np.repeat(units, units)
        best, certain = rows.argmax(axis=1), rows.max(axis=1)
        self.drift.see("label", best, weights)
        self.drift.see("confidence", certain, weights)
        self.metrics.predicted(predictor.labels, best, certain, entropies(rows))

    def page(self) -> bytes:
        """Renders the metrics."""
        self._look()
        return self.metrics.page()

    def _keep_looking(self) -> None:
        """Keeps the gauges of this process true while others are asked for the page of all."""
        while not self._closed.is_set():
            self._look()
            self._closed.wait(LOOK_S)

    def _look(self) -> None:
        """Sets the gauges that tell how things are just now."""
        for name, index in self.drift.psi().items():
            self.metrics.drift.labels(name).set(index)
        self.metrics.process()
        self.metrics.draining.set(self.settings.drain.exists())
        if self._batcher is not None:
            self.metrics.waiting(*self._batcher.waiting())
        if self.keys is not None:
            self.metrics.keys.set(len(self.keys))
            self.metrics.key_failures.set(self.keys.failures)
            self.metrics.key_expiry.set(self.keys.next_expiry() or 0)
        self.metrics.limit_failures.set(self.limits.failures)
        self.metrics.token_failures.set(self.tokens.failures if self.tokens else 0)


def reference_of(manifest: Manifest) -> dict[str, Feature]:
    """Returns the distributions of the texts that the package was judged on; older packages have none."""
    features = manifest.details.get("package", {}).get("reference", {})
    return {name: Feature.model_validate(feature) for name, feature in features.items() if name in DRIFTING}


def _decoded(
    predictor: Predictor, found: Sequence[Float32], inputs: Read, texts: Sequence[str]
) -> tuple[list[BaseModel], list[Float32], list[Encoding]]:
    """Returns the answers, the scores and what was read of each text, of the scores of its windows."""
    task, rest = predictor.task, iter(found)
    scores = [
        next(rest) if len(windows) == 1 else task.merge(list(islice(rest, len(windows))), windows, text)
        for windows, text in zip(inputs, texts, strict=True)
    ]
    read = list(map(joined, inputs))
    rows = zip(scores, texts, read, strict=True)
    return [task.answer(row, text, encoding, predictor.labels) for row, text, encoding in rows], scores, read
