"""A thread beside the event loop, for work on large bodies and answers that would delay all other requests.

One thread is enough, because only one thread at a time runs Python code. Small work is done on the event loop itself,
because passing it to the thread would take longer.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Offload:
    """The thread, and the choice of what runs in it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")

    async def run(self, large: bool, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Calls `work` in the thread if it is `large` (takes more than about a millisecond), else on the event loop."""
        if not large:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Ends the thread after its current work."""
        self._pool.shutdown(wait=False)
