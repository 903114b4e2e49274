"""Headers that are too many or too long, and requests that offer another protocol, as bytes to a real server."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn
from asgi import BODY, PREDICT, assert_problem, metrics

from deploykit.serving.http.connections import MAX_HEADER_BYTES, MAX_HEADERS, Connection

START = b"POST / HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize("extra", [{f"x-{i}": "a" for i in range(MAX_HEADERS)}, {"x-long": "a" * MAX_HEADER_BYTES}])
def test_headers_that_are_too_many_or_too_long(client, extra):
    assert_problem(client.post(PREDICT, json_body=BODY, headers=extra), 431, "send fewer or shorter")
    assert_problem(client.get("/nowhere", headers=extra), 431, "send fewer or shorter")
    found = metrics(client)
    assert found['deploykit_rejected_total{reason="headers"}'] == 2
    assert found[f'deploykit_requests_total{{route="{PREDICT}",status="431"}}'] == 1


def test_headers_up_to_the_bound(client):
    some = {f"x-{i}": "a" for i in range(MAX_HEADERS - 4)}  # besides the key, the type, the length
    assert client.post(PREDICT, json_body=BODY, headers=some).status == 200
    assert client.post(PREDICT, json_body=BODY, headers={"x-long": "a" * (MAX_HEADER_BYTES - 200)}).status == 200


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
    config = uvicorn.Config(echo, http=Connection, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield listening.getsockname()
    server.should_exit = True
    thread.join(10)


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Connection: keep-alive, upgrade\r\nUPGRADE:TLS/1.0\r\n",
    b"upgrade: foo, h2c\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
]
LAST = START + b"connection: close\r\ncontent-length: 3\r\n\r\nabc"
HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n"  # which is a body's own business


def sizes(answers):
    """The sizes of the bodies that were read, one for each answer."""
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 OK")
    return [int(answer[-8:]) for answer in answers.split(b"HTTP/1.1 200 OK")[1:]]


def offering(offer, chunked=False):
    """A request that offers to go on in another protocol, and whose body looks like a request."""
    if chunked:
        return START + offer + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    return START + offer + b"Content-Length: %d\r\n\r\n%s" % (len(HIDDEN), HIDDEN)


def answers_in_two_packets(address, request, cuts):
    """Sends a request once for each place where it is cut in two; returns what each connection has answered."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in cuts]
        for connection, cut in zip(opened, cuts, strict=True):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request[:cut])
        time.sleep(0.3)
        for connection, cut in zip(opened, cuts, strict=True):
            with contextlib.suppress(ConnectionError):  # the server may have hung up
                connection.sendall(request[cut:])
        return [everything(connection) for connection in opened]


def everything(connection):
    """Reads until the server hangs up."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "TLS", "several", "websocket"])
def test_an_offer_of_another_protocol_is_ignored_wherever_it_is_cut(address, offer, chunked):
    request = offering(offer, chunked)
    for answer in answers_in_two_packets(address, request + LAST, range(1, len(request))):
        assert sizes(answer) == [len(HIDDEN), 3]


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "TLS", "several", "websocket"])
def test_an_offer_of_another_protocol_is_ignored_byte_by_byte_and_between_other_requests(address, offer):
    request, plain = offering(offer), LAST.replace(b"connection: close\r\n", b"")
    whole = plain + request + request + LAST
    for answer in answers_in_two_packets(address, whole, [1, len(plain) + len(request) - 20, len(whole) - 1]):
        assert sizes(answer) == [3, len(HIDDEN), len(HIDDEN), 3]
    with socket.create_connection(address, timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request + LAST:
            connection.sendall(bytes([byte]))
        assert sizes(everything(connection)) == [len(HIDDEN), 3]


def test_a_tunnel_is_refused_and_what_follows_is_not_read_as_a_request(address):
    request = b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(HIDDEN), HIDDEN)
    for answer in answers_in_two_packets(address, request, range(1, len(request) - 1, 7)):
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
