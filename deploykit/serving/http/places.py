"""How many requests are in progress at the same time, shared between clients, so that nobody takes all the places."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deploykit.serving.problems import Problem, retry_after

HARD_LIMIT = 2  # times the places: room for clients that have less than their share of them


class Places:
    """A number of places, each for one request; all are used on the event loop only.

    One client may have half of them. Once all are taken, who has less than an equal share of them is still let in, up
    to twice their number: others got there first, but have more than their share.

    Args:
        count: how many there are.
        what: is done in them, for who is refused.
    """

    def __init__(self, count: int, what: str) -> None:
        self._count, self._what = count, what
        self._taken = Counter[str]()
        self._total = 0

    @contextmanager
    def take(self, client: str, *, alone: bool = False) -> Iterator[None]:
        """Takes a place for as long as the block lasts.

        Args:
            client: whose request it is.
            alone: whether clients are not told apart, so that this one may have all places.

        Raises:
            Problem: 429 the client has as many as it may have, or 503 all are taken.
        """
        self._require(client, alone=alone)
        self._taken[client] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._taken[client] -= 1
            if not self._taken[client]:
                del self._taken[client]

    def _require(self, client: str, *, alone: bool) -> None:
        count, own = self._count, self._taken.get(client, 0)
        most = count if alone else max(count // 2, 1)
        if own >= most:
            detail = f"this client has {own} requests {self._what}, and may have {most}; wait for one of them"
            raise Problem(503 if alone else 429, "busy", detail, headers=retry_after(1))
        clients = len(self._taken) + (client not in self._taken)
        if self._total >= HARD_LIMIT * count or (self._total >= count and own >= count / clients):
            detail = f"{self._total} requests are {self._what}, {count} are taken at once; try again later"
            raise Problem(503, "busy", detail, headers=retry_after(1))
