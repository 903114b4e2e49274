"""Open-loop load on a service: a recorded trace of arrivals and texts, replayed at any rate.

An open loop does not wait for answers before it asks again, as customers do not; latency counts from the moment at
which a request was due, so that a service that stands still cannot hide it (Tene's coordinated omission).
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np

LONG_SHARE = 0.1  # of the texts of a mixed trace
LONG_CHARACTERS = (600, 1800)
PATIENCE_S = 15.0  # of a client
PATH = "/v1/predict"


@dataclass(frozen=True)
class Trace:
    """Gaps between arrivals, of mean 1, and the body of each request, as JSON."""

    gaps: Any
    bodies: Sequence[bytes]

    def due(self, rate: float, seconds: float) -> Any:
        """Returns when requests are due, in seconds, at so many a second on average."""
        times = np.cumsum(self.gaps) / rate
        return times[times < seconds]


@dataclass(frozen=True)
class Outcome:
    """What the clients saw.

    `timeline` has for each request when it was due, in seconds, and the milliseconds until its answer, None where none
    came with 200; `statuses` says how often each status came, or each kind of failure.
    """

    seconds: float
    timeline: Sequence[tuple[float, float | None]]
    statuses: Mapping[str, int]

    @property
    def latencies(self) -> list[float]:
        """Milliseconds of the answers."""
        return [latency for _, latency in self.timeline if latency is not None]

    @property
    def errors(self) -> int:
        """Requests without an answer."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    def figures(self) -> dict[str, Any]:
        """Returns answers a second, milliseconds and errors."""
        latencies, p50, p99 = self.latencies, float("nan"), float("nan")
        if latencies:
            p50, p99 = np.quantile(latencies, [0.5, 0.99])
        return {
            "served": len(latencies) / self.seconds,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "errors": self.errors,
        }


def texts_of(file: Path) -> list[str]:
    """Reads the column `text` of JSON lines."""
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def record(short: Sequence[str], *, long_share: float, count: int, seed: int, items: int = 1) -> Trace:
    """Draws a trace: Poisson arrivals of short texts and of long ones, which are several short ones in a row.

    Args:
        short: texts to draw from.
        long_share: share of texts that are long.
        count: requests.
        seed: of the draw.
        items: texts of each request.
    """
    random = np.random.default_rng(seed)

    def text() -> str:
        if random.random() >= long_share:
            return short[random.integers(len(short))]
        wanted, found = random.integers(*LONG_CHARACTERS), ""
        while len(found) < wanted:
            found += short[random.integers(len(short))] + " "
        return found[:wanted]

    gaps = random.exponential(size=count)
    return Trace(gaps, [json.dumps({"texts": [text() for _ in range(items)]}).encode() for _ in range(count)])


async def replay(url: str, key: str, trace: Trace, rate: float, seconds: float) -> Outcome:
    """Asks as the trace says, for so many seconds, and waits for what is on its way."""
    timeline, statuses = list[tuple[float, float | None]](), Counter[str]()
    async with session(key) as client:
        start = perf_counter()

        async def ask(due: float, body: bytes) -> None:
            status = await post(client, url, body)
            statuses[status] += 1
            timeline.append((due, 1000 * (perf_counter() - start - due) if status == "200" else None))

        async with asyncio.TaskGroup() as group:
            for due, body in zip(trace.due(rate, seconds), trace.bodies, strict=False):
                await asyncio.sleep(max(0.0, start + due - perf_counter()))
                group.create_task(ask(due, body))
        taken = max(seconds, perf_counter() - start)
    return Outcome(taken, timeline, statuses)


async def saturate(url: str, key: str, trace: Trace, clients: int, seconds: float) -> Outcome:
    """Asks in a closed loop: each of so many clients asks again as soon as it has its answer, or was told to."""
    timeline, statuses, bodies = list[tuple[float, float | None]](), Counter[str](), iter(trace.bodies)
    async with session(key) as client:
        start = perf_counter()

        async def ask() -> None:
            while (begun := perf_counter()) < start + seconds:
                status, pause = await asked(client, url, next(bodies))
                statuses[status] += 1
                if perf_counter() <= start + seconds:
                    timeline.append((begun - start, 1000 * (perf_counter() - begun) if status == "200" else None))
                await asyncio.sleep(pause)

        await asyncio.gather(*(ask() for _ in range(clients)))
    return Outcome(seconds, timeline, statuses)


def session(key: str) -> aiohttp.ClientSession:
    """Returns a client with as many connections as it needs."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )


async def post(client: aiohttp.ClientSession, url: str, body: bytes) -> str:
    """Asks once; returns the status, or the kind of failure."""
    return (await asked(client, url, body))[0]


async def asked(client: aiohttp.ClientSession, url: str, body: bytes) -> tuple[str, float]:
    """Asks once; returns the status, or the kind of failure, and after how many seconds to ask again."""
    try:
        async with client.post(url + PATH, data=body) as response:
            await response.read()
            return str(response.status), float(response.headers.get("retry-after", 0))
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__, 0.0
