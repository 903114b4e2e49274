"""A queue that decides which item is next: it shares the engine between clients, and a client's share between requests.

Deficit round robin (Shreedhar and Varghese, 1995): clients take turns, and each turn grants the same number of tokens.
An item is charged to its client, also if it only joined the batch of another client. The requests of one client take
turns too, one text each, so that a request of a thousand texts does not delay one of a single text.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

QUANTUM_TOKENS = 256  # granted per turn: a few short texts, or a part of a long one


class Request(Hashable, Protocol):
    """A request, whose items are charged to its client."""

    @property
    def client(self) -> str:
        """Name of the client."""


class Queueable(Protocol):
    """An item of a request; its length is its cost in tokens."""

    @property
    def job(self) -> Request:
        """The request to which the item belongs."""

    @property
    def seconds(self) -> float:
        """Predicted time if the item runs alone."""

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Queueable)


@dataclass
class _Account(Generic[T]):
    """The waiting items of one client by request (the next request first), and the client's credit in tokens."""

    requests: OrderedDict[Hashable, OrderedDict[T, None]] = field(default_factory=OrderedDict)
    credit: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class FairQueue(Generic[T]):
    """A queue of items; the time of an operation may grow with the number of clients, but not of items."""

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._items = 0
        self._accounts: OrderedDict[str, _Account[T]] = OrderedDict()

    def __len__(self) -> int:
        return self._items

    def __iter__(self) -> Iterator[T]:
        """Yields all items from copies of the lists, because another thread may change the queue meanwhile."""
        for account in list(self._accounts.values()):
            for request in list(account.requests.values()):
                yield from list(request)

    def __contains__(self, item: T) -> bool:
        account = self._accounts.get(item.job.client)
        return account is not None and item in account.requests.get(item.job, {})

    def tokens_of(self, client: str) -> int:
        """Returns the waiting tokens of a client."""
        return self._accounts[client].tokens if client in self._accounts else 0

    def clients_with(self, client: str) -> int:
        """Returns the number of clients that take turns, counting this one even if it has no items."""
        return len(self._accounts) + (client not in self._accounts)

    def ahead_of(self, client: str, seconds: float) -> float:
        """Predicts the seconds of all items that run before a client's last one, if it adds items of `seconds`."""
        others = self.clients_with(client) - 1
        own_s = self._accounts[client].seconds if client in self._accounts else 0.0
        return min(self.seconds, own_s * (others + 1) + seconds * others)

    def add(self, item: T) -> None:
        """Adds an item as the last of its request."""
        account = self._accounts.setdefault(item.job.client, _Account())
        account.requests.setdefault(item.job, OrderedDict())[item] = None
        self._count(account, item, 1)

    def discard(self, item: T) -> None:
        """Removes an item, if the queue has it, without charging it."""
        if item not in self:
            return
        account = self._accounts[item.job.client]
        items = account.requests[item.job]
        del items[item]
        if not items:
            del account.requests[item.job]
        self._count(account, item, -1)
        if not account.requests:  # credit and debt end when nothing of the client waits
            del self._accounts[item.job.client]

    def take(self, item: T) -> None:
        """Removes an item to run it, charges it to its client, and puts its request behind the client's others."""
        account = self._accounts[item.job.client]
        account.credit -= len(item)
        self.discard(item)
        if item.job in account.requests:
            account.requests.move_to_end(item.job)

    def first(self) -> T:
        """Returns the next item in turn without removing it; the queue must not be empty."""
        while True:
            account = next(iter(self._accounts.values()))
            item = next(iter(next(iter(account.requests.values()))))
            if len(self._accounts) == 1:
                account.credit = 0.0  # a client alone makes nobody wait, so it owes nothing later
                return item
            if account.credit >= len(item):
                return item
            account.credit += QUANTUM_TOKENS
            self._accounts.move_to_end(next(iter(self._accounts)))

    def fillers(self, limit: int) -> Iterator[T]:
        """Yields about `limit` items that may join a batch, equally many of each client, without removing them."""
        share = -(-limit // max(len(self._accounts), 1))
        for account in self._accounts.values():
            items = (item for request in account.requests.values() for item in request)
            yield from islice(items, share)

    def _count(self, account: _Account[T], item: T, sign: int) -> None:
        self._items += sign
        self.tokens += sign * len(item)
        self.seconds = self._items and self.seconds + sign * item.seconds  # 0 if empty: drops rounding errors
        account.tokens += sign * len(item)
        account.seconds += sign * item.seconds
