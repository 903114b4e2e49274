"""One call to a service: requests, retries and answers, without waiting or sending.

429, 502 and 503 are retried after Retry-After, failed connections with exponential backoff, until the time of the call
is used up. Asking for a prediction twice does no harm.
"""

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from deploykit.client.answers import Explanation, Prediction
from deploykit.errors import InputError, ServiceError

RETRIED_STATUSES = (429, 502, 503)  # the service has not begun to work on the request
FINAL_ERRORS = (
    httpx.ReadTimeout,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
    httpx.DecodingError,
)  # another attempt would not help
MAX_TIMEOUT_S = 999_999.0  # the largest deadline that a service accepts
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0  # between attempts, if the service sends no Retry-After
Outcome = httpx.Response | httpx.RequestError | None
Steps = Generator[httpx.Request | float, Outcome, Any]  # a step: a request to send, or seconds to sleep


class Conversation:
    """What both clients do, except sending and waiting.

    Args:
        url: of the service, for example `http://127.0.0.1:3000`.
        key: that opens it; None where access control is off.
        timeout_s: for each call, all attempts together; a `Client` bounds every read until an answer begins, and from
            then on looks at the clock with each piece.
        retries: attempts after the first.

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        self._url, self._timeout_s, self._retries = _checked_url(url), min(timeout_s, MAX_TIMEOUT_S), retries
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("a key has letters, digits, `_`, `-` and `.` only. Copy it again, as it was shown.")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def _predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None) -> Steps:
        if isinstance(texts, str) or isinstance(text_pairs, str):
            raise InputError("texts are a list: predict([text]), not predict(text).")
        texts = list(texts)
        pairs = {} if text_pairs is None else {"text_pairs": list(text_pairs)}

        def read(found: httpx.Response) -> list[Prediction]:
            request, answers = found.headers.get("x-request-id", ""), found.json()["predictions"]
            if len(answers) != len(texts):
                raise ValueError(f"{len(answers)} answers to {len(texts)} texts")
            return [
                Prediction.model_validate({"request": request, "index": at, **one}) for at, one in enumerate(answers)
            ]

        return (yield from self._asked("POST", "/v1/predict", {"texts": texts, **pairs}, read))

    def _explain(self, text: str, label: str | None, text_pair: str | None) -> Steps:
        pairs = {} if text_pair is None else {"text_pairs": [text_pair]}
        body = {"texts": [text], **pairs, **({} if label is None else {"label": label})}
        return (
            yield from self._asked("POST", "/v1/explain", body, lambda found: Explanation.model_validate(found.json()))
        )

    def _feedback(self, prediction: Prediction, label: str, comment: str | None) -> Steps:
        body = {"id": prediction.request, "index": prediction.index, "label": label, "comment": comment}
        return (yield from self._asked("POST", "/v1/feedback", body, lambda found: bool(found.json()["recorded"])))

    def _ready(self) -> Steps:
        found = yield httpx.Request("GET", f"{self._url}/readyz", extensions=_timeouts(self._timeout_s))
        return isinstance(found, httpx.Response) and found.status_code == 200

    def _asked(self, method: str, path: str, body: Mapping[str, Any], read: Callable[[httpx.Response], Any]) -> Steps:
        end = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            left = max(end - time.monotonic(), 0.001)
            headers = {**self._headers, "x-request-timeout-ms": str(max(1, int(1000 * left)))}
            try:
                request = httpx.Request(
                    method, self._url + path, json=body, headers=headers, extensions=_timeouts(left)
                )
            except UnicodeEncodeError as error:
                raise InputError(
                    f"a text holds what is no character: {error}. Replace half surrogates in it."
                ) from None
            found = yield request
            if isinstance(found, httpx.Response) and found.status_code == 200:
                return _read_answer(found, read, self._url)
            pause = _pause(found, attempt)
            if pause is None or attempt == self._retries or time.monotonic() + pause >= end:
                raise _error(found, self._url)
            yield pause
        raise AssertionError("not reached")


def _checked_url(url: str) -> str:
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        found = httpx.URL("")
    if found.scheme not in ("http", "https") or not found.host:
        raise InputError(f"{url!r} is no address of a service. Give one like http://127.0.0.1:3000.")
    return url.rstrip("/")


def _timeouts(seconds: float) -> dict[str, Any]:
    return {"timeout": httpx.Timeout(seconds).as_dict(), "end": time.monotonic() + seconds}


def _read_answer(found: httpx.Response, read: Callable[[httpx.Response], Any], url: str) -> Any:
    try:
        return read(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{url} answered, and not as a deploykit service does ({type(error).__name__}): {found.text[:200]!r}."
            " Is this its address?",
            found.status_code,
            found.headers.get("x-request-id"),
        ) from error


def _pause(found: Outcome, attempt: int) -> float | None:
    """Returns how long to wait before the next attempt; None where another one would be of no use."""
    own = min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311  spreads clients, hides nothing
    if isinstance(found, httpx.Response):
        if found.status_code not in RETRIED_STATUSES:
            return None
        said = found.headers.get("retry-after", "")
        if found.status_code == 429 and not said:  # there will never be room
            return None
        return _retry_after(said, own)
    return None if isinstance(found, FINAL_ERRORS) else own


def _retry_after(said: str, own: float) -> float:
    """Reads Retry-After (RFC 9110): seconds or a date; what is neither leaves the choice to us."""
    if said.isdecimal():
        return float(said)
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return own


def _error(found: Outcome, url: str) -> ServiceError:
    if not isinstance(found, httpx.Response):
        return ServiceError(f"{url} did not answer: {type(found).__name__}. Is the service there, and is it ready?")
    try:
        content = found.json()
        errors = (f"{one['where']}: {one['message']}" for one in content.get("errors", ()))
        detail = "; ".join([content["detail"], *errors])
    except (ValueError, KeyError, TypeError, AttributeError):
        detail = found.text[:200]
    return ServiceError(f"{found.status_code}: {detail}", found.status_code, found.headers.get("x-request-id"))
