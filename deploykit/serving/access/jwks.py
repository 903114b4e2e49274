"""The key set of an identity provider at a URL (JWKS): fetched in the background, kept while the provider is away.

PyJWT's `PyJWKClient` is not used: it reads an answer without a bound on its size or on the whole of its time, and asks
a provider that fails again for each token with an unknown key.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

REFRESH_S = 300.0
RETRY_S = 10.0  # after a failure, and at the earliest for a token with an unknown key
FETCH_S = 5.0  # for all of an answer, from the look-up of the name to the last byte
MAX_BYTES = 1_000_000
DIRECT = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # no proxy reaches this machine

KeySet = Mapping[str, Any]

logger = logging.getLogger("deploykit.serving")


class RemoteKeys:
    """Keys by their ids, none before the first fetch; `failures` counts fetches that failed.

    Args:
        url: of the set.
        parse: makes keys of an answer; raises where it holds none.
    """

    def __init__(self, url: str, parse: Callable[[bytes], KeySet]) -> None:
        self.content: KeySet = {}
        self.failures = 0
        self._url, self._parse = url, parse
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to follow the set, in the event loop that runs."""
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def close(self) -> None:
        """Ends that."""
        if self._task is not None:
            self._task.cancel()

    def look(self, poll_s: float, *, at_once: bool = False) -> None:
        """Asks for a fetch before its time, as `WatchedFile.look` does; it comes some seconds later.

        Args:
            poll_s: has no meaning here.
            at_once: somebody has named a key that is not there.
        """
        if at_once:
            self._wanted.set()

    async def _follow(self) -> None:
        while True:
            self._wanted.clear()
            fetched = await self._fetched()
            await asyncio.sleep(RETRY_S)
            if fetched:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), REFRESH_S - RETRY_S)

    async def _fetched(self) -> bool:
        try:
            async with asyncio.timeout(FETCH_S):
                self.content = await asyncio.to_thread(self._parse, await _fetch(self._url))
        except Exception as error:  # of any kind: a task that ends would leave the keys as they are for good
            self.failures += 1
            logger.error("keys for tokens stay as they were: %s", str(error) or f"no whole answer in {FETCH_S:g} s")
            return False
        return True


async def _fetch(url: str) -> bytes:
    """Reads an answer up to its bound; one that is compressed or elsewhere is none."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    content = bytearray()
    made = asyncio.to_thread(httpx.AsyncClient, mounts=DIRECT, timeout=FETCH_S)  # reads certificates, as they are now
    async with await made as client, client.stream("GET", url, headers=headers) as response:
        if response.status_code != httpx.codes.OK:
            moved = response.headers.get("location")
            raise ValueError(f"{url} answers {response.status_code}" + (f" and names {moved}" if moved else ""))
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > MAX_BYTES:
                raise ValueError(f"{url} answers with more than {MAX_BYTES} bytes")
    return bytes(content)
