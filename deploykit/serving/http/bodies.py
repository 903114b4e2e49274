"""The body of a request: read up to its cap, as long as it comes, and parsed within bounds.

Every refusal says which bound it is about, and by how much it was passed.
"""

import asyncio
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from deploykit.serving.api.schemas import faults
from deploykit.serving.http import json_bounds
from deploykit.serving.problems import CLIENT_GONE, Problem

BODY_TIMEOUT_S = 20.0  # a client that sends its body slower than this is not waited for
LARGE_BYTES = 16 * 1024  # a body of more is parsed beside the event loop
JSON_LENGTH = "inference-header-content-length"  # where the body goes on after its JSON
DIGITS = 12  # of a length; more are not converted
BINARY_TYPES = ("", "application/octet-stream")  # of such bodies; their clients often name none


def require_type(headers: Mapping[str, str], *, binary: bool) -> None:
    """Refuses a body that is not said to be JSON.

    Args:
        headers: of the request.
        binary: whether binary data may follow the JSON.

    Raises:
        Problem: 415 it is something else, or compressed.
    """
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (binary and media in BINARY_TYPES):
        raise Problem(415, "media_type", "send JSON, with the header `Content-Type: application/json`")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "media_type", "send the body as it is, without a content encoding")


async def read(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """Reads a body up to its cap; what the client announces is believed only if it is too much.

    Raises:
        Problem: 413 it is too large, 408 it does not come, 499 the client left.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(announced.lstrip("0"), max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _received(receive, max_bytes)
    except TimeoutError:
        raise Problem(408, "slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def parsed(model: type[BaseModel], body: bytes, headers: Mapping[str, str], max_texts: int) -> BaseModel:
    """Parses and checks a body; binary data that follows its JSON is the context of the check.

    Args:
        model: what the body must be.
        body: of the request.
        headers: of the request, which may say where its JSON ends.
        max_texts: that the service takes at once.

    Raises:
        Problem: 400 it is not JSON, or has too much in it, 422 it does not fit.
    """
    content, binary = _split(body, headers)
    if refusal := json_bounds.refusal(content, max_texts):
        raise Problem(400, "malformed", refusal)
    try:
        return model.model_validate_json(content, context=binary)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise Problem(400, "malformed", f"the body is not JSON: {errors[0]['msg']}") from None
        detail = f"the body does not fit: {len(errors)} mistake{'s' * (len(errors) > 1)}, see errors"
        raise Problem(422, "invalid", detail, errors=faults(errors)) from None


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
    """Returns the JSON of a body, and the binary data that follows it."""
    length = headers.get(JSON_LENGTH, str(len(body)))
    if not (length.isascii() and length.isdecimal() and len(length) <= DIGITS and int(length) <= len(body)):
        detail = f"Inference-Header-Content-Length must be a number up to {len(body)}, the length of the body"
        raise Problem(400, "malformed", detail)
    return body[: int(length)], body[int(length) :]


def _too_large(size: str, max_bytes: int) -> Problem:
    return Problem(
        413, "too_large", f"the body has {size} bytes, at most {max_bytes} are read; send fewer texts at once"
    )
