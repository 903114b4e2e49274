"""Who is next: a queue that shares the engine between clients, and a client's share between its requests.

Deficit round robin (Shreedhar and Varghese, 1995): clients take turns, and each turn is worth as many tokens.
What a client's texts cost is taken off its credit, also where they only filled up a batch for somebody else. Within
a client, requests give one text in turn, so that one of a thousand texts does not hold up one of a single text.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

QUANTUM = 256  # tokens of one turn: some short texts, or a part of a long one


class Asked(Hashable, Protocol):
    """A request: `client` pays for it."""

    @property
    def client(self) -> str:
        """Who asks."""


class Waiting(Protocol):
    """What can wait: its length is what it costs, in tokens; `seconds` is how long it would take alone."""

    seconds: float

    @property
    def job(self) -> Asked:
        """The request that it is a part of."""

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Waiting)


@dataclass
class _Account(Generic[T]):
    """What waits of one client, by request, whose turn it is first; and its credit in tokens."""

    requests: OrderedDict[Hashable, OrderedDict[T, None]] = field(default_factory=OrderedDict)
    credit: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class FairQueue(Generic[T]):
    """Items that wait; every operation takes time in the clients at most, not in the items."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._items = 0
        self._accounts: OrderedDict[str, _Account[T]] = OrderedDict()

    def __len__(self) -> int:
        return self._items

    def __iter__(self) -> Iterator[T]:
        """Yields what waits, each request as it was when it was looked at: another thread may ask."""
        for account in list(self._accounts.values()):
            for request in list(account.requests.values()):
                yield from list(request)

    def __contains__(self, item: T) -> bool:
        account = self._accounts.get(item.job.client)
        return account is not None and item in account.requests.get(item.job, {})

    def tokens_of(self, client: str) -> int:
        """Returns the tokens of a client that wait."""
        account = self._accounts.get(client)
        return account.tokens if account else 0

    def seconds_of(self, client: str) -> float:
        """Returns the seconds that the texts of a client that wait would take, one by one."""
        account = self._accounts.get(client)
        return account.seconds if account else 0.0

    def sharing(self, client: str) -> int:
        """Returns how many clients take turns, with this one."""
        return len(self._accounts) + (client not in self._accounts)

    def ahead_of(self, client: str, seconds: float) -> float:
        """Returns how much of what waits would be run before a client's last item, if it added some, in seconds.

        Args:
            client: who asks.
            seconds: that its new items take one by one.
        """
        others = self.sharing(client) - 1
        return min(self.seconds, self.seconds_of(client) * (others + 1) + seconds * others)

    def add(self, item: T) -> None:
        """Puts an item behind those of its request."""
        account = self._accounts.setdefault(item.job.client, _Account())
        account.requests.setdefault(item.job, OrderedDict())[item] = None
        self._count(account, item, 1)

    def discard(self, item: T) -> bool:
        """Takes an item out, if it is there; nobody pays."""
        if item not in self:
            return False
        account = self._accounts[item.job.client]
        of_request = account.requests[item.job]
        del of_request[item]
        if not of_request:
            del account.requests[item.job]
        self._count(account, item, -1)
        if not account.requests:  # who comes back begins anew
            del self._accounts[item.job.client]
        return True

    def take(self, item: T) -> None:
        """Takes an item out to be run: its client pays for it, and the client's other requests are first now."""
        account = self._accounts[item.job.client]
        account.credit -= len(item)
        self.discard(item)
        if item.job in account.requests:
            account.requests.move_to_end(item.job)

    def first(self) -> T:
        """Returns the item whose turn it is; there must be one."""
        while True:
            account = next(iter(self._accounts.values()))
            item = next(iter(next(iter(account.requests.values()))))
            if len(self._accounts) == 1:
                account.credit = 0.0  # nobody is kept waiting: there is nothing to pay back
                return item
            if account.credit >= len(item):
                return item
            account.credit += QUANTUM
            self._accounts.move_to_end(next(iter(self._accounts)))

    def others(self, most: int) -> Iterator[T]:
        """Yields up to `most` items that may fill up a batch, of all clients alike, without taking them."""
        share = -(-most // max(len(self._accounts), 1))
        for account in self._accounts.values():
            found = (item for request in account.requests.values() for item in request)
            yield from islice(found, share)

    def _count(self, account: _Account[T], item: T, sign: int) -> None:
        self._items += sign
        self.tokens += sign * len(item)
        self.seconds = self._items and self.seconds + sign * item.seconds  # an empty queue forgets what was rounded
        account.tokens += sign * len(item)
        account.seconds += sign * item.seconds
