"""What a service process serves with: the model, access control, and what observes them.

It knows nothing of HTTP or BentoML, so that tests need neither. If a package fails its checks (a changed file, golden
answers that moved), the process stays alive and never becomes ready: restarting would not help, and an operator finds
the reason in the log and in the metrics.
"""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter

from pydantic import BaseModel

from deploykit import tasks
from deploykit.artifact import Artifact
from deploykit.errors import DeploykitError
from deploykit.hardware import cpu_features
from deploykit.serving.access.check import Keys, Refusal
from deploykit.serving.access.jwt import Tokens
from deploykit.serving.access.rate_limits import Limits, Windows
from deploykit.serving.call import Call, Client, Scope
from deploykit.serving.model import MakeBatcher, Model, make_batcher
from deploykit.serving.privacy.records import Recorder
from deploykit.serving.problems import NOT_READY, Problem, retry_after
from deploykit.serving.queue.offload import Offload
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.logs import NEVER_READY
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.serving.telemetry.predictions import PredictionStatistics
from deploykit.serving.telemetry.traces import Traces
from deploykit.serving.telemetry.watchdog import Watchdog
from deploykit.tasks import Input
from deploykit.tokenizer import join_windows

GAUGES_S = 5.0  # between two updates of the gauges, which other workers show on their page of metrics
RETRY_NOT_READY_S = 10
TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"  # environment variable: whether the tokenizer starts threads of its own

logger = logging.getLogger("deploykit.serving")


class Runtime:
    """One process's model and everything around it.

    Args:
        settings: of the process.
        artifact: the package.
        routes: the route labels for the metrics.
        make_batcher: makes the queue for the engine.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, routes: Sequence[str], make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings = settings
        self.keys = None if settings.keys is None else Keys(settings.keys)
        self.tokens = Tokens(*settings.jwt, settings.jwt_limits) if settings.jwt else None
        self.limits = Limits(Windows(settings.redis.get_secret_value()) if settings.redis else None)
        self.traces = Traces(artifact.manifest.name, artifact.manifest.version) if settings.traces else None
        task, spec = tasks.task_of(artifact.manifest), tasks.spec_of(artifact.manifest)
        self.metrics = Metrics(routes, tasks.observed_labels(task, spec))
        self.records: Recorder | None = None
        self.offload = Offload()
        self.fault = "the model is not loaded yet"
        self._statistics = PredictionStatistics(self.metrics, artifact.manifest)
        self._artifact, self._make_batcher = artifact, make_batcher
        self._model: Model | None = None
        self._closing = ExitStack()  # closed in reverse order

    def start(self) -> None:
        """Loads the model and starts what observes it; `fault` says why the service cannot answer."""
        self._closing.callback(self.offload.close)
        if self.traces is not None:
            self._closing.callback(self.traces.close)
        if self.tokens is not None:
            self.tokens.start()
            self._closing.callback(self.tokens.close)
        if TOKENIZER_THREADS not in os.environ:
            os.environ[TOKENIZER_THREADS] = "false"  # the cores are the engine's
            self._closing.callback(os.environ.pop, TOKENIZER_THREADS, None)
        self._start_gauges()
        settings, start = self.settings, perf_counter()
        try:
            model = Model.load(settings, self._artifact, self.metrics, self._make_batcher)
        except Exception as error:
            self.fault = str(error) or type(error).__name__
            logger.error("%s: %s", NEVER_READY, self.fault, exc_info=not isinstance(error, DeploykitError))
            return
        self._model = model
        self._closing.callback(model.close)
        if settings.records is not None and settings.records_folder is not None:
            written, dropped = self.metrics.records_written, self.metrics.records_dropped
            folder, options = settings.records_folder, settings.records
            self.records = Recorder(folder, options, self._artifact, written, dropped, model.names)
            self._closing.callback(self.records.close)
        watchdog = Watchdog(asyncio.get_running_loop(), lambda: model.batcher.oldest_start, settings.stuck_s)
        self._closing.callback(watchdog.close)
        gc.freeze()  # collections, which stop every thread, skip what is loaded
        self._closing.callback(gc.unfreeze)
        self._set_ready(model, perf_counter() - start)

    def close(self) -> None:
        """Ends the threads once they are done; BentoML calls this when the last request has its answer."""
        self.metrics.ready.set(0)
        self.fault = "the service is stopping"
        self._statistics.count()
        self._closing.close()

    @property
    def ready(self) -> bool:
        """Whether the model answers, and the service is not told to drain."""
        return not self.fault and not self.settings.drain.exists()

    @property
    def alive(self) -> bool:
        """Whether the engine still finishes its batches."""
        return self._model is None or self._model.batcher.oldest_batch_s < self.settings.stuck_s

    def identify(self, text: str | None, scope: Scope) -> Client | Refusal:
        """Decides whether a key or an identity provider's token opens a scope; without keys, every request may."""
        if self.keys is None:
            return Client("none")
        if text and self.tokens is not None and self.tokens.is_one(text):
            return self.tokens.check(text, scope)
        return self.keys.check(text, scope)

    def check(self, client: Client) -> None:
        """Refuses a request before its body is read, if its texts would wait too long.

        Raises:
            Problem: 503 too busy.
        """
        if self._model is not None:
            self._model.batcher.check(client.name)

    async def predict(self, inputs: Sequence[Input], call: Call, *, counted: bool = True) -> list[BaseModel]:
        """Answers a request.

        Args:
            inputs: of the task.
            call: the request; gains its times and counts for the log.
            counted: whether the answers are counted in the metrics and recorded.

        Raises:
            Problem: 503 not ready or too busy, 504 too late, 499 the client left, 500 the model failed.
        """
        model = self._model
        if self.fault or model is None:
            raise Problem(503, "not_ready", NOT_READY, headers=retry_after(RETRY_NOT_READY_S))
        timeout_s = min(self.settings.timeout_s, call.timeout_s or self.settings.timeout_s)
        features = await model.tokenize(inputs, timeout_s, call)
        self.metrics.tokenize_seconds.observe(call.tokenize_s)
        timeout_s -= call.tokenize_s
        lengths = [len(part) for parts in features for part in parts]
        model.batcher.check(call.client.name, lengths, timeout_s)  # before its tokens are charged to the client
        await self.limits.tokens(call.client, call.tokens)
        outputs = await model.run(features, timeout_s, call)

        def finish() -> list[BaseModel]:
            """Decodes what the engine returned, counts it and records it."""
            answers, predictions = model.answers(inputs, features, outputs)
            if counted:
                self._statistics.add(predictions, list(map(join_windows, features)))
                if self.records is not None:
                    self.records.answered(call, inputs, features, answers)
            return answers

        return await self.offload.run(call.large, finish)

    def page(self) -> bytes:
        """Renders the metrics."""
        self._update_gauges()
        return self.metrics.page()

    def _set_ready(self, model: Model, seconds: float) -> None:
        self.fault = ""
        manifest, served, execution = self._artifact.manifest, model.served, model.served.execution
        self.metrics.model_info.labels(
            *(manifest.name, manifest.version, manifest.task, execution.engine, execution.precision, served.graph)
        ).set(1)
        self.metrics.fallback.set(bool(served.reason))
        self.metrics.golden_passed.set(1)
        self.metrics.ready.set(1)
        self.metrics.load_seconds.set(seconds)
        message = "ready after %.2f s: %s on %s, cores: %d, shapes compiled: %d"
        logger.info(message, seconds, served.graph, execution, self.settings.cores, model.compiled_shapes)

    def _start_gauges(self) -> None:
        """Keeps the gauges of this process up to date, because another worker may be asked for the page of all."""
        closed = threading.Event()
        self._closing.callback(closed.set)

        def keep_updated() -> None:
            while not closed.is_set():
                self._update_gauges()
                closed.wait(GAUGES_S)

        self.metrics.features(cpu_features(), self._artifact.manifest.execution.features)
        threading.Thread(target=keep_updated, name="gauges", daemon=True).start()

    def _update_gauges(self) -> None:
        self._statistics.count()
        self.metrics.process()
        self.metrics.draining.set(self.settings.drain.exists())
        if self._model is not None:
            self.metrics.waiting(*self._model.batcher.waiting())
        if self.keys is not None:
            self.metrics.keys.set(len(self.keys))
            self.metrics.key_failures.set(self.keys.failures)
            self.metrics.key_expiry.set(self.keys.next_expiry() or 0)
        self.metrics.limit_failures.set(self.limits.failures)
        self.metrics.token_failures.set(self.tokens.failures if self.tokens else 0)
