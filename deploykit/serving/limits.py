"""Requests per minute, one token bucket a key.

Counts hold in one process: with several replicas a client gets as many times its limit. A bucket holds
one minute's worth, so a client that was silent may send a burst of that size.
"""

import time
from collections.abc import Callable

from deploykit.serving.keys import Client


class Limits:
    """The buckets; one appears with a key's first request, so there are never more than keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, client: Client) -> float:
        """Takes one request from the client's bucket.

        Returns:
            0 when it was there, else the seconds until there will be one.
        """
        limit = client.requests_per_minute
        if limit is None:
            return 0.0
        now = self._clock()
        level, then = self._buckets.get(client.key, (float(limit), now))
        level = min(float(limit), level + (now - then) * limit / 60)
        allowed = level >= 1
        self._buckets[client.key] = (level - 1 if allowed else level, now)
        return 0.0 if allowed else (1 - level) * 60 / limit
