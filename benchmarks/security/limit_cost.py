"""What it costs a request to be counted: our token buckets, and the memory storage of the library limits.

Each request is counted a minute, a day, and by its tokens, for one client of many; microseconds, on one core.

    python benchmarks/security/limit_cost.py --clients 1 100 1000 10000
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence

from limits import RateLimitItemPerSecond
from limits.aio import storage, strategies

from deploykit.serving.access.rate_limits import Quota, RateLimiter, RedisWindows
from deploykit.serving.call import Client

MINUTE, DAY, TOKENS = 10**6, 10**7, 10**9  # limits that nobody reaches


class InMemory(RedisWindows):
    """The library's sliding windows in the memory of this process."""

    def __init__(self) -> None:
        self._item = RateLimitItemPerSecond
        self._storage = storage.MemoryStorage()
        self._limiter = strategies.SlidingWindowCounterRateLimiter(self._storage)

    async def take(self, client: str, quotas: Sequence[Quota], cost: int) -> tuple[Quota, float] | None:
        """Takes, and lets the library's task of clearing up run, as it does between two requests."""
        refused = await super().take(client, quotas, cost)
        await asyncio.sleep(0)
        return refused


async def cost(limits: RateLimiter, clients: int, requests: int) -> float:
    """Returns the microseconds of a request, once all clients have asked."""
    known = [Client(f"{number}", f"{number}", MINUTE, DAY, TOKENS) for number in range(clients)]
    for client in known:
        await limits.count_request(client)
        await limits.count_tokens(client, 30)
    start = time.perf_counter()
    for number in range(requests):
        await limits.count_request(known[number % clients])
        await limits.count_tokens(known[number % clients], 30)
    return (time.perf_counter() - start) / requests * 1e6


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 100, 1000, 10_000])
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    figures = {
        str(clients): {
            "buckets": round(asyncio.run(cost(RateLimiter(), clients, options.requests)), 1),
            "library": round(asyncio.run(cost(RateLimiter(InMemory()), clients, options.requests)), 1),
        }
        for clients in options.clients
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
