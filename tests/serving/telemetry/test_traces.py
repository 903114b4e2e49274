"""Traces: what a collector gets, what it never gets, and that nobody waits for it."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
from asgi import BODY, PREDICT
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploykit.errors import MissingExtraError
from deploykit.serving import launch
from deploykit.serving.access import keys
from deploykit.serving.telemetry import traces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


class Collector:
    """Takes traces over HTTP, as OpenTelemetry's does."""

    def __init__(self, status=200, pause_s=0.0):
        self.spans, self.resources, self.bodies, collector = [], [], [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(pause_s)
                collector.take(self.path, body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, path, body):
        assert path == "/v1/traces"
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(facts(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def facts(thing):
    values = {one.key: one.value for one in thing.attributes}
    return {name: getattr(value, value.WhichOneof("value")) for name, value in values.items()}


@pytest.fixture
def collector():
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def traced(collector, serve, package, monkeypatch):
    """`traced()`: a service that sends traces, and `end()`, after which all have been sent."""

    def start():
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        client = serve(package)
        return client, lambda: client._app._runtime.traces.close()

    return start


def test_a_request_is_a_span_with_its_phases_inside(capfd, traced, collector, log_lines):
    client, end = traced()
    before = time.time_ns()
    answer = client.post(PREDICT, json_body=BODY, headers={"traceparent": PARENT, "x-request-id": "abc"})
    after = time.time_ns()
    end()
    (span,) = collector.named(f"POST {PREDICT}")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert span.kind == span.SPAN_KIND_SERVER
    assert facts(span) == {
        "http.request.method": "POST",
        "http.route": PREDICT,
        "http.response.status_code": 200,
        "deploykit.request_id": "abc",
        "deploykit.texts": 2,
        "deploykit.tokens": 11,
    }
    parts = [*collector.named("tokenize"), *collector.named("queue"), *collector.named("inference")]
    assert len(parts) == len(collector.spans) - 1 == 3
    assert {part.parent_span_id for part in parts} == {span.span_id}
    assert {part.trace_id for part in parts} == {span.trace_id}
    times = [time_of for part in parts for time_of in (part.start_time_unix_nano, part.end_time_unix_nano)]
    slack = 2_000_000  # of two clocks
    assert before - slack < span.start_time_unix_nano <= times[0]
    assert times[-1] <= span.end_time_unix_nano < after + slack
    assert all(late - early > -100_000 for early, late in pairwise(times)), times
    timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    for part in parts:
        taken = (part.end_time_unix_nano - part.start_time_unix_nano) / 1e6
        assert taken == pytest.approx(float(timing[part.name]), abs=0.02)
    (line,) = [line for line in log_lines(capfd.readouterr().out) if line.get("route") == PREDICT]
    assert line["trace"] == span.trace_id.hex()
    assert collector.resources[0]["service.name"] == "tiny"


def test_refusals_and_failures_are_spans_too(traced, collector, monkeypatch):
    client, end = traced()
    client.post(PREDICT, json_body=BODY, headers={"x-api-key": None})
    client.request("BREW", PREDICT)
    monkeypatch.setattr(client._app._runtime, "predict", None)
    client.post(PREDICT, json_body=BODY)
    end()
    found = [(span.name, facts(span)["http.response.status_code"], span.status.code) for span in collector.spans]
    assert found == [(f"POST {PREDICT}", 401, 0), (f"_OTHER {PREDICT}", 405, 0), (f"POST {PREDICT}", 500, 2)]
    assert len({span.trace_id for span in collector.spans}) == 3


def test_probes_scrapes_and_odd_paths_are_no_spans(traced, collector):
    client, end = traced()
    for path in ("/livez", "/readyz", "/metrics", "/nowhere"):
        client.get(path)
    end()
    assert collector.spans == []


def test_a_collector_gets_no_text_no_key_and_no_client(traced, collector, alice):
    client, end = traced()
    answer = client.post(PREDICT, json_body={"texts": ["my name is Ozymandias"]}, headers={"user-agent": "Ozy"})
    client.post(PREDICT + "?text=Ozymandias", json_body={"texts": ["Ozymandias", 1]})
    end()
    assert answer.status == 200
    assert len(collector.named(f"POST {PREDICT}")) == 2
    sent = b"".join(collector.bodies)
    for secret in ("Ozy", alice, alice[3:11], alice[12:], "alice"):
        assert secret.encode() not in sent


def test_who_asks_for_no_trace_gets_none(traced, collector):
    client, end = traced()
    client.post(PREDICT, json_body=BODY, headers={"traceparent": UNSAMPLED})
    client.post(PREDICT, json_body=BODY, headers={"traceparent": "nonsense"})
    end()
    (span,) = collector.named(f"POST {PREDICT}")
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != PARENT.split("-")[1]


def test_the_standard_variables_name_the_service(collector, serve, package, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviews")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    client = serve(package)
    client.post(PREDICT, json_body=BODY)
    client._app._runtime.traces.close()
    assert collector.resources[0]["service.name"] == "reviews"
    assert collector.resources[0]["deployment.environment.name"] == "test"


def test_a_missing_exporter_says_how_to_add_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtraError, match=r"traces needs the package .* pip install '\.\[otel\]'"):
        traces.TraceSender("tiny", "1")


@pytest.mark.parametrize("kind", ["nobody", "silent", "slow", "failing"])
def test_a_collector_that_is_away_holds_up_nobody(kind, serve, package, monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    broken = Collector(status=503, pause_s=0.5 if kind == "slow" else 0.0)
    url = {"nobody": f"http://127.0.0.1:{launch.free_port()}", "silent": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url.get(kind, broken.url))
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    client = serve(package)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        assert client.post(PREDICT, json_body=BODY).status == 200
        times.append(time.perf_counter() - start)
    assert sorted(times)[len(times) // 2] < 0.1
    monkeypatch.setattr(traces, "FLUSH_S", 0.3)
    start = time.perf_counter()
    client._app._runtime.traces.close()
    assert time.perf_counter() - start < 1
    silent.close()
    broken.close()


def test_a_trace_that_cannot_be_made_costs_no_answer(capfd, traced, monkeypatch):
    client, _ = traced()
    monkeypatch.setattr(client._app._runtime.traces, "record", lambda *_: 1 / 0)
    assert client.post(PREDICT, json_body=BODY).status == 200
    assert "has no trace" in capfd.readouterr().out


IMPORTED = """
import asyncio, json, os, sys
from deploykit.serving import service

messages = [{"type": "http.request", "body": json.dumps({"texts": ["a film"]}).encode()}]

async def receive():
    return messages.pop() if messages else await asyncio.Event().wait()

async def main():
    sent = []
    async def send(message):
        sent.append(message)
    app = service.build(sys.argv[1]).to_asgi()
    app._runtime.start()
    headers = [(b"content-type", b"application/json"), (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers}
    await asyncio.wait_for(app(scope, receive, send), 20)
    assert sent[0]["status"] == 200, sent
    print(json.dumps([name for name in sys.modules if "opentelemetry" in name]), app._runtime.traces is None)

asyncio.run(main())
"""


@pytest.mark.parametrize("wanted", [False, True])
def test_the_exporter_is_imported_only_when_there_is_a_collector(package, collector, wanted):
    env = {**os.environ, "DEPLOYKIT_AUTH": "off"} | ({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if wanted else {})
    run = [sys.executable, "-c", IMPORTED, str(package)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules, _, off = done.stdout.strip().splitlines()[-1].rpartition(" ")
    found = {name for name in json.loads(modules) if name.startswith(("opentelemetry.exporter", "opentelemetry.proto"))}
    assert (bool(found), off) == (wanted, str(not wanted))


def test_a_real_process_sends_its_last_spans_before_it_ends(package, key_file, collector, tmp_path):
    key = keys.add(key_file, "alice")
    env = {**os.environ, "BENTOML_HOME": str(tmp_path / "home"), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    env["OTEL_BSP_SCHEDULE_DELAY"] = "60000"
    with launch.running_service(package, key_file, environ=env, log=tmp_path / "log") as url:
        from deploykit.client import Client

        with Client(url, key) as client:
            client.predict(["a great film"])
        assert collector.spans == []
    assert sorted(span.name for span in collector.spans) == [f"POST {PREDICT}", "inference", "queue", "tokenize"]
    assert "Traceback" not in (tmp_path / "log").read_text()
