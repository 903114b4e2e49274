"""Hostile requests, made from a seed: what `fuzz_service.py` sends.

Case number i of a seed is always the same. A case says what the service owes: an answer of its own where the bytes
are a complete HTTP request, and at least an end of the connection where they are not.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from hostile_framing import malformed, scratched
from hostile_values import HEADERS, LARGE, METHODS, NAMES, ODD, PATHS, RAW, VALID, WHOLE

Fragments = tuple[bytes, ...]
EXAMPLES: dict[str, Any] = {  # how a path ends, or begins: what it is asked with
    "/v1/predict": {"texts": ["a great film", "the plot is weak"]},
    "/v1/explain": {"texts": ["a great film, and the plot is weak"], "label": None},
    "/infer": {
        "id": "1",
        "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a great film", "weak"]}],
        "outputs": [{"name": "label"}],
    },
    "/models/": {"inputs": ["a great film", "weak"], "parameters": {"top_k": 1}, "options": {}},
}
FILE = "/static_content/swagger-ui.css"


@dataclass(frozen=True)
class Case:
    """What is sent, and what is owed.

    Args:
        kind: for the summary.
        parts: sent one after the other.
        answered: the service itself owes an answer, because the bytes are a complete request.
        parsed: the bytes are what the grammar of HTTP allows, so that no parser may refuse them.
        requests: the most answers that may come back; more means that a body was read as a request.
        pause_s: between parts.
        method: HEAD has no body.
    """

    kind: str
    parts: Fragments
    answered: bool = True
    parsed: bool = False
    requests: int = 1
    pause_s: float = 0.0
    method: str = "POST"


@dataclass(frozen=True)
class Target:
    """A service: its key, which must open everything and have no limits, and its paths by method."""

    key: str
    posts: tuple[str, ...]
    gets: tuple[str, ...]


def make(seed: int, number: int, target: Target) -> Case:
    """Makes one case."""
    chance = random.Random(f"{seed}:{number}")
    (maker,) = chance.choices([body, header, path, framing, large, slow], [440, 200, 120, 220, 16, 4])
    return maker(chance, target)


def warm_up(target: Target) -> list[Case]:
    """Returns a request of each route, and of one that does not exist."""
    posts = [request(target, path, json.dumps(example(path)).encode(), parsed=True) for path in target.posts]
    gets = [request(target, path, method="GET", parsed=True) for path in (*target.gets, "/unknown")]
    return [*posts, *gets]


def example(path: str) -> Any:
    """Returns a body that fits a path."""
    return next(found for part, found in EXAMPLES.items() if path.endswith(part) or path.startswith(part))


def request(target: Target, path: str, content: bytes | None = None, **changes: Any) -> Case:
    """Returns a request as it should be, apart from its `headers`, `kind`, `method` and what is owed for it."""
    method, given = changes.pop("method", "POST"), changes.pop("headers", [])
    headers = [("host", b"127.0.0.1"), ("x-api-key", target.key.encode()), ("connection", b"close")]
    if content is not None:
        headers += [("content-type", b"application/json"), ("content-length", b"%d" % len(content))]
    named = {name for name, _ in given}
    lines = [(name, value) for name, value in headers if name not in named] + given
    head = b"".join(name.encode("latin-1") + b": " + value + b"\r\n" for name, value in lines)
    start = method.encode() + b" " + path.encode("latin-1") + b" HTTP/1.1\r\n"
    return Case(
        changes.pop("kind", "as it should be"), (start + head + b"\r\n" + (content or b""),), method=method, **changes
    )


def body(chance: random.Random, target: Target) -> Case:
    """A request that is well-formed but for its JSON."""
    path = chance.choice(target.posts)
    content = mutated(chance, example(path))
    for _ in range(chance.choice((0, 0, 1, 3))):
        content = scratched(chance, content)
    if chance.random() < 0.05:
        content = chance.choice(WHOLE)
    return request(target, path, content, kind="body", parsed=True)


def mutated(chance: random.Random, value: Any) -> bytes:
    """Changes some nodes of a JSON value, and some of its text."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        value = _changed(chance, value)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    if chance.random() < 0.2:  # what no JSON library writes
        text = text.replace(chance.choice(VALID), chance.choice(RAW), 1)
    if chance.random() < 0.1:  # the same key twice
        text = text.replace(b"{", b'{"texts": ["b"], "inputs": "b", "text": "b", ', 1)
    return text


def _changed(chance: random.Random, value: Any) -> Any:
    """Puts something odd in the place of a node, or around it, or beside it."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        if chance.random() < 0.1:
            return {other: found for other, found in value.items() if other != name}
        if chance.random() < 0.15:
            return {**value, chance.choice(NAMES): chance.choice(ODD)}
        return {**value, name: _changed(chance, value[name])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        changed = [*value[:index], _changed(chance, value[index]), *value[index + 1 :]]
        return changed * chance.choice((1, 1, 1, 1, 2, 9, 40)) if len(str(changed)) < 2000 else changed
    if chance.random() < 0.1:
        return [value] if chance.random() < 0.5 else {"a": value}
    return chance.choice(ODD)


def header(chance: random.Random, target: Target) -> Case:
    """A request whose headers are odd: their values, their number, the key."""
    where = chance.choice(target.posts)
    given = []
    for _ in range(chance.randint(1, 3)):
        name, values = chance.choice(HEADERS)
        value = chance.choice(values) if chance.random() < 0.8 else scratched(chance, chance.choice(values))
        given.append((name, value.translate(None, b"\r\n\x00")))
    if chance.random() < 0.1:
        given += [
            ("x-request-id", b"a"),
            ("x-request-id", b"b"),
            ("content-type", b"application/json"),
            ("x-api-key", b"b"),
        ]
    if chance.random() < 0.05:
        given += [(f"x-{index}", b"a" * chance.choice((1, 100))) for index in range(chance.choice((50, 300)))]
    if chance.random() < 0.03:
        given.append(("x-large", b"a" * chance.choice((9_000, 70_000, 300_000))))
    if any(name == "connection" for name, _ in given):
        given.append(("connection", b"close"))
    made = request(target, where, json.dumps(example(where)).encode(), headers=given, kind="headers")
    return (
        made
        if chance.random() < 0.5
        else request(target, chance.choice(target.gets), headers=given, method="GET", kind="headers")
    )


def path(chance: random.Random, target: Target) -> Case:
    """A path or a method that does not exist, or nearly does."""
    known = chance.choice((*target.posts, *target.gets))
    where = chance.choice(
        (
            chance.choice(PATHS),
            known,
            known + chance.choice(PATHS),
            known + chance.choice(("%00", "%0a", "\xe9", "?", "/", "%20")),
        )
    )
    content = json.dumps(example(target.posts[0])).encode() if chance.random() < 0.5 else None
    return request(target, where[:65_000], content, method=chance.choice(METHODS), kind="paths")


def large(chance: random.Random, target: Target) -> Case:
    """A body of up to a megabyte that is made to cost time or memory."""
    where = chance.choice(target.posts)
    name = chance.choice([*example(where), "texts"])
    return request(
        target, where, chance.choice(LARGE).replace(b"@", name.encode(), 1), kind="large bodies", parsed=True
    )


def slow(chance: random.Random, target: Target) -> Case:
    """A request whose body never ends: the rest is announced and does not come, or comes byte by byte."""
    content = json.dumps(example(target.posts[0])).encode()
    (whole,) = request(target, target.posts[0], content).parts
    cut, single = len(whole) - chance.randint(1, len(content)), chance.choice((0, 0, 30))
    parts = (whole[: cut - single], *(bytes([byte]) for byte in whole[cut - single : cut]))
    return Case("slow", parts, answered=False, pause_s=1.0)


def framing(chance: random.Random, target: Target) -> Case:
    """Bytes that are not quite HTTP, in one piece or in ten."""
    where = chance.choice(target.posts)
    (whole,) = request(target, where, json.dumps(example(where)).encode()).parts
    sent, most = malformed(chance, whole)
    size = len(sent) if chance.random() < 0.8 else len(sent) // 9
    parts = tuple(sent[at : at + size + 1] for at in range(0, len(sent), size + 1))
    return Case("framing", parts, answered=False, requests=most)
