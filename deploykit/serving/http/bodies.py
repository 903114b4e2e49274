"""The body of a request: read within a limit of size and of time, then parsed within a limit of JSON values.

Each refusal names the limit and by how much it was exceeded.
"""

import asyncio
import re
from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from deploykit.serving.problems import CLIENT_GONE_STATUS, Problem

BODY_TIMEOUT_S = 20.0  # for the whole body, once its request is admitted
LARGE_BODY_BYTES = 16 * 1024  # a larger body is parsed outside the event loop
# Every service reads at least so many values and keys in the JSON of a body. Parsing them takes about 20 ms, during
# which the global interpreter lock stops all other threads.
MIN_JSON_VALUE_LIMIT = 16_384
JSON_VALUES_PER_TEXT = 8  # a service that accepts many texts at once reads so many values and keys for each
# bytes of JSON in a body that continues with binary data (Open Inference Protocol)
JSON_LENGTH_HEADER = "inference-header-content-length"
JSON_LENGTH_PATTERN = re.compile(r"[0-9]{1,12}")  # longer numbers are not converted
BINARY_BODY_TYPES = ("", "application/octet-stream")  # content types of such bodies; clients often send none
MAX_LISTED_MISTAKES = 10  # of a body, in the response that refuses it
JSON_EXPECTED_DETAIL = "send JSON, with the header `Content-Type: application/json`"
MAX_LOCATION_CHARACTERS = 80  # of a mistake: its path may contain a long key that the client made up
STRUCTURAL_BYTES = b'[{,:"'  # in JSON, each value or key follows one of the first four
OTHER_BYTES = bytes(set(range(256)) - set(STRUCTURAL_BYTES))


def media_type(headers: Mapping[str, str]) -> str:
    """Returns the content type of a body, without parameters such as `charset`; empty if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def require_type(headers: Mapping[str, str], *, binary: bool, expected: str = JSON_EXPECTED_DETAIL) -> None:
    """Refuses a body that is not declared as JSON.

    Args:
        headers: of the request.
        binary: whether the types of bodies with binary data after the JSON are accepted, too.
        expected: says in the refusal what to send.

    Raises:
        Problem: 415, the body has another type, or is compressed.
    """
    if media_type(headers) != "application/json" and not (binary and media_type(headers) in BINARY_BODY_TYPES):
        raise Problem(415, "media_type", expected)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "media_type", "send the body as it is, without a content encoding")


async def read(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """Reads a body; one whose `Content-Length` is above `max_bytes` is refused before anything is read.

    Raises:
        Problem: 413 it is too large, 408 it is too slow, 499 the client has disconnected.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(length.lstrip("0"), max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _receive_body(receive, max_bytes)
    except TimeoutError:
        raise Problem(408, "slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def parse(model: type[BaseModel], body: bytes, headers: Mapping[str, str], max_texts: int) -> BaseModel:
    """Parses and validates a body; pydantic's validators get binary data after the JSON as `info.context`.

    Args:
        model: the type of the body.
        body: of the request.
        headers: of the request; they may say where the JSON ends.
        max_texts: how many texts the service accepts at once.

    Raises:
        Problem: 400 the body is not JSON, or has too many values; 422 it does not match the type.
    """
    content, binary = _split_json_and_binary(body, headers)
    values, max_values = count_values(content), max(MIN_JSON_VALUE_LIMIT, JSON_VALUES_PER_TEXT * max_texts)
    if values > max_values:
        detail = f"the body has {values} values and keys, at most {max_values} are read; send fewer texts at once"
        raise Problem(400, "malformed", detail)
    try:
        return model.model_validate_json(content, context=binary)
    except ValidationError as error:
        raise invalid(error) from None


def count_values(body: bytes) -> int:
    """Returns an upper bound of the number of values and keys in JSON; takes milliseconds for a megabyte.

    Each follows one of the characters `[`, `{`, `,` and `:`. Those within strings are left out only if the count with
    them is above `MIN_JSON_VALUE_LIMIT`, because that takes longer.
    """
    count = sum(map(body.count, (b"[", b"{", b",", b":")))
    if count <= MIN_JSON_VALUE_LIMIT:
        return count
    # an escaped quote ends no string; backslashes are removed first, because a quote after two of them does end one
    without_escapes = body.replace(rb"\\", b"").replace(rb"\"", b"")
    structural = np.frombuffer(without_escapes.translate(None, OTHER_BYTES), np.uint8)
    quotes = structural == ord('"')
    in_string = np.cumsum(quotes, dtype=np.int32) & 1 == 1  # an odd number of quotes so far
    return int(np.count_nonzero(~quotes & ~in_string))


def invalid(error: ValidationError) -> Problem:
    """Returns the problem of a body that is not JSON (400), or that does not match its type (422)."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed", f"the body is not JSON: {errors[0]['msg']}")
    mistakes = [
        {
            "where": ".".join(map(str, mistake["loc"]))[:MAX_LOCATION_CHARACTERS] or "body",
            "message": mistake["msg"].removeprefix("Value error, "),
        }
        for mistake in errors[:MAX_LISTED_MISTAKES]
    ]
    detail = f"the body does not fit: {len(errors)} mistake{'s' * (len(errors) > 1)}, see errors"
    return Problem(422, "invalid", detail, errors=mistakes)


async def _receive_body(receive: Receive, max_bytes: int) -> bytes:
    """Joins the pieces of a body; raises a problem if it gets too large (413) or the client disconnects (499)."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(CLIENT_GONE_STATUS, "client_gone", "the client left before its request was complete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise _too_large(f"over {max_bytes}", max_bytes)
    return bytes(body)


def _split_json_and_binary(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Returns the JSON in a body, and the binary data after it; raises a problem (400) if the header is wrong."""
    length = headers.get(JSON_LENGTH_HEADER, str(len(body)))
    if not JSON_LENGTH_PATTERN.fullmatch(length) or int(length) > len(body):
        detail = f"Inference-Header-Content-Length must be a number up to {len(body)}, the length of the body"
        raise Problem(400, "malformed", detail)
    return body[: int(length)], body[int(length) :]


def _too_large(size: str, max_bytes: int) -> Problem:
    """Returns the problem of a body that is too large; `size` is its number of bytes, or a bound of it, in words."""
    detail = f"the body has {size} bytes, at most {max_bytes} are read; send fewer texts at once"
    return Problem(413, "too_large", detail)
