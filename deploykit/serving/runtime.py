"""The runtime of a service process: the model, access control, limits, metrics, records and traces.

It knows nothing of HTTP or BentoML, so that tests need neither. If a package fails its checks (a changed file, golden
answers that moved), the process stays alive and never becomes ready: restarting would not help, and an operator finds
the reason in the log.
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
from deploykit.serving.access.check import KeyChecker, Refusal
from deploykit.serving.access.jwt import TokenChecker
from deploykit.serving.access.rate_limits import RateLimiter, RedisWindows
from deploykit.serving.call import Call, Client, Scope
from deploykit.serving.model import MakeBatcher, ServedModel, make_batcher
from deploykit.serving.privacy.records import Recorder
from deploykit.serving.problems import NOT_READY_DETAIL, Problem, retry_after_header
from deploykit.serving.queue.offload import Offload
from deploykit.serving.settings import Settings
from deploykit.serving.telemetry.logs import NEVER_READY
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.serving.telemetry.predictions import PredictionStatistics
from deploykit.serving.telemetry.traces import TraceSender
from deploykit.serving.telemetry.watchdog import Watchdog
from deploykit.tasks import Input
from deploykit.tokenizer import join_windows

GAUGE_UPDATE_PERIOD_S = 5.0  # between two updates of the gauges by their thread
RETRY_NOT_READY_S = 10  # header Retry-After of requests that come before the service is ready
TOKENIZER_THREADS_VARIABLE = (
    "TOKENIZERS_PARALLELISM"  # environment variable: whether the library `tokenizers` starts threads of its own
)

logger = logging.getLogger("deploykit.serving")


class Runtime:
    """The model of one process and everything around it.

    Args:
        settings: of the process.
        artifact: the package.
        routes: labels of the routes, for the metrics.
        make_batcher: makes the queue for the engine.

    Attributes:
        fault: why the service cannot answer; empty once it can.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, routes: Sequence[str], make_batcher: MakeBatcher = make_batcher
    ) -> None:
        self.settings = settings
        self.key_checker = None if settings.keys is None else KeyChecker(settings.keys)
        self.token_checker = TokenChecker(*settings.jwt, settings.jwt_limits) if settings.jwt else None
        self.limits = RateLimiter(RedisWindows(settings.redis.get_secret_value()) if settings.redis else None)
        self.traces = TraceSender(artifact.manifest.name, artifact.manifest.version) if settings.traces else None
        task, spec = tasks.task_of(artifact.manifest), tasks.spec_of(artifact.manifest)
        self.metrics = Metrics(routes, tasks.observed_labels(task, spec))
        self.records: Recorder | None = None
        self.offload = Offload()
        self.fault = "the model is not loaded yet"
        self._statistics = PredictionStatistics(self.metrics, artifact.manifest)
        self._artifact, self._make_batcher = artifact, make_batcher
        self._model: ServedModel | None = None
        self._closing = ExitStack()  # what `close` calls, in reverse order

    def start(self) -> None:
        """Loads the model, and starts the threads around it; if the model cannot be loaded, `fault` says why."""
        self._closing.callback(self.offload.close)
        if self.traces is not None:
            self._closing.callback(self.traces.close)
        if self.token_checker is not None:
            self.token_checker.start()
            self._closing.callback(self.token_checker.close)
        if TOKENIZER_THREADS_VARIABLE not in os.environ:
            os.environ[TOKENIZER_THREADS_VARIABLE] = "false"  # because the engine needs the cores
            self._closing.callback(os.environ.pop, TOKENIZER_THREADS_VARIABLE, None)
        self.metrics.set_cpu_features(cpu_features(), self._artifact.manifest.execution.features)
        self._start_gauge_thread()
        settings, start = self.settings, perf_counter()
        try:
            model = ServedModel.load(settings, self._artifact, self.metrics, self._make_batcher)
        except Exception as error:
            self.fault = str(error) or type(error).__name__
            logger.error("%s: %s", NEVER_READY, self.fault, exc_info=not isinstance(error, DeploykitError))
            return
        self._model = model
        self._closing.callback(model.close)
        if settings.records is not None and settings.records_folder is not None:
            written, dropped = self.metrics.records_written, self.metrics.records_dropped
            folder, options = settings.records_folder, settings.records
            self.records = Recorder(folder, options, self._artifact, written, dropped, model.find_names)
            self._closing.callback(self.records.close)
        watchdog = Watchdog(asyncio.get_running_loop(), lambda: model.batcher.oldest_batch_start, settings.stuck_s)
        self._closing.callback(watchdog.close)
        gc.freeze()  # so that garbage collections, which stop all threads, skip what is loaded
        self._closing.callback(gc.unfreeze)
        self._set_ready(model, perf_counter() - start)

    def close(self) -> None:
        """Ends the threads after their current work; BentoML calls this when the last request has its answer."""
        self.metrics.ready.set(0)
        self.fault = "the service is stopping"
        self._statistics.count()
        self._closing.close()

    @property
    def ready(self) -> bool:
        """Whether the service can answer, and was not told to drain."""
        return not self.fault and not self.settings.drain.exists()

    @property
    def alive(self) -> bool:
        """Whether the engine still finishes its batches: none runs longer than `stuck_s`."""
        return self._model is None or self._model.batcher.oldest_batch_age_s < self.settings.stuck_s

    def identify(self, text: str | None, scope: Scope) -> Client | Refusal:
        """Decides whether a key, or a token of an identity provider, allows a scope.

        Args:
            text: what the client sent, if anything.
            scope: what the route needs.

        Returns:
            The client, or why it is refused. If access control is off, everybody is let in.
        """
        if self.key_checker is None:
            return Client("none")
        if text and self.token_checker is not None and self.token_checker.is_token(text):
            return self.token_checker.check(text, scope)
        return self.key_checker.check(text, scope)

    def require_short_wait(self, client: Client) -> None:
        """Refuses a request, before its body is read, if its texts would wait too long.

        Raises:
            Problem: 503 too busy.
        """
        if self._model is not None:
            self._model.batcher.admit(client.name)

    async def predict(self, inputs: Sequence[Input], call: Call, *, counted: bool = True) -> list[BaseModel]:
        """Answers the inputs of a request.

        Args:
            inputs: of the task.
            call: the request; its times and counts are set.
            counted: whether the answers are counted in the metrics and recorded.

        Returns:
            One answer for each input.

        Raises:
            Problem: 503 not ready or too busy, 504 the deadline has passed, 499 the client has disconnected, 500 the
                model failed, 429 the client has used its tokens, 422 an input cannot be read.
        """
        model = self._model
        if self.fault or model is None:
            raise Problem(503, "not_ready", NOT_READY_DETAIL, headers=retry_after_header(RETRY_NOT_READY_S))
        timeout_s = min(self.settings.timeout_s, call.timeout_s or self.settings.timeout_s)
        features = await model.tokenize(inputs, timeout_s, call)
        self.metrics.tokenize_seconds.observe(call.tokenize_s)
        timeout_s -= call.tokenize_s
        lengths = [len(window) for windows in features for window in windows]
        model.batcher.admit(call.client.name, lengths, timeout_s)  # a refused request does not use tokens of the client
        await self.limits.count_tokens(call.client, call.token_count)
        outputs = await model.run(features, timeout_s, call)

        def finish() -> list[BaseModel]:
            """Decodes the outputs of the model, counts the answers and records some of them."""
            answers, predictions = model.decode_answers(inputs, features, outputs)
            if counted:
                self._statistics.add(predictions, list(map(join_windows, features)))
                if self.records is not None:
                    self.records.record_answers(call, inputs, features, answers)
            return answers

        return await self.offload.run(call.large, finish)

    def page(self) -> bytes:
        """Renders the page of metrics."""
        self._update_gauges()
        return self.metrics.page()

    def _set_ready(self, model: ServedModel, load_s: float) -> None:
        """Marks the service as ready in the metrics and in the log; `load_s` is how long that took, in seconds."""
        self.fault = ""
        manifest, served, execution = self._artifact.manifest, model.served, model.served.execution
        self.metrics.model_info.labels(
            *(manifest.name, manifest.version, manifest.task, execution.engine, execution.precision, served.graph)
        ).set(1)
        self.metrics.fallback.set(bool(served.reason))
        self.metrics.golden_passed.set(1)
        self.metrics.ready.set(1)
        self.metrics.load_seconds.set(load_s)
        message = "ready after %.2f s: %s on %s, cores: %d, shapes compiled: %d"
        logger.info(message, load_s, served.graph, execution, self.settings.cores, model.compiled_shapes)

    def _start_gauge_thread(self) -> None:
        """Starts a thread that updates the gauges of this process every few seconds.

        The page of metrics is made from the files of all processes (see `metrics`). BentoML's configuration may set
        several workers, and the one that renders the page can update only its own gauges.
        """
        closed = threading.Event()
        self._closing.callback(closed.set)

        def keep_updated() -> None:
            while not closed.is_set():
                self._update_gauges()
                closed.wait(GAUGE_UPDATE_PERIOD_S)

        threading.Thread(target=keep_updated, name="gauges", daemon=True).start()

    def _update_gauges(self) -> None:
        """Sets the gauges that no event sets: of predictions, process, queue, keys and failures."""
        self._statistics.count()
        self.metrics.update_process()
        self.metrics.draining.set(self.settings.drain.exists())
        if self._model is not None:
            self.metrics.set_queue(*self._model.batcher.queue_state())
        if self.key_checker is not None:
            self.metrics.keys.set(len(self.key_checker))
            self.metrics.key_failures.set(self.key_checker.failures)
            self.metrics.key_expiry.set(self.key_checker.next_expiry() or 0)
        self.metrics.limit_failures.set(self.limits.failures)
        self.metrics.token_failures.set(self.token_checker.failures if self.token_checker else 0)
