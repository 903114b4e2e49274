"""The key set of an identity provider at a URL (JWKS): fetched in the background, kept while the provider is away.

PyJWT's `PyJWKClient` is not used: it bounds neither the size nor the time of an answer, and asks a provider that fails
again for each token with an unknown key.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

REFRESH_S = 300.0
RETRY_S = 10.0  # after a failure; also the shortest time between two fetches for unknown keys
FETCH_TIMEOUT_S = 5.0  # of a whole fetch, from the name resolution to the last byte
MAX_BYTES = 1_000_000
NO_PROXY = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # no proxy reaches this machine

KeySet = Mapping[str, Any]

logger = logging.getLogger("deploykit.serving")


class RemoteKeys:
    """Keys by their ids, none before the first fetch; `failures` counts fetches that failed.

    `parse` returns the keys in an answer, and raises if it holds none.
    """

    def __init__(self, url: str, parse: Callable[[bytes], KeySet]) -> None:
        self.content: KeySet = {}
        self.failures = 0
        self._url, self._parse = url, parse
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to follow the set, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def close(self) -> None:
        """Stops to follow the set."""
        if self._task is not None:
            self._task.cancel()

    def refresh(self, poll_s: float, *, at_once: bool = False) -> None:
        """Asks for an early fetch if `at_once`, because a key is unknown; `poll_s` is that of `WatchedFile.refresh`."""
        if at_once:
            self._wanted.set()

    async def _follow(self) -> None:
        while True:
            self._wanted.clear()
            fetched = await self._fetch()
            await asyncio.sleep(RETRY_S)
            if fetched:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), REFRESH_S - RETRY_S)

    async def _fetch(self) -> bool:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self.content = await asyncio.to_thread(self._parse, await _download(self._url))
        except Exception as error:  # of any kind, or the task would end and never fetch again
            self.failures += 1
            reason = str(error) or f"no whole answer in {FETCH_TIMEOUT_S:g} s"
            logger.error("keys for tokens stay as they were: %s", reason)
            return False
        return True


async def _download(url: str) -> bytes:
    """Reads at most `MAX_BYTES`, without redirects and decompression."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    content = bytearray()
    client_in_thread = asyncio.to_thread(httpx.AsyncClient, mounts=NO_PROXY, timeout=FETCH_TIMEOUT_S)  # reads files
    async with await client_in_thread as client, client.stream("GET", url, headers=headers) as response:
        if response.status_code != httpx.codes.OK:
            location = response.headers.get("location")
            raise ValueError(f"{url} answers {response.status_code}" + (f" and names {location}" if location else ""))
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_BYTES} bytes")
    return bytes(content)
