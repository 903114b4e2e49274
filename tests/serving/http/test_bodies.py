"""The number of values in JSON, counted before it is parsed: bounded, whatever the texts contain."""

import json
import random
import time

import pytest
from asgi import PREDICT, assert_problem

from deploykit.serving.http import bodies

WORDS = ["", "[", "]", "{}", "[[[", '"', '"[', "\\", "\\\\", '\\"', '\\\\"', '"]\\', "}\\{", "é[", "\n{", "\x00", "👍"]
VALUES = ["[]", "{}", "1", '""', "null", '"a"', '"\\ud800"', "[1]", '{"a":1}']


@pytest.fixture(autouse=True)
def _count_always(monkeypatch, request):
    """Counts inside texts too, where the number of characters alone would say enough."""
    if "counted" in request.fixturenames:
        monkeypatch.setattr(bodies, "MIN_JSON_VALUE_LIMIT", -1)


@pytest.fixture
def counted():
    return lambda content: bodies.count_values(content if isinstance(content, bytes) else json.dumps(content).encode())


def random_json(rng, levels):
    kind = rng.random()
    if levels and kind < 0.4:
        return [random_json(rng, levels - 1) for _ in range(rng.randrange(4))]
    if levels and kind < 0.8:
        return {text(rng): random_json(rng, levels - 1) for _ in range(rng.randrange(4))}
    return rng.choice([None, True, -1.5e3, 0, text(rng), text(rng)])


def text(rng):
    return "".join(rng.choices(WORDS, k=rng.randrange(6)))


def values_of(content):
    """Counts values and keys."""
    if isinstance(content, dict):
        return 1 + len(content) + sum(map(values_of, content.values()))
    return 1 + sum(map(values_of, content)) if isinstance(content, list) else 1


@pytest.mark.parametrize("seed", range(20))
def test_values_are_not_fewer_than_the_parser_makes(counted, seed):
    rng = random.Random(seed)  # noqa: S311
    for _ in range(100):
        content = random_json(rng, rng.randrange(12))
        expected = values_of(content)
        for ascii_only, indent in ((True, None), (False, None), (True, 1)):
            body = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode()
            assert expected - 1 <= counted(body) <= 2 * expected + 1, body


def test_characters_in_texts_are_not_counted(counted):
    assert counted({"texts": [":{[,\\" * 10000, '\\",' * 10000]}) == 4
    assert counted({"inputs": [{"text": "a", "text_pair": "b"}] * 2000}) < bodies.JSON_VALUES_PER_TEXT * 2000


@pytest.mark.parametrize("piece", [b"[", b"[],", b'"', b'\\"', b'"[\\",', b"\\", b'"a",[', b"a", b'",",', b'"",'])
def test_a_megabyte_of_anything_is_counted_quickly(counted, piece):
    body = b'{"texts":["' + piece * (1_000_000 // len(piece))
    start = time.process_time()
    counted(body)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize("value", [*VALUES, '"%d":1'])
def test_a_body_of_many_values_holds_nobody_up(client, value):
    values = [value % number if "%" in value else value for number in range(1_000_000 // (len(value) + 5))]
    body = f'{{"texts":[{",".join(values)}]}}' if "%" not in value else f"{{{','.join(values)}}}"
    start = time.process_time()
    answer = client.post(PREDICT, content=body.encode(), headers={"content-type": "application/json"})
    assert time.process_time() - start < 0.2
    assert_problem(
        answer, 400, f"values and keys, at most {bodies.MIN_JSON_VALUE_LIMIT} are read; send fewer texts at once"
    )
    assert int(answer.json()["detail"].split()[3]) >= len(values)


@pytest.mark.parametrize(("levels", "status", "detail"), [(150, 422, "does not fit"), (5000, 400, "recursion limit")])
def test_deep_json_is_refused(client, levels, status, detail):
    body = b'{"texts": ["a"], "other": ' + b"[" * levels + b"]" * levels + b"}"
    answer = client.post(PREDICT, content=body, headers={"content-type": "application/json"})
    assert_problem(answer, status, detail)
    in_a_text = json.dumps({"texts": ["[" * levels]}).encode()
    assert client.post(PREDICT, content=in_a_text, headers={"content-type": "application/json"}).status == 200
