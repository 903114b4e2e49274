"""One call to a service as a generator: it yields requests to send and pauses to wait, and returns the answer.

So the blocking and the asynchronous client share everything except sending and waiting. The statuses 429, 502 and 503
are retried after the header Retry-After, and failed connections with exponential backoff, until the time of the call is
used up. Sending a request for predictions twice does no harm.
"""

import base64
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from deploykit.client.answers import Explanation, Prediction, Ranked
from deploykit.errors import InputError, ServiceError

RETRIED_STATUSES = (429, 502, 503)  # with these, the service has not begun to work on the request
# Errors after which another attempt would not help.
FINAL_ERRORS = (httpx.ReadTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError)
MAX_TIMEOUT_S = 999_999.0  # the longest that a service accepts in the header X-Request-Timeout-Ms
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0  # between attempts, without Retry-After; each is twice the one before
T = TypeVar("T")
RequestOrPause = httpx.Request | float  # a step of a call: a request to send, or seconds to sleep
Outcome = httpx.Response | httpx.RequestError | None  # of a step; None of a pause
Steps = Generator[RequestOrPause, Outcome, T]  # of a call, which returns its answer, a T


class Conversation:
    """Base of both clients: the steps of each call. The clients themselves only send and wait.

    Args:
        url: of the service, for example `http://127.0.0.1:3000`.
        key: for the service; None if access control is off.
        timeout_s: the limit for each call, all attempts and pauses together. An `AsyncClient` keeps it exactly. A
            `Client` applies it to each read of the headers, and then checks it at each chunk of the body, so a service
            that sends slowly may exceed it.
        retries: number of attempts after the first.

    Raises:
        InputError: the URL or the key does not have the form of one.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, retries: int = 4) -> None:
        self._url, self._timeout_s, self._retries = _check_url(url), min(timeout_s, MAX_TIMEOUT_S), retries
        key = (key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError("a key has letters, digits, `_`, `-` and `.` only. Copy it again, as it was shown.")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def _predict(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None, inputs: Sequence[Mapping[str, Any]] | None
    ) -> Steps[list[Prediction]]:
        if isinstance(texts, str) or isinstance(text_pairs, str):
            raise InputError("texts are a list: predict([text]), not predict(text).")
        if inputs is not None and (texts or text_pairs):
            raise InputError("send either texts or inputs.")
        if isinstance(inputs, (str, Mapping)) or any(not isinstance(item, Mapping) for item in inputs or ()):
            raise InputError('inputs are a list of objects: predict(inputs=[{"text": ...}]).')
        texts, items = list(texts), None if inputs is None else [_encode_files(item) for item in inputs]
        count = len(texts if items is None else items)

        def read(response: httpx.Response) -> list[Prediction]:
            request_id, answers = response.headers.get("x-request-id", ""), response.json()["predictions"]
            if len(answers) != count:
                raise ValueError(f"{len(answers)} answers to {count} texts")
            return [
                Prediction.model_validate({"request": request_id, "index": index, **answer})
                for index, answer in enumerate(answers)
            ]

        pairs = None if text_pairs is None else list(text_pairs)
        if items is not None:
            return self._post("/v1/predict", read, inputs=items)
        return self._post("/v1/predict", read, texts=texts, text_pairs=pairs)

    def _rank(self, query: str, candidates: Sequence[str], top_k: int | None) -> Steps[list[Ranked]]:
        if isinstance(candidates, str):
            raise InputError("candidates are a list: rank(query, [text]), not rank(query, text).")

        def read(response: httpx.Response) -> list[Ranked]:
            return [Ranked.model_validate(candidate) for candidate in response.json()["ranking"]]

        return self._post("/v1/rank", read, query=query, candidates=list(candidates), top_k=top_k)

    def _explain(self, text: str, label: str | None, text_pair: str | None) -> Steps[Explanation]:
        def read(response: httpx.Response) -> Explanation:
            return Explanation.model_validate(response.json())

        pairs = None if text_pair is None else [text_pair]
        return self._post("/v1/explain", read, texts=[text], text_pairs=pairs, label=label)

    def _feedback(self, prediction: Prediction, label: str, comment: str | None) -> Steps[bool]:
        def read(response: httpx.Response) -> bool:
            return bool(response.json()["recorded"])

        prediction_id = {"id": prediction.request, "index": prediction.index}
        return self._post("/v1/feedback", read, **prediction_id, label=label, comment=comment)

    def _ready(self) -> Steps[bool]:
        outcome = yield httpx.Request("GET", f"{self._url}/readyz", extensions=_time_limits(self._timeout_s))
        return isinstance(outcome, httpx.Response) and outcome.status_code == 200

    def _post(self, path: str, read: Callable[[httpx.Response], T], **fields: Any) -> Steps[T]:
        """Sends a request again and again until it is answered, and returns the answer.

        Args:
            path: of the route.
            read: makes the answer of a response with status 200.
            fields: of the JSON body; those that are None are left out.

        Raises:
            InputError: a text cannot be encoded.
            ServiceError: the service refused, failed or did not answer in time.
        """
        body = {name: value for name, value in fields.items() if value is not None}
        deadline = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            seconds = max(deadline - time.monotonic(), 0.001)
            headers = {**self._headers, "x-request-timeout-ms": str(max(1, int(1000 * seconds)))}
            limits = _time_limits(seconds)
            try:
                request = httpx.Request("POST", self._url + path, json=body, headers=headers, extensions=limits)
            except UnicodeEncodeError as error:
                raise InputError(
                    f"a text cannot be encoded as UTF-8: {error}. Remove its unpaired surrogates."
                ) from None
            outcome = yield request
            if isinstance(outcome, httpx.Response) and outcome.status_code == 200:
                return _read_answer(outcome, read, self._url)
            pause = _pause_before_retry(outcome, attempt)
            if pause is None or attempt == self._retries or time.monotonic() + pause >= deadline:
                raise _make_error(outcome, self._url)
            yield pause
        raise AssertionError("not reached")


def _encode_files(item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an input with base64 in place of paths and bytes, such as those of images."""
    fields = dict(item)
    for name, value in item.items():
        try:
            content = value.read_bytes() if isinstance(value, Path) else value
        except OSError as error:
            raise InputError(f"{value} cannot be read: {error.strerror}.") from error
        fields[name] = base64.b64encode(content).decode() if isinstance(content, bytes) else content
    return fields


def _check_url(url: str) -> str:
    """Returns the URL of a service without a slash at its end."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{url!r} is no address of a service. Give one like http://127.0.0.1:3000.")
    return url.rstrip("/")


def _time_limits(seconds: float) -> dict[str, Any]:
    """Returns the extensions of a request that ends after these seconds: for httpx, and for the clients."""
    return {"timeout": httpx.Timeout(seconds).as_dict(), "deadline": time.monotonic() + seconds}


def _read_answer(response: httpx.Response, read: Callable[[httpx.Response], T], url: str) -> T:
    """Returns what `read` makes of a response; a response that it cannot read is a ServiceError."""
    try:
        return read(response)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{url} answered, but not as a deploykit service does ({type(error).__name__}): {response.text[:200]!r}."
            " Is this its address?",
            response.status_code,
            response.headers.get("x-request-id"),
        ) from error


def _pause_before_retry(outcome: Outcome, attempt: int) -> float | None:
    """Returns the seconds before the next attempt; None if another attempt would not help."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311  so that clients do not all retry at the same time
    backoff = min(FIRST_PAUSE_S * 2**attempt, MAX_PAUSE_S) * jitter
    if not isinstance(outcome, httpx.Response):
        return None if isinstance(outcome, FINAL_ERRORS) else backoff
    if outcome.status_code not in RETRIED_STATUSES:
        return None
    retry_after = outcome.headers.get("retry-after", "")
    if outcome.status_code == 429 and not retry_after:  # even this request alone is over the limit
        return None
    return _parse_retry_after(retry_after, backoff)


def _parse_retry_after(text: str, default: float) -> float:
    """Returns the seconds that the header Retry-After (RFC 9110) gives as a number or a date, or else the default."""
    if text.isdecimal():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return default


def _make_error(outcome: Outcome, url: str) -> ServiceError:
    """Returns the error for an attempt that failed; its message has the `detail` and `errors` of the problem."""
    if not isinstance(outcome, httpx.Response):
        return ServiceError(f"{url} did not answer: {type(outcome).__name__}. Is the service there, and is it ready?")
    try:
        problem = outcome.json()
        mistakes = (f"{mistake['where']}: {mistake['message']}" for mistake in problem.get("errors", ()))
        detail = "; ".join([problem["detail"], *mistakes])
    except (ValueError, KeyError, TypeError, AttributeError):
        detail = outcome.text[:200]
    return ServiceError(f"{outcome.status_code}: {detail}", outcome.status_code, outcome.headers.get("x-request-id"))
