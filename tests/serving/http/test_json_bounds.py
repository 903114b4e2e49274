"""How deep JSON nests: the same as the parser's own answer, for whatever texts hold."""

import json
import random
import time

import pytest
from asgi import PREDICT, assert_problem

from deploykit.serving.http import json_bounds

WORDS = ["", "[", "]", "{}", "[[[", '"', '"[', "\\", "\\\\", '\\"', '\\\\"', '"]\\', "}\\{", "é[", "\n{", "\x00", "👍"]


def deep_of(content):
    if isinstance(content, dict):
        return 1 + max(map(deep_of, content.values()), default=0)
    return 1 + max(map(deep_of, content), default=0) if isinstance(content, list) else 0


def some_json(rng, levels):
    kind = rng.random()
    if levels and kind < 0.4:
        return [some_json(rng, levels - 1) for _ in range(rng.randrange(4))]
    if levels and kind < 0.8:
        return {text(rng): some_json(rng, levels - 1) for _ in range(rng.randrange(4))}
    return rng.choice([None, True, -1.5e3, 0, text(rng), text(rng)])


def text(rng):
    return "".join(rng.choices(WORDS, k=rng.randrange(6)))


@pytest.mark.parametrize("seed", range(20))
def test_depth_is_what_the_parser_finds(seed):
    rng, seen = random.Random(seed), set()  # noqa: S311
    for _ in range(100):
        content = some_json(rng, rng.randrange(12))
        for ascii_only, indent in ((True, None), (False, None), (True, 1)):
            body = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode()
            assert json_bounds.depth(body) == deep_of(json.loads(body)), body
        seen.add(deep_of(content))
    assert len(seen) > 5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_cut_off_is_as_deep_as_it_was(seed):
    """A parser goes no deeper than what stands before a mistake."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(30):
        body = json.dumps(some_json(rng, 10)).encode()
        for end in range(len(body) + 1):
            assert json_bounds.depth(body[:end]) == followed(body[:end]), body[:end]


def followed(prefix):
    """The depth, found character by character."""
    inside = skip = False
    now = most = 0
    for character in prefix.decode():
        if skip or (inside and character == "\\"):
            skip = not skip
        elif character == '"':
            inside = not inside
        elif not inside:
            now += (character in "[{") - (character in "]}")
            most = max(most, now)
    return most


@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_the_bound(pair):
    start, end = pair[:-1].encode(), pair[-1:].encode()
    levels = json_bounds.MOST
    assert not json_bounds.too_deep(start * levels + b"1" + end * levels)
    assert json_bounds.too_deep(start * (levels + 1) + b"1" + end * (levels + 1))
    assert not json_bounds.too_deep(b"[" + b"[]," * 10000 + b"[]]")
    assert not json_bounds.too_deep(json.dumps(["[" * 10000]).encode())


@pytest.mark.parametrize("piece", [b"[", b"[],", b'"', b'\\"', b'"[\\",', b"\\", b'"a",[', b"a"])
def test_a_megabyte_of_anything_is_counted_at_once(piece):
    body = b'{"texts":["' + piece * (1_000_000 // len(piece))
    start = time.process_time()
    json_bounds.too_deep(body)
    assert time.process_time() - start < 0.5


def test_objects_and_names_are_counted_outside_of_strings():
    names = b",".join(b'"%d":1' % number for number in range(json_bounds.MEMBERS - 1))
    assert not json_bounds.too_many(b"{" + names + b"}")
    assert json_bounds.too_many(b"{" + names + b',"a":1}')
    assert json_bounds.too_many(b"[" + b"{}," * json_bounds.MEMBERS + b"{}]")
    assert not json_bounds.too_many(json.dumps({"texts": [":{" * 10000]}).encode())
    assert not json_bounds.too_many(json.dumps({"inputs": [{"text": "a", "text_pair": "b"}] * 2000}).encode())


def test_a_body_of_names_that_nobody_knows_holds_nobody_up(client):
    body = b"{" + b",".join(b'"%d":1' % number for number in range(95_000)) + b"}"
    start = time.process_time()
    answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
    assert time.process_time() - start < 0.1
    assert_problem(answer, 400, f"over {json_bounds.MEMBERS} objects and names")


def test_a_body_that_nests_too_deep_is_refused(client):
    levels = json_bounds.MOST
    for body, status in ((deep(levels - 3), 422), (deep(levels), 400)):
        answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
        assert answer.status == status
    assert_problem(answer, 400, f"nests over {levels} levels")
    many = json.dumps({"texts": ["[" * 500]}).encode()
    assert client.post(PREDICT, content=many, headers={"content-type": "application/json"}).status == 200


def deep(levels):
    return b'{"texts": ["a"], "other": ' + b"[" * levels + b"]" * levels + b"}"
