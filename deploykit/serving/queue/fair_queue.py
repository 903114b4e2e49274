"""A queue that decides which item runs next. Clients get equal shares, and so do the requests of one client.

Deficit round robin (Shreedhar and Varghese, 1995): clients take turns, and each turn grants the same number of tokens.
An item's tokens are charged to its client, even if the item runs in a batch that another client's turn started. The
requests of one client take turns too, one item each, so that a request of a thousand texts does not delay one of a
single text. In the engine's queue an item is one text, or one window of a long text; in the tokenizer's queue it is a
piece of a request.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import Generic, Protocol, TypeVar

QUANTUM_TOKENS = 256  # tokens that one turn grants: enough for a few short texts, or for a part of a long one


class Request(Hashable, Protocol):
    """A request, whose items are charged to its client."""

    @property
    def client(self) -> str:
        """Name of the client."""


class Queueable(Protocol):
    """An item of a request; `len(item)` is its number of tokens."""

    @property
    def job(self) -> Request:
        """The request to which the item belongs."""

    @property
    def seconds(self) -> float:
        """Predicted seconds if the item runs alone."""

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Queueable)


@dataclass
class _Account(Generic[T]):
    """What the queue knows of one client.

    Attributes:
        requests: the waiting items of each request; the next request and its next item come first.
        credit: tokens that the client may still run in its turn; negative if its items ran in turns of others.
        tokens: of all waiting items.
        seconds: predicted for all waiting items, one by one.
    """

    requests: OrderedDict[Hashable, OrderedDict[T, None]] = field(default_factory=OrderedDict)
    credit: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class FairQueue(Generic[T]):
    """A queue of items.

    The time to add, choose or remove an item may grow with the number of clients, but not with the number of items.

    Attributes:
        total_tokens: tokens of all waiting items.
        total_s: predicted seconds for all waiting items, one by one.
    """

    def __init__(self) -> None:
        self.total_tokens = 0
        self.total_s = 0.0
        self._item_count = 0
        self._accounts: OrderedDict[str, _Account[T]] = OrderedDict()

    def __len__(self) -> int:
        """Returns the number of waiting items."""
        return self._item_count

    def __iter__(self) -> Iterator[T]:
        """Yields all waiting items; iterates over copies, because another thread may change the queue meanwhile."""
        for account in list(self._accounts.values()):
            for request in list(account.requests.values()):
                yield from list(request)

    def __contains__(self, item: T) -> bool:
        account = self._accounts.get(item.job.client)
        return account is not None and item in account.requests.get(item.job, {})

    def client_tokens(self, client: str) -> int:
        """Returns the tokens of a client's waiting items."""
        return self._accounts[client].tokens if client in self._accounts else 0

    def client_count_with(self, client: str) -> int:
        """Returns the number of clients with waiting items, as it will be once `client` has some."""
        return len(self._accounts) + (client not in self._accounts)

    def work_ahead_s(self, client: str, new_s: float) -> float:
        """Predicts how much waiting work runs before the last item of a new request.

        Clients take turns: until then, each other client runs about as much work as this client, or all that it has.

        Args:
            client: of the request.
            new_s: predicted seconds of the request's items, one by one.

        Returns:
            Predicted seconds of the work of other requests, one item by one.
        """
        other_clients = self.client_count_with(client) - 1
        client_s = self._accounts[client].seconds if client in self._accounts else 0.0
        return min(self.total_s, client_s + (client_s + new_s) * other_clients)

    def add(self, item: T) -> None:
        """Adds an item as the last of its request."""
        account = self._accounts.setdefault(item.job.client, _Account())
        account.requests.setdefault(item.job, OrderedDict())[item] = None
        self._update_totals(account, item, 1)

    def discard(self, item: T) -> None:
        """Removes an item, if it is in the queue, without charging its client."""
        if item not in self:
            return
        account = self._accounts[item.job.client]
        items = account.requests[item.job]
        del items[item]
        if not items:
            del account.requests[item.job]
        self._update_totals(account, item, -1)
        if not account.requests:  # credit and debt end when the client has no waiting items
            del self._accounts[item.job.client]

    def take(self, item: T) -> None:
        """Removes an item that is about to run, charges its client, and puts its request behind the client's others."""
        account = self._accounts[item.job.client]
        account.credit -= len(item)
        self.discard(item)
        if item.job in account.requests:
            account.requests.move_to_end(item.job)

    def next_item(self) -> T:
        """Returns the item whose turn it is, without removing it; the queue must not be empty.

        A client whose credit is too small for its next item is granted a quantum, and waits for its next turn.
        """
        while True:
            client, account = next(iter(self._accounts.items()))
            next_request = next(iter(account.requests.values()))
            item = next(iter(next_request))
            if len(self._accounts) == 1:
                account.credit = 0.0  # a client that is alone makes nobody wait, so it owes nothing later
                return item
            if account.credit >= len(item):
                return item
            account.credit += QUANTUM_TOKENS
            self._accounts.move_to_end(client)

    def batch_candidates(self, limit: int) -> Iterator[T]:
        """Yields about `limit` items that may join a batch, without removing them; each client gives equally many."""
        share = ceil(limit / max(len(self._accounts), 1))
        for account in self._accounts.values():
            client_items = (item for request in account.requests.values() for item in request)
            yield from islice(client_items, share)

    def _update_totals(self, account: _Account[T], item: T, sign: int) -> None:
        """Adds an item to the totals of its client and of the queue (`sign` 1), or subtracts it (`sign` -1)."""
        self._item_count += sign
        self.total_tokens += sign * len(item)
        # rounding errors of the sum end when the queue is empty
        self.total_s = self.total_s + sign * item.seconds if self._item_count else 0.0
        account.tokens += sign * len(item)
        account.seconds += sign * item.seconds
