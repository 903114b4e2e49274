"""Every metric of the service: its name, its type and its labels.

Labels come from closed sets (routes, statuses, reasons, the model's own labels), so that nobody can make
the page grow by asking for odd things. All series but those of rare statuses exist from the first scrape of a
service that is ready. BentoML runs workers in prometheus_client's multiprocess mode; gauges therefore say how to join
the processes, and a page is collected from their files. Without that mode, in tests, the registry itself is the page.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from deploykit.errors import storage_errors
from deploykit.hardware import CPU_FEATURES
from deploykit.serving import patches
from deploykit.serving.privacy.redaction import NAMES
from deploykit.serving.problems import REASONS
from deploykit.tasks import Float32, Int64
from deploykit.tokenizer import Encoding

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
MOST_LABELS = 50
OTHER = "other"
STATUSES = (
    *("200", "204", "400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431", "499"),
    *("500", "503", "504"),
)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LENGTHS = (*(size * step // 4 for size in (4, *TOKENS[:-1]) for step in (4, 5, 6, 7)), TOKENS[-1])  # see lengths.py
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MODEL = ("name", "version", "task", "engine", "precision", "graph")
DRIFTING = ("length", "confidence", "label")
RELEASES = ("all", "items", "tokens", "cost", "shape")
# How the gauges of several processes become one: a sum, the least, or else the most.
SUMMED = (
    *("requests_in_flight", "queue_items", "queue_tokens", "key_file_failures", "shared_limit_failures"),
    *("token_key_failures", "process_resident_bytes", "process_cpu_seconds", "process_open_files"),
)
LEAST = ("ready", "golden_passed")
PAGE = """# Metrics

What `GET /metrics` answers. A histogram is a series of `_bucket`, with `_sum` and `_count`. All series but those of
rare statuses are there from the first scrape of a service that is ready, and say the same with several workers.

| name | type | labels | meaning |
| --- | --- | --- | --- |
"""
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
FEW_VALUES = 4  # so many are observed one by one, which takes less time than numpy's calls


class Histogram(prometheus_client.Histogram):
    """A histogram that takes many values at once: each alone takes microseconds, and a long text has thousands."""

    def observe_all(self, values: npt.NDArray[Any]) -> None:
        """Observes values, shape `(values,)`; of a histogram without labels."""
        if len(values) <= FEW_VALUES:
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
        routes: the route labels that requests are counted by: the one that predicts first, unknown ones last.
        labels: what the model may predict; beyond the first 50 they are counted as `other`.
    """

    def __init__(self, routes: Sequence[str], labels: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._rows: list[str] = []
        self.requests = self._counter("requests", "Requests by route and status.", "route", "status")
        self.request_seconds = self._histogram("request_seconds", "Seconds from request to response.", SECONDS, "route")
        self.in_flight = self._gauge("requests_in_flight", "Requests that wait for their response.")
        self.rejected = self._counter("rejected", "Requests that got no answer, by reason.", "reason")
        self.queue_items = self._gauge("queue_items", "Texts that wait for the engine.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens that wait for the engine.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "How long the text has waited that waits longest.")
        self.queue_seconds = self._histogram("queue_seconds", "Seconds that a text waited for the engine.", SECONDS)
        self.batch_items = self._histogram("batch_items", "Texts in a batch.", ITEMS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in a batch, padding included.", TOKENS)
        self.batch_padding = self._histogram("batch_padding_ratio", "Share of a batch that is padding.", SHARES)
        self.batches = self._counter("batches", "Batches, by why they are not larger.", "release")
        self.batch_retries = self._counter("batch_retries", "Batches that failed and were run again text by text.")
        self.tokens = self._counter("tokens", "Tokens of the texts that were answered.")
        self.input_tokens = self._histogram("input_tokens", "Tokens of one text.", LENGTHS)
        self.truncated = self._counter("truncated", "Texts that were cut because the model reads no more.")
        self.redacted = self._counter("redacted", "Personal data that was masked in texts, by kind.", "kind")
        self.records_written = self._counter("records_written", "Records of answers and feedback that were stored.")
        self.records_dropped = self._counter("records_dropped", "Records that could not be stored in time, or at all.")
        self.windowed = self._counter("windowed", "Texts that were read in several windows because they are long.")
        self.inference_seconds = self._histogram(
            "inference_seconds", "Seconds that the engine took for a batch.", SECONDS
        )
        self.tokenize_seconds = self._histogram(
            "tokenize_seconds", "Seconds to tokenize the texts of a request.", SECONDS
        )
        self.predictions = self._counter("predictions", "Predictions by label.", "label")
        self.confidence = self._histogram("confidence", "Probability of what was predicted.", CONFIDENCES)
        self.entropy = self._histogram("entropy", "Entropy of predictions: 0 certain, 1 all labels alike.", SHARES)
        self.unknown_ratio = self._histogram("unknown_token_ratio", "Share of unknown tokens in a text.", SHARES)
        self.drift = self._gauge("drift_psi", "Population stability index against what was judged.", "feature")
        self.memory = self._gauge("process_resident_bytes", "Memory of the process, in bytes.")
        self.cpu_seconds = self._gauge("process_cpu_seconds", "Processor time that the process has taken.")
        self.open_files = self._gauge("process_open_files", "Files and sockets that the process holds open.")
        self.started = self._gauge("process_start_seconds", "When the process started, since 1970.")
        self.model_info = self._gauge("model_info", "What is served; always 1, once it is loaded.", *MODEL)
        self.cpu_feature = self._gauge(
            "cpu_feature", "1 when the CPU has it, else 0; and whether the choice relied on it.", "feature", "relied_on"
        )
        self.fallback = self._gauge("fallback", "1 when the float graph is served in place of what was chosen, else 0.")
        self.ready = self._gauge("ready", "1 when the service answers, else 0.")
        self.draining = self._gauge("draining", "1 when the service was told to let go of its traffic, else 0.")
        self.golden_passed = self._gauge("golden_passed", "1 when the golden set gave its answers again, else 0.")
        self.load_seconds = self._gauge("model_load_seconds", "Seconds to verify, load and replay the model.")
        self.keys = self._gauge("keys", "Keys that are known.")
        self.key_failures = self._gauge("key_file_failures", "Times that a changed key file could not be read.")
        self.key_expiry = self._gauge("next_key_expiry_seconds", "When the next key expires, since 1970; 0 for never.")
        self.limit_failures = self._gauge("shared_limit_failures", "Times that the shared store of limits failed.")
        self.token_failures = self._gauge("token_key_failures", "Times that the keys for tokens could not be read.")
        self._known = frozenset(labels[:MOST_LABELS])
        self.started.set(time.time())
        self._fill(routes)
        if MULTIPROCESS in os.environ:
            _reserve(Path(os.environ[MULTIPROCESS]))

    def predicted(self, labels: Sequence[str], best: Int64, confidences: Float32, entropies: Float32) -> None:
        """Counts predictions.

        Args:
            labels: of the model.
            best: which of them was predicted for each unit, shape `(units,)`.
            confidences: its probability, shape `(units,)`.
            entropies: shape `(units,)`.
        """
        counts = np.bincount(best, minlength=len(labels))
        for index in np.flatnonzero(counts).tolist():
            label = labels[index]
            self.predictions.labels(label if label in self._known else OTHER).inc(int(counts[index]))
        self.confidence.observe_all(confidences)
        self.entropy.observe_all(entropies)

    def read(self, encodings: Sequence[Encoding]) -> None:
        """Counts texts that were answered."""
        lengths = np.array([len(encoding) for encoding in encodings])
        self.tokens.inc(int(lengths.sum()))
        self.input_tokens.observe_all(lengths)
        self.unknown_ratio.observe_all(np.array([text.unknown for text in encodings]) / np.maximum(lengths, 1))
        self.truncated.inc(sum(encoding.truncated for encoding in encodings))
        self.windowed.inc(sum(encoding.windows > 1 for encoding in encodings))

    def waiting(self, items: int, tokens: int, oldest_s: float) -> None:
        """Tells what waits for the engine."""
        self.queue_items.set(items)
        self.queue_tokens.set(tokens)
        self.queue_oldest.set(oldest_s)

    def batched(self, lengths: Sequence[int], width: int, seconds: float) -> None:
        """Counts one batch of texts of so many tokens, padded to `width`, that took the engine so many seconds."""
        padded = len(lengths) * width
        self.inference_seconds.observe(seconds)
        self.batch_items.observe(len(lengths))
        self.batch_tokens.observe(padded)
        self.batch_padding.observe(1 - sum(lengths) / padded)

    def features(self, here: Sequence[str], relied_on: Sequence[str]) -> None:
        """Tells what this CPU offers, and what of it was counted on when the package was made."""
        for feature in dict.fromkeys((*CPU_FEATURES, *relied_on)):
            self.cpu_feature.labels(feature, "yes" if feature in relied_on else "no").set(feature in here)

    def process(self) -> None:
        """Looks at the process itself; prometheus_client's own collector does not join several."""
        with suppress(OSError):  # where there is no /proc
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.memory.set(pages * os.sysconf("SC_PAGE_SIZE"))
            self.open_files.set(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        self.cpu_seconds.set(time.process_time())

    def status(self, route: str, status: int) -> None:
        """Counts one response; a status that nobody foresaw counts as its class's first."""
        text = str(status) if str(status) in STATUSES else f"{status // 100}00"
        self.requests.labels(route, text).inc()

    @contextmanager
    def answering(self, route: str) -> Iterator[None]:
        """Times one request, and counts it as in flight meanwhile."""
        start = perf_counter()
        self.in_flight.inc()
        try:
            yield
        finally:
            self.in_flight.dec()
            self.request_seconds.labels(route).observe(perf_counter() - start)

    def page(self) -> bytes:
        """Renders what a scrape gets."""
        registry = self._registry
        if MULTIPROCESS in os.environ:
            registry = CollectorRegistry()
            _forget_dead(Path(os.environ[MULTIPROCESS]))
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def table(self) -> str:
        """Renders what there is, for people to read."""
        return PAGE + "".join(self._rows)

    def _fill(self, routes: Sequence[str]) -> None:
        """Makes the series appear before anything has happened."""
        for route in routes:
            self.request_seconds.labels(route)
            self.requests.labels(route, "200")
        for status in STATUSES:
            self.requests.labels(routes[0], status)
        self.requests.labels(routes[-1], "404")
        for feature in DRIFTING:
            self.drift.labels(feature)
        for kind in NAMES:
            self.redacted.labels(kind)
        for release in RELEASES:
            self.batches.labels(release)
        for reason in REASONS:
            self.rejected.labels(reason)
        for label in (*sorted(self._known), OTHER):
            self.predictions.labels(label)

    def _describe(self, name: str, kind: str, text: str, labels: Sequence[str]) -> None:
        shown = ", ".join(f"`{label}`" for label in labels)
        self._rows.append(f"| `deploykit_{name}` | {kind} | {shown} | {text} |\n")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._describe(f"{name}_total", "counter", text, labels)
        return Counter(f"deploykit_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        self._describe(name, "histogram", text, labels)
        histogram = Histogram(f"deploykit_{name}", text, labels, buckets=buckets, registry=self._registry)
        for part in () if labels else ("_sum", "_buckets", "_upper_bounds"):
            patches.require(hasattr(histogram, part), "prometheus-client", f"Histogram.{part}")
        return histogram

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._describe(name, "gauge", text, labels)
        mode: Any = "livesum" if name in SUMMED else "livemin" if name in LEAST else "livemax"
        return Gauge(f"deploykit_{name}", text, labels, multiprocess_mode=mode, registry=self._registry)


def _reserve(folder: Path) -> None:
    """Takes twice the space that this process's files have, before the disk is full.

    They are written through memory, and have holes: a first write to a page that has no place on the disk kills the
    process. They double when new series fill them, of which the bounded labels allow less.
    """
    for file in folder.glob(f"*_{os.getpid()}.db"):
        with storage_errors(file), file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, 2 * os.fstat(stream.fileno()).st_size)


def _forget_dead(folder: Path) -> None:
    """Drops the gauges of processes that were killed; what they counted stays."""
    for process in {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_[0-9]*.db")}:
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another scrape was quicker
                mark_process_dead(int(process), str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:  # somebody else's by now
            continue
