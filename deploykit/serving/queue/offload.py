"""A thread beside the event loop, for work on large bodies and answers that would hold everybody up.

One thread is enough: the work is Python's own, of which only one piece runs at a time. What is small is done at once,
because passing it to the thread takes longer.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Offload:
    """The thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")

    async def run(
        self,
        large: bool,
        work: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Does something: in the thread where it is large, else here.

        Args:
            large: whether it may take more than about a millisecond.
            work: what is called.
            arguments: it is called with.
            named: arguments, too.
        """
        if not large:
            return work(*arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments, **named))

    def close(self) -> None:
        """Ends the thread once it is done."""
        self._pool.shutdown(wait=False)
