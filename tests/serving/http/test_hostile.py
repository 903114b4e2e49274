"""A slice of the attack on a real service, and what the whole one has found."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asgi import BODY, PREDICT, assert_problem
from test_launch import environ
from test_protocols import INFER, tensor

from deploykit.serving.access import keys

FUZZ = Path(__file__).parents[3] / "benchmarks" / "security" / "fuzz_service.py"
CASES = 500
PICKLE = b"application/vnd.bentoml+pickle"


def attacked(*arguments, **options):
    command = [sys.executable, str(FUZZ), *map(str, arguments), "--cases", str(CASES), "--quick"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_a_slice_of_the_attack(package, tmp_path):
    output = tmp_path / "found.json"
    ended = attacked("--package", package, "--output", output, env=environ(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(output.read_text())
    assert found["violations"] == []
    assert {"body", "headers", "paths", "framing", "large bodies"} <= set(found["kinds"])
    assert sum(found["kinds"].values()) > CASES
    assert {"200", "400", "401", "404", "405", "415", "422"} <= set(found["answers"])


@pytest.mark.parametrize("shape", [[9] * 8000, [10**4000] * 250])
def test_a_shape_that_takes_long_to_multiply_is_not_multiplied(client, shape):
    start = time.monotonic()
    answer = client.post(INFER, json_body={"inputs": [tensor(shape=shape)]})
    assert_problem(answer, 422, "does not fit")
    assert "at most 8 items" in answer.json()["errors"][0]["message"]
    assert time.monotonic() - start < 2  # and not 13


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_there_are_not_as_many_mistakes_as_bytes(client, name):
    start = time.monotonic()
    answer = client.post(INFER, json_body={"inputs": [tensor()], name: [{}] * 5000})
    assert_problem(answer, 422, "does not fit")
    assert "too" in answer.json()["errors"][-1]["message"] or "at most" in answer.json()["errors"][-1]["message"]
    answer = client.post(INFER, json_body={"inputs": [tensor()], name: [{}] * 250_000})
    assert_problem(answer, 400, "values and keys")
    assert time.monotonic() - start < 2  # and not 6


def twice(name, *values):
    """An application's view of a request with a header that is sent more than once."""

    def around(app):
        async def asked(scope, receive, send):
            if scope["type"] == "http":
                kept = [pair for pair in scope["headers"] if pair[0] != name]
                scope = {**scope, "headers": [*kept, *((name, value) for value in values)]}
            await app(scope, receive, send)

        return asked

    return around


@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        (b"content-type", (PICKLE, b"application/json"), 415),
        (b"content-type", (b"application/json", PICKLE), 415),
        (b"content-encoding", (b"gzip", b"identity"), 415),
        (b"x-request-timeout-ms", (b"1000", b"2000"), 400),
    ],
)
def test_a_header_sent_twice_is_not_read_once(client, name, values, status, monkeypatch, capfd):
    monkeypatch.setattr(client, "_app", twice(name, *values)(client._app))
    answer = client.post(PREDICT, json_body=BODY)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "Traceback" not in "".join(capfd.readouterr())


def test_two_keys_are_none(client, alice, monkeypatch):
    monkeypatch.setattr(client, "_app", twice(b"x-api-key", alice.encode(), b"dk_x")(client._app))
    assert_problem(client.post(PREDICT, json_body=BODY), 401, "not one of")


@pytest.mark.parametrize(
    "headers", [{"range": "bytes=0-0,5-9"}, {"range": "bytes=--5"}, {"if-none-match": "*"}, {"if-match": "a"}]
)
@pytest.mark.parametrize("path", ["/ui/app.js", "/schema.json"])
def test_what_is_asked_for_in_parts_is_given_whole(serve, package, key_file, path, headers):
    client = serve(package)
    key = {"x-api-key": keys.add(key_file, "docs", ["docs"])}
    whole = client.get(path, headers=key)
    answer = client.get(path, headers={**key, **headers})
    assert (answer.status, answer.content) == (200, whole.content)


def test_a_second_text_is_not_read_once_for_each_word_of_the_first_however_long(
    serve, make_package, tmp_path, key_file
):
    client = serve(make_package(tmp_path / "p", pair=True).path)
    key = {"x-api-key": keys.add(key_file, "why", ["explain"])}
    answer = client.post("/v1/explain", json_body={"texts": ["a b"], "text_pairs": ["a" * 20_001]}, headers=key)
    assert_problem(answer, 422, "does not fit")
    assert answer.json()["errors"] == [
        {"where": "text_pairs.0", "message": "String should have at most 20000 characters"}
    ]
