"""How much a client may ask for: requests and tokens a minute, requests a day, and how many at the same time.

In one process a limit is a token bucket: it holds one period's worth, so who was silent may send a burst of that
size, and it goes by a clock that nobody sets. With the address of a Redis server, replicas count together in
sliding windows (the library limits). While that cannot be reached, each replica counts for itself: a client may
then send as many times more as there are replicas, which is better than refusing everybody.

The library's memory storage is not used in place of the buckets: it looks at all clients for each request, which took
5 to 30 ms with 10,000 of them, against 0.01 ms here (`benchmarks/security/limit_cost.py`), and there may be as many
subjects of tokens.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, cast

from pydantic import SecretStr

from deploykit.errors import InputError, extra_missing
from deploykit.serving.access.check import Client
from deploykit.serving.problems import Problem, retry_after

PERIODS_S = {"minute": 60, "day": 86_400}
REDIS_S = 0.5  # a slower answer is none
AGAIN_S = 5.0  # after a failure it is left alone so long
ROUNDING_S = 1e-6  # what sums of times may be off by
MIN_FORGET = 1000  # buckets below which none is looked for that is full again

logger = logging.getLogger("deploykit.serving")


class Quota(NamedTuple):
    """How much of something a client may take in a period."""

    limit: int
    what: Literal["requests", "tokens"]
    period: Literal["minute", "day"]

    @property
    def period_s(self) -> int:
        """The length of the period."""
        return PERIODS_S[self.period]


class Store(Protocol):
    """Counts what was taken."""

    async def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes `cost` of every quota of a client, or of none.

        Returns:
            None when it was there, else the quota that lacks it, and the seconds until it will be there.
        """

    async def close(self) -> None:
        """Ends connections."""


class Buckets:
    """Token buckets of this process, each kept as the time at which it will be full; one that is full is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, Quota], float] = {}
        self._forget_at = MIN_FORGET

    async def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes from buckets; see `Store`."""
        now, filled = self._clock(), {}
        for quota in quotas:
            start = max(self._full_at.get((client, quota), now), now)
            filled[client, quota] = start + cost * quota.period_s / quota.limit
            wait = filled[client, quota] - now - quota.period_s
            if wait > ROUNDING_S:
                return quota, wait
        self._full_at |= filled
        if len(self._full_at) > self._forget_at:
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
            self._forget_at = max(MIN_FORGET, 2 * len(self._full_at))
        return None

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

    async def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes from windows; see `Store`. Two requests at the same time may both take of the first quota in vain."""
        items = [self._item(quota.limit, quota.period_s, namespace="deploykit") for quota in quotas]
        names = [f"{client}:{quota.what}:{quota.period}" for quota in quotas]
        windows = list(zip(quotas, items, names, strict=True))
        for ask, asked in ((self._limiter.test, windows[1:]), (self._limiter.hit, windows)):
            for quota, item, name in asked:
                if not await ask(item, name, cost=cost):
                    reset = (await self._limiter.get_window_stats(item, name)).reset_time
                    return quota, min(max(reset - time.time(), 1.0), float(quota.period_s))
        return None

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
        await self._take(client, "requests", {"minute": client.requests_per_minute, "day": client.requests_per_day}, 1)

    async def tokens(self, client: Client, tokens: int) -> None:
        """Counts the tokens of a request, once it is known how many they are.

        Raises:
            Problem: 429 the client has sent as many as it may, or this request has more than it ever may.
        """
        await self._take(client, "tokens", {"minute": client.tokens_per_minute}, tokens)

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

    async def _take(
        self,
        client: Client,
        what: Literal["requests", "tokens"],
        limits: Mapping[Literal["minute", "day"], int | None],
        cost: int,
    ) -> None:
        quotas = [Quota(limit, what, period) for period, limit in limits.items() if limit is not None]
        for limit, _, period in quotas:
            if cost > limit:
                detail = f"this request has {cost} {what}, and the key may send {limit} a {period}: send less at once"
                raise Problem(429, "rate", detail)
        if quotas and (refused := await self._counted(client.key, quotas, cost)):
            (limit, _, period), wait = refused
            detail = f"this key may send {limit} {what} a {period}; wait {wait:.1f} s"
            raise Problem(429, "rate", detail, headers=retry_after(wait))

    async def _counted(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        if self._shared is not None and self._clock() >= self._again:
            try:
                return await self._shared.take(client, quotas, cost)
            except Exception as error:  # of any kind: the network, the server, its answer
                self.failures += 1
                self._again = self._clock() + AGAIN_S
                logger.error("limits are counted here alone: the shared store failed (%s)", type(error).__name__)
        return await self._own.take(client, quotas, cost)
