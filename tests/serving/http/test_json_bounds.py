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
            assert json_bounds.measure(body)[0] == deep_of(json.loads(body)), body
        seen.add(deep_of(content))
    assert len(seen) > 5


@pytest.mark.parametrize("seed", range(5))
def test_what_is_cut_off_is_as_deep_as_it_was(seed):
    """A parser goes no deeper than what stands before a mistake."""
    rng = random.Random(seed)  # noqa: S311
    for _ in range(30):
        body = json.dumps(some_json(rng, 10)).encode()
        for end in range(len(body) + 1):
            assert json_bounds.measure(body[:end])[0] == followed(body[:end]), body[:end]


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


@pytest.mark.parametrize("seed", range(5))
def test_values_are_not_fewer_than_the_parser_makes(seed):
    rng = random.Random(seed)  # noqa: S311
    for _ in range(100):
        content = some_json(rng, rng.randrange(12))
        made = values_of(content)
        assert made - 1 <= json_bounds.measure(json.dumps(content).encode())[1] <= 2 * made + 1


def values_of(content):
    """Counts values and names."""
    if isinstance(content, dict):
        return 1 + len(content) + sum(map(values_of, content.values()))
    return 1 + sum(map(values_of, content)) if isinstance(content, list) else 1


@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_the_bound_on_levels(pair):
    start, end = pair[:-1].encode(), pair[-1:].encode()
    levels = json_bounds.MAX_DEPTH
    assert json_bounds.refusal(start * levels + b"1" + end * levels) is None
    assert "nests 33 levels deep, at most 32" in json_bounds.refusal(start * (levels + 1) + b"1" + end * (levels + 1))
    assert json_bounds.refusal(b"[" + b"[]," * 5000 + b"[]]") is None
    assert json_bounds.refusal(json.dumps(["[" * 10000]).encode()) is None


VALUES = ["[]", "{}", "1", '""', "null", '"a"', '"\\ud800"', "[1]", '{"a":1}']


@pytest.mark.parametrize("value", VALUES)
def test_the_bound_on_values(value):
    most = json_bounds.MAX_VALUES
    few, many = (f"[{','.join([value] * count)}]".encode() for count in (most // 4, most + 2))
    assert json_bounds.refusal(few) is None
    assert f"values and names, at most {most} are read" in json_bounds.refusal(many)
    assert json_bounds.refusal(many, max_texts=most) is None


def test_what_stands_in_strings_is_no_value():
    assert json_bounds.refusal(json.dumps({"texts": [":{[,\\" * 10000, '\\",' * 10000]}).encode()) is None
    assert json_bounds.refusal(json.dumps({"inputs": [{"text": "a", "text_pair": "b"}] * 2000}).encode()) is None


@pytest.mark.parametrize("piece", [b"[", b"[],", b'"', b'\\"', b'"[\\",', b"\\", b'"a",[', b"a", b'",",', b'"",'])
def test_a_megabyte_of_anything_is_counted_at_once(piece):
    body = b'{"texts":["' + piece * (1_000_000 // len(piece))
    start = time.process_time()
    json_bounds.refusal(body)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize("value", [*VALUES, '"%d":1'])
def test_a_body_of_many_values_holds_nobody_up(client, value):
    values = [value % number if "%" in value else value for number in range(1_000_000 // (len(value) + 5))]
    body = f'{{"texts":[{",".join(values)}]}}' if "%" not in value else f"{{{','.join(values)}}}"
    start = time.process_time()
    answer = client.post(PREDICT, content=body.encode(), headers={"content-type": "application/json"})
    assert time.process_time() - start < 0.2
    assert_problem(
        answer, 400, f"values and names, at most {json_bounds.MAX_VALUES} are read; send fewer texts at once"
    )
    assert int(answer.json()["detail"].split()[3]) >= len(values)


def test_a_body_that_nests_too_deep_is_refused(client):
    levels = json_bounds.MAX_DEPTH
    for body, status in ((deep(levels - 3), 422), (deep(levels), 400)):
        answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
        assert answer.status == status
    assert_problem(answer, 400, f"nests {levels + 1} levels deep, at most {levels} are read")
    many = json.dumps({"texts": ["[" * 500]}).encode()
    assert client.post(PREDICT, content=many, headers={"content-type": "application/json"}).status == 200


def deep(levels):
    return b'{"texts": ["a"], "other": ' + b"[" * levels + b"]" * levels + b"}"
