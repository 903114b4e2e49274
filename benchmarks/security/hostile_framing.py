"""Bytes that are not quite HTTP: framing that servers and proxies read differently, and worse."""

import random
from dataclasses import dataclass

INNER = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"  # what must not be read as a request


@dataclass(frozen=True)
class Whole:
    """A request as it should be: its `head`, the same without its length, its body and that in one chunk."""

    text: bytes

    @property
    def head(self) -> bytes:
        """The lines before the body."""
        return self.text.partition(b"\r\n\r\n")[0]

    @property
    def bare(self) -> bytes:
        """The head, which does not say how long the body is."""
        return b"\r\n".join(line for line in self.head.split(b"\r\n") if not line.startswith(b"content-length"))

    @property
    def content(self) -> bytes:
        """The body."""
        return self.text.partition(b"\r\n\r\n")[2]

    @property
    def chunks(self) -> bytes:
        """The body in one chunk."""
        return b"%x\r\n%s\r\n0\r\n\r\n" % (len(self.content), self.content)


def malformed(chance: random.Random, text: bytes) -> tuple[bytes, int]:
    """Makes bytes of a request, and says how many answers there may be at most."""
    whole = Whole(text)
    if chance.random() < 0.5:
        return chance.choice(refused(chance, whole)), 1
    return chance.choice(odd(chance, whole)), 3


def scratched(chance: random.Random, content: bytes) -> bytes:
    """Changes, drops, doubles or adds bytes."""
    if not content:
        return content
    where, size = chance.randrange(len(content)), chance.choice((1, 1, 2, 8))
    same = content[where : where + size]
    new = chance.choice((b"", chance.randbytes(size), same * 2, b"\x00", b"\xff", b"\xef\xbb\xbf"))
    return content[:where] + new + content[where + size :]


def refused(chance: random.Random, whole: Whole) -> list[bytes]:
    """What no server may take for a request and a second one."""
    lengths = (b"+5", b"-1", b"0x10", b"9" * 30, b"5, 5", b"5 5", b"")
    codings = (b"xchunked", b"chunked, identity", b"identity, chunked, x", b'"chunked"')
    chunks = (b"-1\r\n", b"f" * 17 + b"\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n", b"\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n")
    lines = (b"x: a\x00b", b"x\x00: b", b"a b: c", b": c", b"no colon", b"x: a\rb", b"\xffx: a")
    return [
        *(_with(whole.bare, b"content-length: " + length, whole.content + INNER) for length in lengths),
        *(_with(whole.bare, b"transfer-encoding: " + coding, whole.chunks + INNER) for coding in codings),
        *(_with(whole.bare, b"transfer-encoding: chunked", chunk + INNER) for chunk in chunks),
        *(_with(whole.head, line, whole.content) for line in lines),
        _with(whole.head, b"transfer-encoding: chunked", whole.chunks + INNER),
        _with(whole.head, b"content-length: 1", whole.content + INNER),
        _with(whole.bare, b"transfer-encoding : chunked", whole.chunks + INNER),
        whole.text.replace(b"HTTP/1.1", b"HTTP/9.9"),
        whole.text.replace(b" HTTP/1.1", b""),
        whole.text.replace(b"POST /", b"POST  /"),
        whole.text.replace(b"POST", b"P\xffST"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(64),
        b"GET\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        chance.randbytes(chance.choice((1, 10, 300, 5000))),
    ]


def odd(chance: random.Random, whole: Whole) -> list[bytes]:
    """What a server may take or leave, but must not choke on."""
    chunked, where = b"transfer-encoding: chunked", whole.text.split(b" ")[1]
    many = (b"1\r\n{\r\n" * 2000 + b"0\r\n\r\n", b"0\r\n" + b"x-t: a\r\n" * 2000 + b"\r\n")
    extensions = (b';a=b;c="d"', b";" + b"a" * 100_000, b" ; a", b";\x00")
    upgrade = b"upgrade: websocket\r\nconnection: upgrade"
    socket = upgrade + b"\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + b"a" * 22 + b"=="
    return [
        *(_with(whole.bare, chunked, chunks) for chunks in (whole.chunks, *many)),
        *(_with(whole.bare, chunked, b"2" + extension + b"\r\n{}\r\n0\r\n\r\n") for extension in extensions),
        *(_with(whole.head, lines, b"") for lines in (upgrade, socket, b"upgrade: h2c\r\nconnection: upgrade")),
        *(whole.text.replace(b"\r\n", end) for end in (b"\n", b"\r", b"\r\n ", b"\n\r")),
        *(whole.text.replace(where, other, 1) for other in (b"http://evil.example/", b"*", b"a:1", b"//evil/..")),
        *(whole.text.replace(b"POST", method, 1) for method in (b"CONNECT", b"OPTIONS", b"post")),
        _with(whole.head, b"x: a\r\n folded", whole.content),
        _with(whole.bare, b"transfer-encoding:\r\n chunked", whole.chunks + INNER),
        _with(whole.bare, chunked.upper(), whole.chunks),
        _with(whole.head, b"expect: 100-continue", whole.content),
        _with(whole.bare, b"x: a", whole.content),
        whole.text.replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"\r\n\r\n" + whole.text,
        whole.text[: chance.randrange(len(whole.text))],
        scratched(chance, scratched(chance, whole.text)),
        scratched(chance, whole.head) + b"\r\n\r\n" + whole.content,
        whole.text + whole.text,
        whole.text + chance.randbytes(40),
        whole.text.replace(b"connection: close", b"connection: keep-alive") + INNER + whole.text,
    ]


def _with(head: bytes, line: bytes, rest: bytes) -> bytes:
    return b"\r\n".join((head, line, b"", rest))
