"""Headers that are too many, too long, or without an end: in this process, and as bytes to a real server."""

import asyncio
import json
import socket
import threading

import pytest
import uvicorn
from asgi import BODY, PREDICT, assert_problem, metrics

from deploykit.serving.http import heads
from deploykit.serving.http.heads import MOST, MOST_BYTES, BoundedProtocol

START = b"POST / HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize("extra", [{f"x-{i}": "a" for i in range(MOST)}, {"x-long": "a" * MOST_BYTES}])
def test_headers_that_are_too_many_or_too_long(client, extra):
    assert_problem(client.post(PREDICT, json_body=BODY, headers=extra), 431, "send fewer or shorter")
    assert_problem(client.get("/nowhere", headers=extra), 431, "send fewer or shorter")
    found = metrics(client)
    assert found['deploykit_rejected_total{reason="headers"}'] == 2
    assert found[f'deploykit_requests_total{{route="{PREDICT}",status="431"}}'] == 1


def test_headers_up_to_the_bound(client):
    some = {f"x-{i}": "a" for i in range(MOST - 4)}  # besides the key, the type, the length
    assert client.post(PREDICT, json_body=BODY, headers=some).status == 200
    assert client.post(PREDICT, json_body=BODY, headers={"x-long": "a" * (MOST_BYTES - 200)}).status == 200


async def echo(scope, receive, send):
    """Answers with the number of bytes of a body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%8d" % size})


@pytest.fixture(scope="module")
def address():
    """Of a server that speaks the protocol."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(echo, http=BoundedProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(10)


def conversation(address, pieces):
    """Sends pieces, one after the other, until the server hangs up; returns what it has answered."""
    found = b""
    with socket.create_connection(address, timeout=5) as client:
        client.settimeout(0.05)
        for piece in (*pieces, None):
            try:
                if piece is None:
                    client.settimeout(5)
                    client.shutdown(socket.SHUT_WR)
                else:
                    client.sendall(piece)
                while got := client.recv(65536):
                    found += got
                return found
            except TimeoutError:
                continue
            except (ConnectionError, BrokenPipeError):
                return found
    return found


@pytest.mark.parametrize(
    "pieces",
    [
        [START + b"x: " + b"a" * (MOST_BYTES + 1)],
        [START, *[b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(40)]],
        [b"GET /" + b"a" * MOST_BYTES, b"a"],
        [b"\r\n" * MOST_BYTES],
    ],
    ids=["one header", "many headers", "a path", "nothing at all"],
)
def test_a_request_without_an_end_is_cut_off(address, pieces):
    found = conversation(address, pieces)
    assert found.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in found
    assert json.loads(found.partition(b"\r\n\r\n")[2])["detail"] == heads.DETAIL


def test_trailers_without_an_end_are_cut_off(address):
    begun = START + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
    trailers = [b"x-%d: %s\r\n" % (i, b"a" * 1000) for i in range(40)]
    assert conversation(address, [begun, *trailers, b"\r\n"]) == b""
    assert b"       2" in conversation(address, [begun + trailers[0] + b"\r\n"])


def test_bodies_are_not_headers(address):
    parts = [b"a" * 10000 for _ in range(20)]
    whole = START + b"content-length: 200000\r\n\r\n"
    assert b"  200000" in conversation(address, [whole, *parts])
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    assert b"  200000" in conversation(address, [START + b"transfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"])


@pytest.mark.parametrize("offer", [b"h2c", b"TLS/1.0", b"foo, h2c", b"websocket"])
@pytest.mark.parametrize("cut", [0, 20, 60])
def test_an_offer_of_another_protocol_is_left_and_the_body_is_read(address, cut, offer):
    head = START + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    request = head + b"content-length: 14\r\n\r\n\r\nUpgrade: h2c"  # which is a body's own business
    assert conversation(address, [request[:cut], request[cut:]] if cut else [request]).count(b"      14") == 1
    if offer != b"websocket":  # which the server answers before what was asked first
        assert conversation(address, [request * 2]).startswith(b"HTTP/1.1 200")


def test_many_requests_on_one_connection_are_not_one(address):
    request = START + b"x: " + b"a" * 1000 + b"\r\ncontent-length: 0\r\n\r\n"
    assert conversation(address, [request] * 40).count(b"HTTP/1.1 200") == 40
    halves = [piece for _ in range(20) for piece in (request[:900], request[900:])]
    assert conversation(address, halves).count(b"HTTP/1.1 200") == 20
