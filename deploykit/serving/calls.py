"""One request on its way through the service: who asked, and whether they still wait.

The guard opens a call, the runtime reads it from the context variable, and both write what the log line
says of it. BentoML's own context is not used for this: it is not reliable for every kind of API.
"""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from deploykit.serving.keys import Client
from deploykit.serving.problems import Problem


@dataclass
class Call:
    """What is known of a request.

    `gone` is done once the client has left; `problem` is why there is no answer, for the guard to render.
    """

    id: str
    client: Client
    gone: asyncio.Future[None] | None = None
    items: int = 0
    tokens: int = 0
    queue_s: float = 0.0
    problem: Problem | None = None

    def leave(self) -> None:
        """Notes that the client has closed the connection."""
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)


current: ContextVar[Call] = ContextVar("deploykit_call")
