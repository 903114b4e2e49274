"""Rate limits of clients: requests and tokens a minute, requests a day, and requests in progress.

In one process a limit is a token bucket that holds the amount of one period, so a client that was silent may send a
burst of that size. With the address of a Redis server, replicas count together in sliding windows (the library limits).
While Redis cannot be reached, each replica counts for itself: a client may then send as many times more as there are
replicas, which is better than refusing everybody.

The library's memory storage does not replace the buckets: it visits all clients for each request, which took 5 to 30 ms
with 10,000 of them, against 0.01 ms here (`benchmarks/security/limit_cost.py`).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

from deploykit.errors import InputError, missing_extra_error
from deploykit.serving.call import Client
from deploykit.serving.problems import Problem, retry_after

PERIODS_S = {"minute": 60, "day": 86_400}
REDIS_TIMEOUT_S = 0.5
REDIS_RETRY_S = 5.0  # after a failure, Redis is not asked for this time
ROUNDING_S = 1e-6  # error of sums of times
MIN_BUCKETS_TO_CLEAR = 1000  # fewer buckets are not searched for full ones

logger = logging.getLogger("deploykit.serving")


class Quota(NamedTuple):
    """The amount that a client may use in a period of `PERIODS_S`."""

    limit: int
    unit: Literal["requests", "tokens"]
    period: str


class Buckets:
    """Token buckets of this process, each stored as the time at which it will be full; full ones are dropped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, Quota], float] = {}
        self._clear_at = MIN_BUCKETS_TO_CLEAR

    def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes `cost` from every quota of a client, or from none.

        Returns:
            None if every quota had enough, else a quota that has not, and the seconds until it will have.
        """
        now, full_at = self._clock(), {}
        for quota in quotas:
            start = max(self._full_at.get((client, quota), now), now)
            period_s = PERIODS_S[quota.period]
            full_at[client, quota] = start + cost * period_s / quota.limit
            wait = full_at[client, quota] - now - period_s
            if wait > ROUNDING_S:
                return quota, wait
        self._full_at |= full_at
        if len(self._full_at) > self._clear_at:
            self._full_at = {bucket: full for bucket, full in self._full_at.items() if full > now}
            self._clear_at = max(MIN_BUCKETS_TO_CLEAR, 2 * len(self._full_at))
        return None


class Windows:
    """Sliding windows in Redis, which all replicas share.

    Args:
        address: `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; it may contain a password.

    Raises:
        InputError: the address cannot be one.
        MissingExtraError: the libraries are not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            from limits import RateLimitItemPerSecond
            from limits.aio import storage, strategies
            from limits.errors import ConfigurationError
        except ImportError as error:
            raise missing_extra_error("a service with shared limits", error.name, "redis") from error
        timeouts: Any = {"socket_timeout": REDIS_TIMEOUT_S, "socket_connect_timeout": REDIS_TIMEOUT_S}
        self._item = RateLimitItemPerSecond
        try:
            self._storage = storage.RedisStorage(f"async+{address}", implementation="redispy", **timeouts)
        except (ConfigurationError, ValueError) as error:  # whose text may quote the password
            raise InputError("the address of the Redis server cannot be used; give redis://HOST:PORT.") from error
        self._limiter = strategies.SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes from windows as `Buckets.take` does; of two simultaneous requests both may lose some of a quota."""
        items = [self._item(quota.limit, PERIODS_S[quota.period], namespace="deploykit") for quota in quotas]
        names = [f"{client}:{quota.unit}:{quota.period}" for quota in quotas]
        windows = list(zip(quotas, items, names, strict=True))
        for method, checked in ((self._limiter.test, windows[1:]), (self._limiter.hit, windows)):
            for quota, item, name in checked:
                if not await method(item, name, cost=cost):
                    reset = (await self._limiter.get_window_stats(item, name)).reset_time
                    return quota, min(max(reset - time.time(), 1.0), float(PERIODS_S[quota.period]))
        return None

    async def close(self) -> None:
        """Closes the connections to Redis."""
        await cast(Any, self._storage.bridge).storage.aclose()


class Limits:
    """Refuses the requests of clients that are over their limits; `failures` counts those of Redis.

    Without `shared` windows, this process counts for itself.
    """

    def __init__(self, shared: Windows | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self._shared, self._clock = shared, clock
        self._own = Buckets(clock)
        self._retry_at = 0.0
        self._running: Counter[str] = Counter()

    async def request(self, client: Client) -> None:
        """Counts a request; raises a problem (429) if the client is over its limit."""
        limits = {"minute": client.requests_per_minute, "day": client.requests_per_day}
        await self._take(client, [Quota(limit, "requests", period) for period, limit in limits.items() if limit], 1)

    async def tokens(self, client: Client, tokens: int) -> None:
        """Counts the tokens of a request; raises a problem (429) if the client, or this request alone, has too many."""
        limit = client.tokens_per_minute
        await self._take(client, [Quota(limit, "tokens", "minute")] if limit else [], tokens)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._shared is not None:
            await self._shared.close()

    @contextmanager
    def running(self, client: Client) -> Iterator[None]:
        """Counts a request in progress in this process; raises a problem (429) if the key has too many of them."""
        if client.concurrency is not None and self._running[client.key] >= client.concurrency:
            detail = f"this key may have {client.concurrency} requests in progress; wait for one of them"
            raise Problem(429, "rate", detail, headers=retry_after(1))
        self._running[client.key] += 1
        try:
            yield
        finally:
            self._running[client.key] -= 1
            if not self._running[client.key]:
                del self._running[client.key]

    async def _take(self, client: Client, quotas: Sequence[Quota], cost: int) -> None:
        for limit, unit, period in quotas:
            if cost > limit:
                detail = f"this request has {cost} {unit}, and the key may send {limit} a {period}: send less at once"
                raise Problem(429, "rate", detail)
        if quotas and (exceeded := await self._exceeded(client.key, quotas, cost)):
            (limit, unit, period), wait = exceeded
            detail = f"this key may send {limit} {unit} a {period}; wait {wait:.1f} s"
            raise Problem(429, "rate", detail, headers=retry_after(wait))

    async def _exceeded(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        if self._shared is not None and self._clock() >= self._retry_at:
            try:
                return await self._shared.take(client, quotas, cost)
            except Exception as error:  # of any kind: the network, the server, its answer
                self.failures += 1
                self._retry_at = self._clock() + REDIS_RETRY_S
                logger.error("limits are counted here alone: the shared store failed (%s)", type(error).__name__)
        return self._own.take(client, quotas, cost)
