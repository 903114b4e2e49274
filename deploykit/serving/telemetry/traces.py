"""Spans of OpenTelemetry that show how long each phase of a request took, if a collector is configured.

Spans are made after the response, from times that were measured anyway, and a separate thread sends them. So no request
waits for a collector, and spans that it does not accept are dropped. They contain routes, statuses and counts, never a
text, a key or a client. BentoML's own tracing stays off, and the exporter is imported only if it is used.
"""

import threading
import time
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

from deploykit.errors import missing_extra_error
from deploykit.serving.call import Call

KNOWN_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # others are recorded as `_OTHER`
FLUSH_S = 3.0  # a service that ends waits at most so long until the collector has its last spans


class TraceSender:
    """Makes and sends spans; OpenTelemetry's standard variables configure the endpoint and the sampling.

    Args:
        name: of the service, unless the environment sets another one.
        version: of the model.

    Raises:
        MissingExtraError: the exporter is not installed.
    """

    def __init__(self, name: str, version: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise missing_extra_error("a service with traces", error.name, "otel") from error
        resource = Resource.create({"service.name": name, "service.version": version})
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("deploykit")
        self._propagator = TraceContextTextMapPropagator()
        self._trace: Any = trace

    def record(self, call: Call, method: str, route: str, status: int, headers: Mapping[str, str]) -> str:
        """Makes the spans of an answered request.

        Args:
            call: the request.
            method: of the request.
            route: label of its route.
            status: of the response.
            headers: of the request; `traceparent` names the parent span.

        Returns:
            The id of its trace.
        """
        trace, now = self._trace, time.time_ns()
        clock_zero_ns = now - perf_counter_ns()  # when `perf_counter` was 0, in nanoseconds since 1970
        method = method if method in KNOWN_METHODS else "_OTHER"
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "deploykit.request_id": call.id,
            "deploykit.texts": call.input_count,
            "deploykit.tokens": call.token_count,
        }
        span = self._tracer.start_span(
            f"{method} {route}",
            self._propagator.extract(headers),
            trace.SpanKind.SERVER,
            attributes,
            start_time=clock_zero_ns + int(call.start * 1e9),
        )
        if span.is_recording():
            context = trace.set_span_in_context(span)
            for name, (start, end) in call.phases.items():
                child = self._tracer.start_span(name, context, start_time=clock_zero_ns + int(start * 1e9))
                child.end(clock_zero_ns + int(end * 1e9))
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
        span.end(now)
        return str(trace.format_trace_id(span.get_span_context().trace_id))

    def close(self) -> None:
        """Sends the remaining spans; gives up after `FLUSH_S`."""
        shutdown = threading.Thread(target=self._provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(FLUSH_S)
