"""Which item is next, without threads or clocks."""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from deploykit.serving.queue.fair_queue import QUANTUM_TOKENS, FairQueue


class Job(NamedTuple):
    client: str
    request: str


@dataclass(eq=False)
class Text:
    client: str
    request: str
    tokens: int = 10
    seconds: float = 0.1

    @property
    def job(self):
        return Job(self.client, self.request)

    def __len__(self):
        return self.tokens


def queue_of(*items):
    queue = FairQueue()
    for item in items:
        queue.add(item)
    return queue


def served(queue, count):
    """Serves one item at a time."""
    items = []
    for _ in range(count):
        items.append(queue.next_item())
        queue.take(items[-1])
    return items


def test_one_client_is_served_in_the_order_of_its_requests():
    items = [Text("a", str(index)) for index in range(5)]
    assert served(queue_of(*items), 5) == items


def test_requests_of_a_client_take_turns():
    many = [Text("a", "many") for _ in range(4)]
    second, third = Text("a", "second"), Text("a", "third")
    assert served(queue_of(*many, second, third), 6) == [many[0], second, third, *many[1:]]


@pytest.mark.parametrize("tokens", [(10, 10), (300, 20), (37, 500)])
def test_clients_get_as_many_tokens_as_each_other_whatever_the_lengths(tokens):
    items = [Text(name, str(index), size) for name, size in zip("ab", tokens, strict=True) for index in range(400)]
    shares = Counter()
    for item in served(queue_of(*items), 300):
        shares[item.client] += len(item)
        assert abs(shares["a"] - shares["b"]) <= 2 * (QUANTUM_TOKENS + max(tokens))


def test_items_that_joined_a_batch_are_charged():
    items = {name: [Text(name, str(index), 64) for index in range(100)] for name in "ab"}
    queue = queue_of(*items["a"], *items["b"])
    for filler in items["a"][50:60]:  # joins batches that start with a text of the other client
        queue.take(filler)
    clients = [item.client for item in served(queue, 20)]
    assert Counter(clients)["b"] >= 13


def test_a_client_that_was_alone_owes_nothing():
    queue = queue_of(*[Text("a", str(index), 1000) for index in range(20)])
    served(queue, 10)
    queue.add(Text("b", "b", 1000))
    assert sorted(item.client for item in served(queue, 4)) == ["a", "a", "a", "b"]


def test_everybody_is_served_however_many_come_later():
    queue, items = queue_of(Text("slow", "slow", 8000)), []
    for index in range(4000):
        queue.add(Text("fast", str(index), 10))
        items += served(queue, 1)
    assert "slow" in {item.client for item in items}


def test_items_are_counted_and_can_be_taken_out():
    items = [Text("a", "1", 3), Text("a", "1", 4), Text("b", "2", 5)]
    queue = queue_of(*items)
    assert (len(queue), queue.total_tokens, queue.client_count_with("a"), queue.client_tokens("a")) == (3, 12, 2, 7)
    queue.discard(items[1])
    queue.discard(items[1])
    assert items[1] not in queue
    assert (len(queue), queue.total_tokens, queue.client_count_with("a"), queue.client_tokens("a")) == (2, 8, 2, 3)
    queue.take(items[0])
    assert (len(queue), queue.total_tokens, queue.client_count_with("a"), queue.client_tokens("a")) == (1, 5, 2, 0)
    queue.discard(items[2])
    assert (len(queue), queue.total_tokens, queue.client_count_with("a")) == (0, 0, 1)
    assert not queue


def test_fillers_are_of_all_clients():
    queue = queue_of(*[Text("a", str(index)) for index in range(1000)], Text("b", "b"), Text("c", "c"))
    counts = Counter(item.client for item in queue.batch_candidates(30))
    assert counts == {"a": 10, "b": 1, "c": 1}
    assert len(queue) == 1002


def test_at_random_nothing_is_lost_and_nothing_is_served_twice():
    random = np.random.default_rng(0)
    queue, inside, removed = FairQueue(), [], []
    for _ in range(3000):
        if random.random() < 0.5 or not queue:
            item = Text(f"c{random.integers(4)}", f"r{random.integers(9)}", int(random.integers(1, 400)))
            queue.add(item)
            inside.append(item)
        else:
            item = queue.next_item() if random.random() < 0.7 else inside[random.integers(len(inside))]
            (queue.take if random.random() < 0.8 else queue.discard)(item)
            inside.remove(item)
            removed.append(item)
        assert len(queue) == len(inside)
        assert queue.total_tokens == sum(map(len, inside))
    assert len(set(map(id, removed))) == len(removed)
