"""How much a key may ask for: requests and tokens a minute, requests a day, and how many at the same time.

In one process a limit is a token bucket: it holds one period's worth, so who was silent may send a burst of that
size, and it goes by a clock that nobody sets. With the address of a Redis server, replicas count together in
sliding windows (the library limits). While that cannot be reached, each replica counts for itself: a client may
then send as many times more as there are replicas, which is better than refusing everybody.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from pydantic import SecretStr

from deploykit.errors import InputError, extra_missing
from deploykit.serving.access.check import Client
from deploykit.serving.problems import Problem, retry_after

MINUTE, DAY = 60, 86400
REDIS_S = 0.5  # a slower answer is none
AGAIN_S = 5.0  # after a failure it is left alone so long

logger = logging.getLogger("deploykit.serving")


class Store(Protocol):
    """Counts what was taken."""

    async def take(self, name: str, limit: int, period_s: int, cost: int) -> float:
        """Takes `cost` of `limit` in a period.

        Returns:
            0 when it was there, else the seconds until it will be.
        """

    async def close(self) -> None:
        """Ends connections."""


class Buckets:
    """Token buckets of this process; one appears with a key's first request, so there are never more than keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}

    async def take(self, name: str, limit: int, period_s: int, cost: int) -> float:
        """Takes from a bucket; see `Store`."""
        now = self._clock()
        level, then = self._levels.get(name, (float(limit), now))
        level = min(float(limit), level + (now - then) * limit / period_s)
        allowed = level >= cost
        self._levels[name] = (level - cost if allowed else level, now)
        return 0.0 if allowed else (cost - level) * period_s / limit

    async def close(self) -> None:
        """Has nothing to end."""


class Windows:
    """Sliding windows that all replicas share.

    Args:
        address: `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; a password belongs in it.

    Raises:
        InputError: the address makes no sense.
        MissingExtraError: the libraries are not installed.
    """

    def __init__(self, address: str) -> None:
        try:
            from limits import RateLimitItemPerSecond
            from limits.aio import storage, strategies
            from limits.errors import ConfigurationError
        except ImportError as error:
            raise extra_missing("a service with shared limits", error.name, "redis") from error
        options: Any = {"socket_timeout": REDIS_S, "socket_connect_timeout": REDIS_S}
        self._item = RateLimitItemPerSecond
        try:
            self._storage = storage.RedisStorage(f"async+{address}", implementation="redispy", **options)
        except (ConfigurationError, ValueError) as error:  # which may quote the password
            raise InputError("the address of the Redis server makes no sense; give redis://HOST:PORT.") from error
        self._limiter = strategies.SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, name: str, limit: int, period_s: int, cost: int) -> float:
        """Takes from a window; see `Store`."""
        item = self._item(limit, period_s, namespace="deploykit")
        if await self._limiter.hit(item, name, cost=cost):
            return 0.0
        reset = (await self._limiter.get_window_stats(item, name)).reset_time
        return min(max(reset - time.time(), 1.0), float(period_s))

    async def close(self) -> None:
        """Ends the connections to the server."""
        await cast(Any, self._storage.bridge).storage.aclose()


def require_store(address: SecretStr | None) -> None:
    """Makes sure that replicas could count together where that is asked for, whether the server is there or not.

    Raises:
        InputError: the address makes no sense.
        MissingExtraError: the libraries are not installed.
    """
    if address is not None:
        Windows(address.get_secret_value())


class Limits:
    """Holds clients to what their keys allow.

    Args:
        shared: what replicas count in together; None: each counts for itself.
        clock: in seconds, never set back.
    """

    def __init__(self, shared: Store | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self._shared, self._clock = shared, clock
        self._own = Buckets(clock)
        self._again = 0.0
        self._running: Counter[str] = Counter()

    async def request(self, client: Client) -> None:
        """Counts a request.

        Raises:
            Problem: 429 the client has sent as many as it may.
        """
        await self._take(client, "requests", client.requests_per_minute, MINUTE, 1)
        await self._take(client, "requests", client.requests_per_day, DAY, 1)

    async def tokens(self, client: Client, tokens: int) -> None:
        """Counts the tokens of a request, once it is known how many they are.

        Raises:
            Problem: 429 the client has sent as many as it may, or this request has more than it ever may.
        """
        await self._take(client, "tokens", client.tokens_per_minute, MINUTE, tokens)

    async def close(self) -> None:
        """Ends what the shared store holds open."""
        if self._shared is not None:
            await self._shared.close()

    @contextmanager
    def running(self, client: Client) -> Iterator[None]:
        """Counts a request as long as it lasts, in this process.

        Raises:
            Problem: 429 as many of this key are in progress as may be.
        """
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

    async def _take(self, client: Client, what: str, limit: int | None, period_s: int, cost: int) -> None:
        if limit is None:
            return
        period = "day" if period_s == DAY else "minute"
        if cost > limit:
            detail = f"this request has {cost} {what}, and the key may send {limit} a {period}: send less at once"
            raise Problem(429, "rate", detail)
        if wait := await self._counted(f"{client.key}:{what}:{period}", limit, period_s, cost):
            detail = f"this key may send {limit} {what} a {period}; wait {wait:.1f} s"
            raise Problem(429, "rate", detail, headers=retry_after(wait))

    async def _counted(self, name: str, limit: int, period_s: int, cost: int) -> float:
        if self._shared is not None and self._clock() >= self._again:
            try:
                return await self._shared.take(name, limit, period_s, cost)
            except Exception as error:  # of any kind: the network, the server, its answer
                self.failures += 1
                self._again = self._clock() + AGAIN_S
                logger.error("limits are counted here alone: the shared store failed (%s)", type(error).__name__)
        return await self._own.take(name, limit, period_s, cost)
