"""One request on its way through the service: who asked, and whether they still wait.

The guard opens a call and hands it on; everybody on the way writes what the log line says of it.
"""

import asyncio
import random
import re
from dataclasses import dataclass, field
from time import perf_counter

from deploykit.serving.access.check import Client

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # what is taken over from the header X-Request-ID


@dataclass
class Call:
    """What is known of a request.

    `large` says that its answer is decoded and written beside the event loop; `gone` is done once the client has
    left; `timeout_s` is how long it will wait, where it says so; `phases` are when what began and ended, by the clock
    of `start`; `trace` is an id, where traces are made.
    """

    id: str
    client: Client
    gone: asyncio.Future[None] | None = None
    timeout_s: float | None = None
    items: int = 0
    tokens: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    start: float = field(default_factory=perf_counter)
    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    trace: str = ""
    large: bool = False

    def timing(self) -> str:
        """Renders what is known of where the time went, for the header Server-Timing (W3C), in milliseconds."""
        parts = {"tokenize": self.tokenize_s, "queue": self.queue_s, "inference": self.inference_s}
        parts = {name: seconds for name, seconds in parts.items() if self.items}
        parts["total"] = perf_counter() - self.start
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in parts.items())

    def leave(self) -> None:
        """Notes that the client has closed the connection."""
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)


def new_id() -> str:
    """Makes an id for a request that brings none; it is no secret."""
    return f"{random.getrandbits(128):032x}"
