"""Token buckets, with a clock in the test's hand."""

import pytest

from deploykit.serving.keys import Client
from deploykit.serving.limits import Limits


def test_a_key_without_a_limit_never_waits():
    limits = Limits()
    assert [limits.wait(Client("alice", "a")) for _ in range(1000)] == [0.0] * 1000


def test_a_minutes_worth_then_one_at_a_time():
    now = [0.0]
    limits = Limits(lambda: now[0])
    alice, bob = Client("alice", "a", 30), Client("bob", "b", 30)
    assert [limits.wait(alice) for _ in range(30)] == [0.0] * 30
    assert limits.wait(alice) == pytest.approx(2.0)
    assert limits.wait(bob) == 0.0
    now[0] = 1.9
    assert limits.wait(alice) == pytest.approx(0.1)
    now[0] = 2.0
    assert limits.wait(alice) == 0.0
    assert limits.wait(alice) > 0
