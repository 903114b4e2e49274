"""The client against a service of its own, and against a server that plays a part."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import deploykit
from deploykit.client import AsyncClient, Client, conversation
from deploykit.errors import InputError, ServiceError

GOOD = {"predictions": [{"label": "a", "score": 0.9, "scores": {"a": 0.9}, "tokens": 3, "truncated": False, "new": 1}]}


@pytest.fixture
def played():
    """`played(*answers) -> (url, requests)`: a server that gives these answers in turn; None hangs up.

    `slow` are seconds between pieces of an answer.
    """
    servers = []

    def start(*answers, slow=0.0):
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
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in (data[at : at + 8] for at in range(0, len(data), 8)) if slow else (data,):
                    with suppress(OSError):  # who asked may have left
                        self.wfile.write(piece)
                    time.sleep(slow)

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

    def sync(url, key="dk_key", texts=("text",), inputs=None, **options):
        with Client(url, key, **options) as client:
            return client.predict(texts, inputs=inputs)

    def through_asyncio(url, key="dk_key", texts=("text",), inputs=None, **options):
        async def body():
            async with AsyncClient(url, key, **options) as client:
                return await client.predict(texts, inputs=inputs)

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


def test_inputs_of_other_tasks_are_sent_as_they_are_and_answers_have_types(predict, played):
    answer = {"answer": "london", "score": 0.9, "start": 3, "end": 9, "context": 0, "tokens": 5, "truncated": False}
    url, seen = played((200, {}, {"predictions": [answer], "model": {}}))
    question = {"question": "where ?", "context": "in london"}
    (found,) = predict(url, texts=(), inputs=[question])
    assert (found.answer, found.start, found.end, found.context) == ("london", 3, 9, 0)
    assert seen[0][2] == {"inputs": [question]}
    with pytest.raises(InputError, match="send either texts or inputs"):
        predict(url, inputs=[question])


def test_candidates_are_ranked_by_either_client(played):
    ranking = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.2}]
    url, seen = played(*[(200, {}, {"ranking": ranking, "model": {}})] * 2)
    with Client(url, "dk_key") as client:
        found = client.rank("where ?", ["here", "there"], top_k=2)
    assert [(candidate.index, candidate.score) for candidate in found] == [(1, 0.9), (0, 0.2)]

    async def rank():
        async with AsyncClient(url) as client:
            return await client.rank("where ?", ("here", "there"))

    assert asyncio.run(rank()) == found
    body = {"query": "where ?", "candidates": ["here", "there"]}
    assert [sent for *_, sent in seen] == [{**body, "top_k": 2}, body]
    with Client(url) as client, pytest.raises(InputError, match="candidates are a list"):
        client.rank("where ?", "here")


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


def test_an_answer_that_drips_is_not_waited_for_to_its_end(predict, played):
    url, _ = played((200, {}, GOOD), slow=0.2)
    start = time.monotonic()
    with pytest.raises(ServiceError, match="did not answer: ReadTimeout"):
        predict(url, timeout_s=0.5)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>It works!</html>",
        [],
        None,
        {},
        {"predictions": [{"label": "a"}]},
        {"predictions": []},
        {"predictions": 3},
    ],
)
def test_an_answer_of_another_server_is_told_apart(predict, played, content):
    url, seen = played((200, {"x-request-id": "r1"}, content if content is not None else b"null"))
    with pytest.raises(
        ServiceError, match=r"answered, but not as a deploykit service does .* Is this its address"
    ) as e:
        predict(url)
    assert (e.value.status, e.value.request_id, len(seen)) == (200, "r1", 1)


def test_what_says_that_it_is_compressed_and_is_not_is_no_answer(predict, played):
    url, seen = played((200, {"content-encoding": "gzip"}, GOOD))
    with pytest.raises(ServiceError, match="did not answer: DecodingError"):
        predict(url)
    assert len(seen) == 1


def test_retry_after_may_be_a_date(predict, played):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    url, seen = played(problem(503, "busy", {"retry-after": date}), (200, {}, GOOD))
    assert predict(url)[0].label == "a"
    assert 0.9 <= seen[1][0] - seen[0][0] < 3  # a date has no parts of a second


@pytest.mark.parametrize("said", ["soon", "Wed, 99999999999999999999 Oct 2015 07:28", "-1"])
def test_what_is_neither_seconds_nor_a_date_leaves_the_choice_to_the_client(predict, played, said):
    url, seen = played(problem(503, "busy", {"retry-after": said}), (200, {}, GOOD))
    assert predict(url, texts=iter(["text"]))[0].label == "a"
    assert seen[1][0] - seen[0][0] < 1
    assert seen[0][2] == {"texts": ["text"]}


@pytest.mark.parametrize("key", ["dk_schlüssel", "dk_a\nb", "dk_\ud800"])
def test_a_key_that_cannot_be_one_is_refused_at_once(predict, key):
    with pytest.raises(InputError, match="Copy it again"):
        predict("http://127.0.0.1:9", key=key)


def test_a_key_may_have_been_read_with_the_end_of_its_line(predict, played):
    url, seen = played((200, {}, GOOD))
    predict(url, key=" dk_key\n")
    assert seen[0][1]["authorization"] == "Bearer dk_key"


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://host", "http://", "http://host:port", "/v1", ""])
def test_what_is_no_address_is_refused_at_once(predict, url):
    with pytest.raises(InputError, match=r"is no address of a service\. Give one like http://"):
        predict(url)


@pytest.mark.parametrize(
    ("texts", "message"), [("text", "texts are a list"), (["a\ud800"], "Remove its unpaired surrogates")]
)
def test_what_is_no_text_is_refused_at_once(predict, texts, message):
    with pytest.raises(InputError, match=message):
        predict("http://127.0.0.1:9", texts=texts)


def test_nobody_there(predict, monkeypatch):
    monkeypatch.setattr(conversation, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(
        ServiceError, match=r"http://127\.0\.0\.1:9 did not answer: ConnectError\. Is the service there"
    ) as e:
        predict("http://127.0.0.1:9")
    assert e.value.status is None


def test_what_is_no_problem_of_ours_is_shown_as_it_is(predict, played):
    url, _ = played((404, {}, "a proxy's page"))
    with pytest.raises(ServiceError, match='404: "a proxy\'s page"'):
        predict(url)


def test_an_event_loop_that_ends_takes_no_client_with_it(played):
    """In a process of its own: connections of an ended loop cannot be closed, and warn whenever they are collected."""
    url, seen = played(*[(200, {}, GOOD)] * 3)
    code = f"""
import asyncio
from deploykit import AsyncClient
client = AsyncClient({url!r})
print([asyncio.run(client.predict(["text"]))[0].label for _ in range(3)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['a', 'a', 'a']\n", done.stderr
    assert len(seen) == 3


@pytest.mark.parametrize("seconds", [2e6, float("inf")])
def test_who_waits_for_very_long_says_as_much_as_a_service_takes(predict, played, seconds):
    url, seen = played((200, {}, GOOD))
    predict(url, timeout_s=seconds)
    assert 999_000_000 < int(seen[0][1]["x-request-timeout-ms"]) <= 999_999_999


def test_a_client_is_there_without_what_serves():
    assert deploykit.Client is Client
    assert deploykit.AsyncClient is AsyncClient


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_a_service_on_this_machine(predict, played, monkeypatch, host):
    url, _ = played((200, {}, GOOD))
    proxy, seen = played()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    (found,) = predict(url.replace("127.0.0.1", host), retries=0)
    assert found.label == "a"
    assert seen == []
