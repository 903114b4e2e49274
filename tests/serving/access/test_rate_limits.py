"""Limits: token buckets with a clock in the test's hand, and windows in a real Redis server."""

import asyncio
import shutil
import subprocess
import time

import pytest

from deploykit.serving.access.rate_limits import REDIS_RETRY_S, RateLimiter, RedisWindows
from deploykit.serving.call import Client
from deploykit.serving.launch import free_port
from deploykit.serving.problems import Problem


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def wait(taken):
    """Returns the seconds that a limit asks to wait; 0 where it lets through, None where there will never be room."""
    try:
        asyncio.run(taken)
    except Problem as problem:
        if (problem.status, problem.reason) != (429, "rate"):
            raise
        return int(problem.headers["retry-after"]) if problem.headers else None
    return 0


def test_a_key_without_a_limit_never_waits():
    limits = RateLimiter()
    assert [wait(limits.count_request(Client("alice", "a"))) for _ in range(100)] == [0] * 100
    assert wait(limits.count_tokens(Client("alice", "a"), 10**9)) == 0


def test_a_minutes_worth_then_one_at_a_time(clock):
    limits = RateLimiter(clock=clock)
    alice, bob = Client("alice", "a", 30), Client("bob", "b", 30)
    assert [wait(limits.count_request(alice)) for _ in range(30)] == [0] * 30
    assert wait(limits.count_request(alice)) == 2
    assert wait(limits.count_request(bob)) == 0
    clock.now = 1.9
    assert wait(limits.count_request(alice)) == 1
    clock.now = 2.0
    assert wait(limits.count_request(alice)) == 0
    assert wait(limits.count_request(alice)) == 2


def test_a_days_worth(clock):
    limits, alice = RateLimiter(clock=clock), Client("alice", "a", requests_per_minute=100, requests_per_day=24)
    assert [wait(limits.count_request(alice)) for _ in range(24)] == [0] * 24
    assert wait(limits.count_request(alice)) == 3600
    clock.now = 3600
    assert wait(limits.count_request(alice)) == 0


def test_a_request_that_the_day_refuses_takes_nothing_of_the_minute(clock):
    limits = RateLimiter(clock=clock)
    before = Client("alice", "a", requests_per_minute=6, requests_per_day=3)
    assert [wait(limits.count_request(before)) for _ in range(5)] == [0, 0, 0, 28800, 28800]
    raised = Client("alice", "a", requests_per_minute=6, requests_per_day=1000)  # its owner gave it more
    assert [wait(limits.count_request(raised)) for _ in range(4)] == [0, 0, 0, 10]


def test_a_request_that_the_minute_refuses_takes_nothing_of_the_day(clock):
    limits, alice = RateLimiter(clock=clock), Client("alice", "a", requests_per_minute=1, requests_per_day=3)
    assert [wait(limits.count_request(alice)) for _ in range(4)] == [0, 60, 60, 60]
    clock.now = 60
    assert wait(limits.count_request(alice)) == 0
    clock.now = 120
    assert wait(limits.count_request(alice)) == 0
    clock.now = 180
    assert wait(limits.count_request(alice)) == 28800 - 180


@pytest.mark.parametrize("limit", [1, 3, 7, 11, 13, 49, 97, 1000, 12345])
def test_a_period_holds_its_limit_exactly(clock, limit):
    clock.now = 123456.789
    limits, alice = RateLimiter(clock=clock), Client("alice", "a", limit)
    taken = sum(wait(limits.count_request(alice)) == 0 for _ in range(limit + 5))
    assert taken == limit


def test_clients_that_are_gone_are_forgotten(clock):
    limits = RateLimiter(clock=clock)
    for number in range(5000):
        clock.now += 1.0
        assert wait(limits.count_request(Client(f"jwt:{number}", f"jwt:{number}", requests_per_minute=60))) == 0
    assert len(limits._local._full_at) < 1500  # the subjects of tokens have no end


def test_tokens_are_counted_by_how_many_they_are(clock):
    limits, alice = RateLimiter(clock=clock), Client("alice", "a", tokens_per_minute=600)
    assert wait(limits.count_tokens(alice, 600)) == 0
    assert wait(limits.count_tokens(alice, 100)) == 10
    clock.now = 10
    assert wait(limits.count_tokens(alice, 100)) == 0
    assert wait(limits.count_tokens(alice, 601)) is None  # to wait would be of no use
    assert wait(limits.count_request(alice)) == 0


def test_so_many_at_once_and_no_more_whatever_happens_in_between():
    limits, alice = RateLimiter(), Client("alice", "a", concurrency=2)
    with limits.in_progress(alice), limits.in_progress(Client("bob", "b", concurrency=1)):
        with (
            limits.in_progress(alice),
            pytest.raises(Problem, match="2 requests in progress"),
            limits.in_progress(alice),
        ):
            pass
        with pytest.raises(ValueError, match="boom"), limits.in_progress(alice):
            raise ValueError("boom")
        with limits.in_progress(alice):
            pass
    assert not limits._in_progress


@pytest.fixture
def redis():
    """`redis() -> (address, process)`: servers of one's own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server")
    pytest.importorskip("limits")
    started = []

    def start(port=None):
        port = port or free_port()
        started.append(
            subprocess.Popen(
                [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
                stdout=subprocess.DEVNULL,
            )
        )
        time.sleep(0.5)
        return f"redis://127.0.0.1:{port}", started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_replicas_count_together_in_a_server(redis):
    address, _ = redis()

    async def scenario():
        one, other = (RateLimiter(RedisWindows(address)) for _ in range(2))
        alice, found = Client("alice", "a", 10, tokens_per_minute=100), []
        for index in range(14):
            try:
                await (one, other)[index % 2].count_request(alice)
                found.append(0)
            except Problem as problem:
                found.append(int(problem.headers["retry-after"]))
        await one.count_tokens(alice, 60)
        with pytest.raises(Problem, match="100 tokens a minute"):
            await other.count_tokens(alice, 60)
        await other.count_request(Client("bob", "b", 10))
        await one.close()
        await other.close()
        return found, one.failures + other.failures

    found, failures = asyncio.run(scenario())
    assert found[:10] == [0] * 10
    assert all(1 <= seconds <= 60 for seconds in found[10:])
    assert failures == 0


def test_a_request_that_the_day_refuses_takes_nothing_of_the_minute_in_a_server(redis):
    address, _ = redis()

    async def scenario():
        limits, outcomes = RateLimiter(RedisWindows(address)), []
        before = Client("alice", "a", requests_per_minute=6, requests_per_day=3)
        raised = Client("alice", "a", requests_per_minute=6, requests_per_day=1000)
        for client in (*[before] * 5, *[raised] * 4):
            try:
                await limits.count_request(client)
                outcomes.append(200)
            except Problem as problem:
                outcomes.append(problem.detail.split(";")[0])
        await limits.close()
        return outcomes, limits.failures

    outcomes, failures = asyncio.run(scenario())
    day, minute = "this key may send 3 requests a day", "this key may send 6 requests a minute"
    assert outcomes == [200, 200, 200, day, day, 200, 200, 200, minute]
    assert failures == 0


def test_without_the_server_each_counts_for_itself_and_comes_back_to_it(redis, clock):
    address, process = redis()

    async def scenario():
        limits, alice = RateLimiter(RedisWindows(address), clock), Client("alice", "a", 3)
        await limits.count_request(alice)
        process.kill()
        process.wait()
        start = time.perf_counter()
        for _ in range(3):
            await limits.count_request(alice)
        with pytest.raises(Problem):
            await limits.count_request(alice)
        assert time.perf_counter() - start < 3  # asked once only, and not for each request
        assert limits.failures == 1
        redis(int(address.rpartition(":")[2]))
        clock.now = REDIS_RETRY_S
        for _ in range(3):
            await limits.count_request(alice)
        with pytest.raises(Problem):
            await limits.count_request(alice)
        await limits.close()
        return limits.failures

    assert asyncio.run(scenario()) == 1
