"""A thread beside the event loop, for work on large bodies and answers that would hold everybody up.

One thread is enough, because Python runs one thread at a time. Small work is done at once, because passing it to the
thread takes longer.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


class Offload:
    """The thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")

    async def run(self, large: bool, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        """Calls `work` in the thread if it is `large` (may take more than about a millisecond), else at once."""
        if not large:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def close(self) -> None:
        """Ends the thread after its current work."""
        self._pool.shutdown(wait=False)
