"""Rate limits of clients: requests and tokens a minute, requests a day, and requests in progress.

In one process a limit is a token bucket that holds the amount of one period, so a client that was silent may send a
burst of that size. With the address of a Redis server, replicas count together in sliding windows (the library limits).
While Redis cannot be reached, each replica counts for itself. With three replicas a client may then send three times as
much, which is better than refusing everybody.

The library's memory storage is not used for the buckets: it visits all clients for each request, which took 5 to 30 ms
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
from deploykit.serving.problems import Problem, retry_after_header

PERIODS_S = {"minute": 60, "day": 86_400}  # seconds of each period of a quota
REDIS_TIMEOUT_S = 0.5  # to connect, and of each answer
REDIS_RETRY_S = 5.0  # after a failure, Redis is not asked for so long
ROUNDING_S = 1e-6  # a shorter wait may be a rounding error in sums of times
MIN_BUCKETS_TO_CLEAR = 1000  # of fewer buckets, the full ones are not dropped: they need little memory

logger = logging.getLogger("deploykit.serving")


class Quota(NamedTuple):
    """The amount that a client may use in a period: `period` is a key of `PERIODS_S`."""

    limit: int
    unit: Literal["requests", "tokens"]
    period: str


class TokenBuckets:
    """Token buckets of this process, by key and quota. A bucket is stored as the time when it will be full again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, Quota], float] = {}
        self._max_buckets = MIN_BUCKETS_TO_CLEAR  # if there are more, full ones are dropped

    def take(self, key_id: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes `cost` from every quota of a key, or from none.

        Returns:
            None if every quota had enough; else a quota that has not enough, and the seconds until it will have.
        """
        now, full_at = self._clock(), {}
        for quota in quotas:
            period_s = PERIODS_S[quota.period]
            full_before = max(self._full_at.get((key_id, quota), now), now)
            full_after = full_before + cost * period_s / quota.limit
            wait_s = full_after - now - period_s  # an empty bucket is full after one period
            if wait_s > ROUNDING_S:
                return quota, wait_s
            full_at[key_id, quota] = full_after
        self._full_at |= full_at
        if len(self._full_at) > self._max_buckets:
            self._full_at = {bucket: full for bucket, full in self._full_at.items() if full > now}
            self._max_buckets = max(MIN_BUCKETS_TO_CLEAR, 2 * len(self._full_at))
        return None


class RedisWindows:
    """Sliding windows in Redis, which all replicas share.

    Args:
        address: `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; it may contain a password.

    Raises:
        InputError: the address is not that of a Redis server.
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
        self._make_item = RateLimitItemPerSecond
        try:
            self._storage = storage.RedisStorage(f"async+{address}", implementation="redispy", **timeouts)
        except (ConfigurationError, ValueError) as error:  # whose text may quote the password
            raise InputError("the address of the Redis server cannot be used; give redis://HOST:PORT.") from error
        self._limiter = strategies.SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, key_id: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes `cost` from every quota of a key, or from none; returns the same as `TokenBuckets.take`.

        Of requests at the same moment, one that is refused may still use some of a quota.
        """
        items = [self._make_item(quota.limit, PERIODS_S[quota.period], namespace="deploykit") for quota in quotas]
        names = [f"{key_id}:{quota.unit}:{quota.period}" for quota in quotas]
        windows = list(zip(quotas, items, names, strict=True))
        # `hit` takes from a window only if it has enough; the later windows are tested before the first one is hit
        for method, checked in ((self._limiter.test, windows[1:]), (self._limiter.hit, windows)):
            for quota, item, name in checked:
                if not await method(item, name, cost=cost):
                    reset = (await self._limiter.get_window_stats(item, name)).reset_time
                    return quota, min(max(reset - time.time(), 1.0), float(PERIODS_S[quota.period]))
        return None

    async def close(self) -> None:
        """Closes the connections to Redis."""
        await cast(Any, self._storage.bridge).storage.aclose()


class RateLimiter:
    """Refuses the requests of clients that are over their limits.

    Args:
        shared: windows in Redis; without them, this process counts for itself.
        clock: in seconds.

    Attributes:
        failures: how often Redis failed.
    """

    def __init__(self, shared: RedisWindows | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self._shared, self._clock = shared, clock
        self._local = TokenBuckets(clock)
        self._retry_at = 0.0  # when Redis is asked again after a failure
        self._in_progress: Counter[str] = Counter()  # requests by the id of the key

    async def count_request(self, client: Client) -> None:
        """Counts a request; raises a problem (429) if the client is over its limit."""
        limits = {"minute": client.requests_per_minute, "day": client.requests_per_day}
        await self._take(client, [Quota(limit, "requests", period) for period, limit in limits.items() if limit], 1)

    async def count_tokens(self, client: Client, tokens: int) -> None:
        """Counts the tokens of a request; raises a problem (429) if the client, or this request alone, has too many."""
        limit = client.tokens_per_minute
        await self._take(client, [Quota(limit, "tokens", "minute")] if limit else [], tokens)

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._shared is not None:
            await self._shared.close()

    @contextmanager
    def in_progress(self, client: Client) -> Iterator[None]:
        """Counts a request as in progress while the block lasts; raises a problem (429) if the key has too many."""
        if client.concurrency is not None and self._in_progress[client.key_id] >= client.concurrency:
            detail = f"this key may have {client.concurrency} requests in progress; wait for one of them"
            raise Problem(429, "rate", detail, headers=retry_after_header(1))
        self._in_progress[client.key_id] += 1
        try:
            yield
        finally:
            self._in_progress[client.key_id] -= 1
            if not self._in_progress[client.key_id]:
                del self._in_progress[client.key_id]

    async def _take(self, client: Client, quotas: Sequence[Quota], cost: int) -> None:
        """Takes `cost` from every quota of a client; raises a problem (429) if one has not enough."""
        for limit, unit, period in quotas:
            if cost > limit:
                detail = f"this request has {cost} {unit}, and the key may send {limit} a {period}: send less at once"
                raise Problem(429, "rate", detail)
        if quotas and (exceeded := await self._try_take(client.key_id, quotas, cost)):
            (limit, unit, period), wait_s = exceeded
            detail = f"this key may send {limit} {unit} a {period}; wait {wait_s:.1f} s"
            raise Problem(429, "rate", detail, headers=retry_after_header(wait_s))

    async def _try_take(self, key_id: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes `cost` from every quota, in Redis if that is possible; returns the same as `TokenBuckets.take`."""
        if self._shared is not None and self._clock() >= self._retry_at:
            try:
                return await self._shared.take(key_id, quotas, cost)
            except Exception as error:  # of any kind: the network, the server, its answer
                self.failures += 1
                self._retry_at = self._clock() + REDIS_RETRY_S
                logger.error("limits are counted here alone: the shared store failed (%s)", type(error).__name__)
        return self._local.take(key_id, quotas, cost)
