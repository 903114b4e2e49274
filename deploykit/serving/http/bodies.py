"""The body of a request: read up to its largest size and within a time, and parsed if it has not too many values.

Each refusal names the bound that was exceeded, and by how much.
"""

import asyncio
import re
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from deploykit.serving.problems import CLIENT_GONE, Problem

BODY_TIMEOUT_S = 20.0  # from the first to the last byte of a body
LARGE_BYTES = 16 * 1024  # a larger body is parsed outside the event loop
MAX_VALUES = 16_384  # values and names in JSON: some 20 ms of parsing, in which no other thread runs
VALUES_PER_TEXT = 8  # a service that accepts many texts at once accepts as many values as they need
JSON_LENGTH = "inference-header-content-length"  # the size of the JSON in a body with binary data after it
LENGTH = re.compile(r"[0-9]{1,12}")  # longer numbers are not converted
BINARY_TYPES = ("", "application/octet-stream")  # content types of such bodies; their clients often send none
MAX_MISTAKES = 10
JSON_EXPECTED = "send JSON, with the header `Content-Type: application/json`"
MAX_LOCATION_CHARACTERS = 80  # a location may contain a key that the client has made up
STRUCTURE = b'[{,:"'
OTHER_BYTES = bytes(set(range(256)) - set(STRUCTURE))


def media_type(headers: Mapping[str, str]) -> str:
    """Returns the content type of a body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def require_type(headers: Mapping[str, str], *, binary: bool, expected: str = JSON_EXPECTED) -> None:
    """Refuses a body that is not declared as JSON; `binary` says whether binary data may follow the JSON.

    Raises:
        Problem: 415, the body has another type, or is compressed.
    """
    if media_type(headers) != "application/json" and not (binary and media_type(headers) in BINARY_TYPES):
        raise Problem(415, "media_type", expected)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "media_type", "send the body as it is, without a content encoding")


async def read(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """Reads a body; a `Content-Length` above the bound is refused before anything is read.

    Raises:
        Problem: 413 it is too large, 408 it is too slow, 499 the client has disconnected.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(length.lstrip("0"), max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _received(receive, max_bytes)
    except TimeoutError:
        raise Problem(408, "slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def parse(model: type[BaseModel], body: bytes, headers: Mapping[str, str], max_texts: int) -> BaseModel:
    """Parses and validates a body; binary data after its JSON becomes the context of the validation.

    Args:
        model: the type of the body.
        body: of the request.
        headers: of the request; they may say where the JSON ends.
        max_texts: that the service accepts at once.

    Raises:
        Problem: 400 it is not JSON, or has too many values, 422 it does not match the type.
    """
    content, binary = _split(body, headers)
    values, max_values = count_values(content), max(MAX_VALUES, VALUES_PER_TEXT * max_texts)
    if values > max_values:
        detail = f"the body has {values} values and names, at most {max_values} are read; send fewer texts at once"
        raise Problem(400, "malformed", detail)
    try:
        return model.model_validate_json(content, context=binary)
    except ValidationError as error:
        raise invalid(error) from None


def count_values(body: bytes) -> int:
    """Counts the values and names in JSON, or a few more, in milliseconds for a megabyte."""
    count = sum(map(body.count, (b"[", b"{", b",", b":")))
    if count <= MAX_VALUES:
        return count
    escaped = body.replace(rb"\\", b"").replace(rb"\"", b"")  # in this order: the quote after two backslashes counts
    marks = np.frombuffer(escaped.translate(None, OTHER_BYTES), np.uint8)
    quotes = marks == STRUCTURE[-1]
    inside = np.cumsum(quotes, dtype=np.int32) & 1 == 1
    return int(np.count_nonzero(~quotes & ~inside))


def invalid(error: ValidationError) -> Problem:
    """Returns the problem of a body that does not match its type; it lists the first mistakes."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed", f"the body is not JSON: {errors[0]['msg']}")
    mistakes = [
        {
            "where": ".".join(map(str, mistake["loc"]))[:MAX_LOCATION_CHARACTERS] or "body",
            "message": mistake["msg"].removeprefix("Value error, "),
        }
        for mistake in errors[:MAX_MISTAKES]
    ]
    detail = f"the body does not fit: {len(errors)} mistake{'s' * (len(errors) > 1)}, see errors"
    return Problem(422, "invalid", detail, errors=mistakes)


async def _received(receive: Receive, max_bytes: int) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(CLIENT_GONE, "client_gone", "the client left before its request was complete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise _too_large(f"over {max_bytes}", max_bytes)
    return bytes(body)


def _split(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Returns the JSON in a body, and the binary data after it."""
    length = headers.get(JSON_LENGTH, str(len(body)))
    if not LENGTH.fullmatch(length) or int(length) > len(body):
        detail = f"Inference-Header-Content-Length must be a number up to {len(body)}, the length of the body"
        raise Problem(400, "malformed", detail)
    return body[: int(length)], body[int(length) :]


def _too_large(size: str, max_bytes: int) -> Problem:
    detail = f"the body has {size} bytes, at most {max_bytes} are read; send fewer texts at once"
    return Problem(413, "too_large", detail)
