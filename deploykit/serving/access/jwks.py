"""The key set of an identity provider at a URL (JWKS): fetched in the background, and kept while fetches fail.

PyJWT's `PyJWKClient` is not used: it limits neither the size nor the time of an answer, and for each token with an
unknown key it asks again, even a provider that fails.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

REFRESH_S = 300.0  # between two fetches
RETRY_S = 10.0  # until the fetch after a failure; also the shortest time between two fetches for unknown keys
FETCH_TIMEOUT_S = 5.0  # of a whole fetch, from the name resolution to the last byte
MAX_KEY_SET_BYTES = 1_000_000  # a longer answer counts as a failure
# for httpx: addresses of this machine, which a proxy would not reach
NO_PROXY_FOR_LOOPBACK = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}

KeySet = Mapping[str, Any]  # keys of PyJWT by their ids

logger = logging.getLogger("deploykit.serving")


class RemoteKeySet:
    """The key set at a URL, with the same `content`, `failures` and `refresh` as `WatchedFile`.

    Args:
        url: of the key set.
        parse: returns the keys in an answer; raises an error if there are none.

    Attributes:
        content: the keys by their ids; empty before the first fetch.
        failures: how many fetches failed.
    """

    def __init__(self, url: str, parse: Callable[[bytes], KeySet]) -> None:
        self.content: KeySet = {}
        self.failures = 0
        self._url, self._parse = url, parse
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts to fetch the keys again and again, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._fetch_repeatedly())

    def close(self) -> None:
        """Stops to fetch the keys."""
        if self._task is not None:
            self._task.cancel()

    def refresh(self, poll_s: float, *, at_once: bool = False) -> None:
        """Asks for an early fetch if `at_once`, because a key is unknown; `poll_s` has no meaning here."""
        if at_once:
            self._wanted.set()

    async def _fetch_repeatedly(self) -> None:
        """Fetches every `REFRESH_S`; after `RETRY_S` already, if a fetch failed or a key is unknown."""
        while True:
            self._wanted.clear()
            fetched = await self._fetch()
            await asyncio.sleep(RETRY_S)
            if fetched:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), REFRESH_S - RETRY_S)

    async def _fetch(self) -> bool:
        """Fetches the keys once; returns whether that succeeded, and logs if not."""
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
    """Downloads at most `MAX_KEY_SET_BYTES`, without redirects and decompression."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    content = bytearray()
    # made in a thread, because it reads certificates from files
    client_in_thread = asyncio.to_thread(httpx.AsyncClient, mounts=NO_PROXY_FOR_LOOPBACK, timeout=FETCH_TIMEOUT_S)
    async with await client_in_thread as client, client.stream("GET", url, headers=headers) as response:
        if response.status_code != httpx.codes.OK:
            location = response.headers.get("location")
            raise ValueError(f"{url} answers {response.status_code}" + (f" and names {location}" if location else ""))
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_KEY_SET_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_KEY_SET_BYTES} bytes")
    return bytes(content)
