"""A limit on the number of requests in progress, shared so that no client can take the share of another."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deploykit.serving.problems import Problem, retry_after_header

# The hard limit is this times the number of slots. Between the two, only clients below their share are let in.
HARD_LIMIT_RATIO = 2


class RequestSlots:
    """A number of slots, one for each request; used on the event loop only.

    A client that is alone may use all slots. Once all are in use, clients with less than an equal share of them are
    still let in, up to twice the number of slots, because the others use more than their share.

    Args:
        count: number of slots.
        state: describes the requests that use a slot, for the refusal: "12 requests are STATE".
    """

    def __init__(self, count: int, state: str) -> None:
        self._count, self._state = count, state
        self._used = Counter[str]()

    @contextmanager
    def use(self, client: str) -> Iterator[None]:
        """Uses a slot for a client while the block lasts.

        Raises:
            Problem: 503, all slots are in use, and this client has its share.
        """
        total, used_by_client = self._used.total(), self._used.get(client, 0)
        clients = len(self._used) + (used_by_client == 0)
        has_share = used_by_client >= self._count / clients
        if total >= HARD_LIMIT_RATIO * self._count or (total >= self._count and has_share):
            detail = f"{total} requests are {self._state}, {used_by_client} of this client; {self._count} may be."
            detail += " Try again later"
            raise Problem(503, "busy", detail, headers=retry_after_header(1))
        self._used[client] += 1
        try:
            yield
        finally:
            self._used[client] -= 1
            if not self._used[client]:
                del self._used[client]
