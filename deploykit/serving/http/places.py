"""How many requests are in progress at the same time, shared between clients, so that nobody takes all the places."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deploykit.serving.problems import Problem, retry_after

HARD_LIMIT = 2  # times the places: room for clients that have less than their share of them


class Places:
    """A number of places, each for one request; used on the event loop only.

    A client that is alone may have all of them. Once all are taken, who has less than an equal share of them is still
    let in, up to twice their number: those who came first have more than their share.

    Args:
        count: how many there are.
        state: of the requests that have them, for who is refused.
    """

    def __init__(self, count: int, state: str) -> None:
        self._count, self._state = count, state
        self._taken = Counter[str]()

    @contextmanager
    def take(self, client: str) -> Iterator[None]:
        """Takes a place for as long as the block lasts.

        Args:
            client: whose request it is; where nobody has a key, all are one.

        Raises:
            Problem: 503 all are taken, and this client has its share.
        """
        total, own = self._taken.total(), self._taken.get(client, 0)
        clients = len(self._taken) + (own == 0)
        if total >= HARD_LIMIT * self._count or (total >= self._count and own >= self._count / clients):
            detail = f"{total} requests are {self._state}, {own} of this client; {self._count} may be. Try again later"
            raise Problem(503, "busy", detail, headers=retry_after(1))
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]
