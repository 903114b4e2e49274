"""The client against a service of its own, and against a server that plays a part."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import deploykit
from deploykit import client as module
from deploykit.client import AsyncClient, Client
from deploykit.errors import ServiceError

GOOD = {"predictions": [{"label": "a", "score": 0.9, "scores": {"a": 0.9}, "tokens": 3, "truncated": False, "new": 1}]}


@pytest.fixture
def played():
    """`played(*answers) -> (url, requests)`: a server that gives these answers in turn; None hangs up."""
    servers = []

    def start(*answers):
        left, seen = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                seen.append((time.monotonic(), dict(self.headers), json.loads(body)))
                answer = left.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                if callable(content):
                    content = content()
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=["sync", "async"])
def predict(request):
    """`predict(url, **options)`: one prediction, by either client."""

    def sync(url, **options):
        with Client(url, "dk_key", **options) as client:
            return client.predict(["text"])

    def through_asyncio(url, **options):
        async def body():
            async with AsyncClient(url, "dk_key", **options) as client:
                return await client.predict(["text"])

        return asyncio.run(body())

    return sync if request.param == "sync" else through_asyncio


def problem(status, detail, headers=None, **more):
    return status, headers or {}, {"status": status, "detail": detail, **more}


def test_an_answer_has_its_type_and_keeps_what_is_new(predict, played):
    url, seen = played((200, {}, GOOD))
    (found,) = predict(url + "/")
    assert (found.label, found.score, found.entities, found.model_extra) == ("a", 0.9, [], {"new": 1})
    ((_, headers, body),) = seen
    assert headers["authorization"] == "Bearer dk_key"
    assert 9000 < int(headers["x-request-timeout-ms"]) <= 10000
    assert body == {"texts": ["text"]}


@pytest.mark.parametrize("status", [429, 503])
def test_it_comes_back_when_it_was_told_to(predict, played, status):
    url, seen = played(problem(status, "busy", {"retry-after": "1"}), (200, {}, GOOD))
    assert predict(url)[0].label == "a"
    assert 1 <= seen[1][0] - seen[0][0] < 3
    assert int(seen[1][1]["x-request-timeout-ms"]) <= 9000


def test_a_connection_that_fails_is_tried_again(predict, played):
    url, seen = played(None, (200, {}, GOOD))
    assert predict(url)[0].label == "a"
    assert len(seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422, 500, 504])
def test_what_would_be_refused_again_is_not_asked_again(predict, played, status):
    refusal = problem(status, "no", {"x-request-id": "r1"}, errors=[{"where": "texts", "message": "too many"}])
    url, seen = played(refusal, (200, {}, GOOD))
    with pytest.raises(ServiceError, match=f"^{status}: no; texts: too many$") as caught:
        predict(url)
    assert (caught.value.status, caught.value.request_id, len(seen)) == (status, "r1", 1)


def test_a_request_that_no_waiting_lets_in_is_not_asked_again(predict, played):
    url, seen = played(problem(429, "this request has 900 tokens, and the key may send 30"), (200, {}, GOOD))
    with pytest.raises(ServiceError, match="900 tokens"):
        predict(url)
    assert len(seen) == 1


def test_it_gives_up_in_time(predict, played):
    url, seen = played(*[problem(503, "busy", {"retry-after": "60"})] * 9)
    start = time.monotonic()
    with pytest.raises(ServiceError, match="503: busy"):
        predict(url, timeout_s=2)
    assert time.monotonic() - start < 1
    assert len(seen) == 1
    url, seen = played(*[problem(503, "busy")] * 9)
    with pytest.raises(ServiceError, match="503: busy"):
        predict(url, retries=2)
    assert len(seen) == 3


def test_a_service_that_says_nothing_is_not_waited_for(predict, played):
    url, _ = played((200, {}, lambda: time.sleep(2)))
    start = time.monotonic()
    with pytest.raises(ServiceError, match="did not answer: ReadTimeout"):
        predict(url, timeout_s=0.3)
    assert time.monotonic() - start < 1.5


def test_nobody_there(predict, monkeypatch):
    monkeypatch.setattr(module, "FIRST_S", 0.01)
    with pytest.raises(
        ServiceError, match=r"http://127\.0\.0\.1:9 did not answer: ConnectError\. Is the service there"
    ) as e:
        predict("http://127.0.0.1:9")
    assert e.value.status is None


def test_what_is_no_problem_of_ours_is_shown_as_it_is(predict, played):
    url, _ = played((404, {}, "a proxy's page"))
    with pytest.raises(ServiceError, match='404: "a proxy\'s page"'):
        predict(url)


def test_a_client_is_there_without_what_serves():
    assert deploykit.Client is Client
    assert deploykit.AsyncClient is AsyncClient
