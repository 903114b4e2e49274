"""How many requests may be in progress, shared between clients so that none can take the share of another."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deploykit.serving.problems import Problem, retry_after

HARD_LIMIT = 2  # times the number of slots: reserve for clients that use less than their share


class Slots:
    """A number of slots, one for each request; used on the event loop only.

    A client that is alone may use all slots. Once all are in use, clients with less than an equal share of them are
    still let in, up to twice the number of slots, because the others use more than their share. `state` describes the
    requests that use them, for the refusal.
    """

    def __init__(self, count: int, state: str) -> None:
        self._count, self._state = count, state
        self._used = Counter[str]()

    @contextmanager
    def use(self, client: str) -> Iterator[None]:
        """Uses a slot while the block lasts.

        Raises:
            Problem: 503, all slots are in use, and this client has its share.
        """
        total, own = self._used.total(), self._used.get(client, 0)
        clients = len(self._used) + (own == 0)
        if total >= HARD_LIMIT * self._count or (total >= self._count and own >= self._count / clients):
            detail = f"{total} requests are {self._state}, {own} of this client; {self._count} may be. Try again later"
            raise Problem(503, "busy", detail, headers=retry_after(1))
        self._used[client] += 1
        try:
            yield
        finally:
            self._used[client] -= 1
            if not self._used[client]:
                del self._used[client]
