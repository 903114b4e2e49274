"""Every metric of the service: its name, its type and its labels.

Labels come from fixed sets (routes, statuses, reasons, the model's own labels), so that clients cannot make the page
grow. All series but those of rare statuses exist from the first scrape of a service that is ready. BentoML runs its
workers in prometheus_client's multiprocess mode: each process writes its values to files, and the page is made from the
files of all. So each gauge says how the values of several processes are joined. Without that mode, as in tests, the
page shows the registry of this process.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from deploykit.errors import storage_errors
from deploykit.hardware import CPU_FEATURES
from deploykit.serving import patches
from deploykit.serving.privacy.redaction import KIND_NAMES
from deploykit.serving.problems import PROBLEM_REASONS
from deploykit.tasks import Observations
from deploykit.tokenizer import Encoding

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # the environment variable that switches that mode on
MAX_COUNTED_LABELS = 50  # of the model; predictions of its other labels are counted as `other`
OTHER_LABEL = "other"
COUNTED_STATUSES = (  # HTTP statuses that are counted one by one
    *("200", "204", "400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431", "499"),
    *("500", "503", "504"),
)
# upper bounds of the buckets of histograms
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# four buckets from one power of 2 to the next, because `deploykit retune` reads the lengths of texts from them
LENGTH_BUCKETS = (*(size * step // 4 for size in (4, *TOKEN_BUCKETS[:-1]) for step in (4, 5, 6, 7)), TOKEN_BUCKETS[-1])
SHARE_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MODEL_INFO_LABELS = ("name", "version", "task", "engine", "precision", "graph")
DRIFT_FEATURES = ("length", "confidence", "label")  # whose distribution is compared with that in the evaluation
RELEASES = ("all", "items", "tokens", "cost", "shape")  # why a batch is not larger: `batch_rules.LimitReason`
MAX_SINGLE_VALUES = 4  # up to so many values are observed one by one, which is faster than numpy's calls


class Histogram(prometheus_client.Histogram):
    """A histogram that observes many values at once: one by one, the thousands of a long text take milliseconds."""

    def observe_all(self, values: npt.NDArray[Any]) -> None:
        """Observes all elements of a one-dimensional array; only for a histogram without labels."""
        if len(values) <= MAX_SINGLE_VALUES:
            for value in values.tolist():
                self.observe(value)
            return
        counts = np.bincount(np.searchsorted(self._upper_bounds, values), minlength=len(self._buckets))
        self._sum.inc(float(values.sum()))
        for index in np.flatnonzero(counts).tolist():
            self._buckets[index].inc(int(counts[index]))


class Metrics:
    """The metrics of one process.

    Args:
        routes: labels of the routes, by which requests are counted; the first is that of `POST /v1/predict`, the last
            is that of paths that do not exist.
        labels: of the model.
    """

    def __init__(self, routes: Sequence[str], labels: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        counter, histogram, gauge = self._counter, self._histogram, self._gauge
        self.requests = counter("requests", "Requests by route and status.", "route", "status")
        self.request_seconds = histogram(
            "request_seconds", "Seconds from request to response.", SECONDS_BUCKETS, "route"
        )
        self.in_flight = gauge("requests_in_flight", "Requests that wait for their response.", join="sum")
        self.rejected = counter("rejected", "Requests that got no answer, by reason.", "reason")
        self.queue_items = gauge("queue_items", "Texts that wait for the engine.", join="sum")
        self.queue_tokens = gauge("queue_tokens", "Tokens that wait for the engine.", join="sum")
        self.queue_oldest = gauge("queue_oldest_seconds", "Seconds that the oldest waiting text has waited.")
        self.queue_seconds = histogram("queue_seconds", "Seconds that a text waited for the engine.", SECONDS_BUCKETS)
        self.batch_items = histogram("batch_items", "Texts in a batch.", ITEM_BUCKETS)
        self.batch_tokens = histogram("batch_tokens", "Tokens in a batch, padding included.", TOKEN_BUCKETS)
        self.batch_padding = histogram("batch_padding_ratio", "Share of a batch that is padding.", SHARE_BUCKETS)
        self.batches = counter("batches", "Batches, by why they are not larger.", "release")
        self.batch_retries = counter("batch_retries", "Batches that failed and were run again text by text.")
        self.tokens = counter("tokens", "Tokens of the texts that were answered.")
        self.input_tokens = histogram("input_tokens", "Tokens of one text.", LENGTH_BUCKETS)
        self.truncated = counter("truncated", "Texts whose end was not read because they are too long.")
        self.redacted = counter("redacted", "Items of personal data that were masked, by kind.", "kind")
        self.records_written = counter("records_written", "Records of answers and feedback that were stored.")
        self.records_dropped = counter("records_dropped", "Records that could not be stored in time, or at all.")
        self.windowed = counter("windowed", "Texts that were read in several windows because they are long.")
        self.inference_seconds = histogram(
            "inference_seconds", "Seconds that the engine took for a batch.", SECONDS_BUCKETS
        )
        self.tokenize_seconds = histogram(
            "tokenize_seconds", "Seconds to tokenize the texts of a request.", SECONDS_BUCKETS
        )
        self.predictions = counter("predictions", "Predictions by label.", "label")
        self.abstained = counter("abstained", "Texts whose label is not probable enough: the answer says `abstained`.")
        self.confidence = histogram("confidence", "Probability of the predicted label.", CONFIDENCE_BUCKETS)
        self.entropy = histogram("entropy", "Entropy of predictions: 0 certain, 1 all labels alike.", SHARE_BUCKETS)
        self.unknown_ratio = histogram("unknown_token_ratio", "Share of unknown tokens in a text.", SHARE_BUCKETS)
        self.drift = gauge("drift_psi", "Population stability index against the rows of the evaluation.", "feature")
        self.memory = gauge("process_resident_bytes", "Memory of the process, in bytes.", join="sum")
        self.cpu_seconds = gauge("process_cpu_seconds", "CPU time that the process has used, in seconds.", join="sum")
        self.open_files = gauge("process_open_files", "Files and sockets that the process holds open.", join="sum")
        self.started = gauge("process_start_seconds", "When the process started, in seconds since 1970.")
        self.model_info = gauge("model_info", "The model that is served; 1 once it is loaded.", *MODEL_INFO_LABELS)
        cpu_feature = "1 if the CPU has the feature, else 0. `relied_on`: whether the chosen graph needs it."
        self.cpu_feature = gauge("cpu_feature", cpu_feature, "feature", "relied_on")
        self.fallback = gauge("fallback", "1 if the float graph is served in place of the chosen graph, else 0.")
        self.ready = gauge("ready", "1 if the service answers, else 0.", join="min")
        self.draining = gauge("draining", "1 if the service was told to drain, else 0.")
        self.golden_passed = gauge("golden_passed", "1 if the golden set gave its answers again, else 0.", join="min")
        self.load_seconds = gauge("model_load_seconds", "Seconds to verify, load and replay the model.")
        self.keys = gauge("keys", "Keys in the key file.")
        self.key_failures = gauge("key_file_failures", "Failed attempts to read a changed key file.", join="sum")
        self.key_expiry = gauge(
            "next_key_expiry_seconds", "When the next key expires, in seconds since 1970; 0 if none does."
        )
        self.limit_failures = gauge("shared_limit_failures", "Failed calls of the shared store of limits.", join="sum")
        self.token_failures = gauge("token_key_failures", "Failed attempts to read the keys for tokens.", join="sum")
        self._counted_labels = frozenset(labels[:MAX_COUNTED_LABELS])
        self.started.set(time.time())
        self._create_series(routes)
        if MULTIPROCESS_VARIABLE in os.environ:
            _reserve_disk(Path(os.environ[MULTIPROCESS_VARIABLE]))

    def count_predictions(self, labels: Sequence[str], observed: Observations) -> None:
        """Counts predictions; `labels` are those of the model, in the order of the indices in `observed.labels`."""
        counts = np.bincount(observed.labels, minlength=len(labels))
        for index in np.flatnonzero(counts).tolist():
            label = labels[index] if labels[index] in self._counted_labels else OTHER_LABEL
            self.predictions.labels(label).inc(int(counts[index]))
        self.abstained.inc(observed.abstained)
        self.confidence.observe_all(observed.confidences)
        self.entropy.observe_all(observed.entropies)

    def count_texts(self, encodings: Sequence[Encoding]) -> None:
        """Counts answered texts, and their tokens."""
        lengths = np.array([len(encoding) for encoding in encodings])
        self.tokens.inc(int(lengths.sum()))
        self.input_tokens.observe_all(lengths)
        self.unknown_ratio.observe_all(np.array([text.unknown for text in encodings]) / np.maximum(lengths, 1))
        self.truncated.inc(sum(encoding.truncated for encoding in encodings))
        self.windowed.inc(sum(encoding.windows > 1 for encoding in encodings))

    def set_queue(self, items: int, tokens: int, oldest_s: float) -> None:
        """Sets the gauges of the queue: waiting texts, their tokens, and the longest wait in seconds."""
        self.queue_items.set(items)
        self.queue_tokens.set(tokens)
        self.queue_oldest.set(oldest_s)

    def count_batch(self, lengths: Sequence[int], padded_length: int, seconds: float) -> None:
        """Counts a batch that the engine has run.

        Args:
            lengths: tokens of each text.
            padded_length: tokens to which all of them were padded.
            seconds: that the engine took.
        """
        padded_tokens = len(lengths) * padded_length
        self.inference_seconds.observe(seconds)
        self.batch_items.observe(len(lengths))
        self.batch_tokens.observe(padded_tokens)
        self.batch_padding.observe(1 - sum(lengths) / padded_tokens)

    def set_cpu_features(self, available: Sequence[str], relied_on: Sequence[str]) -> None:
        """Sets the gauges of CPU features, from those of this CPU and those that the chosen graph relies on."""
        for feature in dict.fromkeys((*CPU_FEATURES, *relied_on)):
            self.cpu_feature.labels(feature, "yes" if feature in relied_on else "no").set(feature in available)

    def update_process(self) -> None:
        """Sets the gauges of memory, CPU time and open files.

        prometheus_client has a collector for these, but it does not work in multiprocess mode.
        """
        with suppress(OSError):  # a system without /proc
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.memory.set(pages * os.sysconf("SC_PAGE_SIZE"))
            self.open_files.set(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        self.cpu_seconds.set(time.process_time())

    def count_response(self, route: str, status: int) -> None:
        """Counts one response; a status that is not in `COUNTED_STATUSES` counts as 200, 300, 400 or 500."""
        counted = str(status) if str(status) in COUNTED_STATUSES else f"{status // 100}00"
        self.requests.labels(route, counted).inc()

    @contextmanager
    def time_request(self, route: str) -> Iterator[None]:
        """Measures the time of a request, and counts it as in flight, while the block lasts."""
        start = perf_counter()
        self.in_flight.inc()
        try:
            yield
        finally:
            self.in_flight.dec()
            self.request_seconds.labels(route).observe(perf_counter() - start)

    def page(self) -> bytes:
        """Renders the page of metrics, for one scrape."""
        registry = self.registry
        if MULTIPROCESS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            _drop_dead_processes(Path(os.environ[MULTIPROCESS_VARIABLE]))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _create_series(self, routes: Sequence[str]) -> None:
        """Creates the series of metrics with labels, so that the page shows them as 0 before anything was counted."""
        for route in routes:
            self.request_seconds.labels(route)
            self.requests.labels(route, "200")
        for status in COUNTED_STATUSES:
            self.requests.labels(routes[0], status)
        self.requests.labels(routes[-1], "404")
        series = {
            self.drift: DRIFT_FEATURES,
            self.redacted: KIND_NAMES,
            self.batches: RELEASES,
            self.rejected: PROBLEM_REASONS,
            self.predictions: (*sorted(self._counted_labels), OTHER_LABEL),
        }
        for metric, values in series.items():
            for value in values:
                metric.labels(value)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        """Creates a counter; `text` says what it counts."""
        return Counter(f"deploykit_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Creates a histogram; `buckets` are the upper bounds."""
        histogram = Histogram(f"deploykit_{name}", text, labels, buckets=buckets, registry=self.registry)
        for attribute in () if labels else ("_sum", "_buckets", "_upper_bounds"):  # `observe_all` relies on them
            patches.require_part(hasattr(histogram, attribute), "prometheus-client", f"Histogram.{attribute}")
        return histogram

    def _gauge(self, name: str, text: str, *labels: str, join: Literal["sum", "min", "max"] = "max") -> Gauge:
        """Creates a gauge; `join` says how the values of several processes become one."""
        mode: Any = f"live{join}"
        return Gauge(f"deploykit_{name}", text, labels, multiprocess_mode=mode, registry=self.registry)


def _reserve_disk(folder: Path) -> None:
    """Allocates twice the space of this process's metric files, before the disk is full.

    The files are memory-mapped and have holes. If the disk is full, the first write to a hole kills the process. New
    series may double the size of a file; the fixed sets of labels allow no more.
    """
    for file in folder.glob(f"*_{os.getpid()}.db"):
        with storage_errors(file), file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, 2 * os.fstat(stream.fileno()).st_size)


def _drop_dead_processes(folder: Path) -> None:
    """Deletes the files with the gauges of processes that were killed; their counters still count."""
    for process in {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_[0-9]*.db")}:
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another scrape was quicker
                mark_process_dead(int(process), str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:  # the id belongs to another user's process by now
            continue
