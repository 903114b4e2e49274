"""Idle connections, and clients that do not read: on real connections, with shorter limits."""

import asyncio
import socket
import threading
import time

import pytest
import uvicorn

from deploykit.serving import launch
from deploykit.serving.http import connections
from deploykit.serving.http.connections import Connection

HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n"
KEEP_ALIVE_S, ANSWER_S, READ_S = 1, 0.9, 0.6


raised, ended = [], []


async def slow_app(scope, receive, send):
    if scope["path"] in ("/much", "/whole"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": bytes(2**25)})
            return
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        ended.append(scope)
        return

    async def watch():
        while (await receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.create_task(watch())  # which makes the server read on
    await asyncio.sleep(ANSWER_S)
    watching.cancel()
    try:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
    except RuntimeError as error:
        raised.append(error)


@pytest.fixture
def keep_alive():
    """What the server is told, in seconds."""
    return {"timeout_keep_alive": KEEP_ALIVE_S}


@pytest.fixture
def connect(monkeypatch, keep_alive):
    """`connect() -> socket` to a server whose connections are ours."""
    monkeypatch.setattr(connections, "READ_PERIOD_S", READ_S)
    port = launch.free_port()
    options = {"port": port, "lifespan": "off", "log_config": None, **keep_alive}
    server = uvicorn.Server(uvicorn.Config(slow_app, http=Connection, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    opened = []

    def start():
        opened.append(socket.create_connection(("127.0.0.1", port), 5))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
    server.should_exit = True
    thread.join()


def end_of(one):
    """Seconds until the server closes a connection, and what it sent before."""
    start, found = time.monotonic(), b""
    while got := one.recv(65536):
        found += got
    return time.monotonic() - start, found


@pytest.mark.parametrize(
    "keep_alive", [{}, {"timeout_keep_alive": connections.UVICORN_KEEP_ALIVE_S}], ids=["silent", "default"]
)
def test_where_nobody_says_how_long_idle_connections_outlive_those_of_proxies(connect, monkeypatch):
    assert connections.KEEP_ALIVE_S == 75
    assert uvicorn.Config(slow_app).timeout_keep_alive == connections.UVICORN_KEEP_ALIVE_S
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", KEEP_ALIVE_S)
    one = connect()
    one.sendall(HEAD + b"\r\n")
    seconds, found = end_of(one)
    assert found.startswith(b"HTTP/1.1 204")
    assert ANSWER_S + KEEP_ALIVE_S - 0.2 < seconds < ANSWER_S + KEEP_ALIVE_S + 1


def test_nobody_writes_to_a_client_that_left(connect):
    raised.clear()
    one = connect()
    one.sendall(HEAD + b"\r\n")
    time.sleep(0.2)
    one.close()
    time.sleep(ANSWER_S + 0.2)
    assert raised == []


def test_requests_that_are_sent_at_once_are_answered_one_by_one(connect):
    one = connect()
    one.sendall((HEAD + b"\r\n") * 3)
    seconds, found = end_of(one)
    assert found.count(b"HTTP/1.1 204") == 3
    assert seconds > 3 * ANSWER_S


def test_a_client_that_does_not_read_its_answer(connect):
    ended.clear()
    start, one = time.monotonic(), connect()
    one.sendall(b"GET /much HTTP/1.1\r\nhost: a\r\n\r\n")
    while not ended and time.monotonic() - start < 5:
        time.sleep(0.01)
    assert READ_S * 0.9 < time.monotonic() - start < READ_S + 2
    assert len(end_of(one)[1]) < 32 * 2**20  # what was on its way


def test_a_client_that_takes_long_to_read_an_answer_that_was_written_at_once_gets_it(connect):
    one, count, start = connect(), 0, time.monotonic()
    one.sendall(b"GET /whole HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    while got := one.recv(2**18):
        count += len(got)
        time.sleep(0.02)
    assert count > 2**25
    assert time.monotonic() - start > 2 * READ_S


def test_a_client_that_reads_slowly_gets_its_answer(connect):
    one, count = connect(), 0
    one.sendall(b"GET /much HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    while got := one.recv(2**18):
        count += len(got)
        if count < 2**25:
            time.sleep(0.005)
    assert count > 64 * 2**20
