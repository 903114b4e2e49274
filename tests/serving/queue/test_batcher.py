"""Which texts share a batch, which are dropped before they run, and which fail if a batch fails."""

import asyncio
import threading
import time

import numpy as np
import pytest
from queueing import BOUNDS, WIDE, refused, run

from deploykit.artifact.cost import Cost
from deploykit.serving.problems import Problem
from deploykit.serving.queue.batch_rules import Bounds, choose_by_cost
from deploykit.serving.queue.batcher import Batcher

TRUE = Cost(fixed=1e-3, per_token=2e-5)
LINEAR = Cost(fixed=0.0, per_token=1e-3)


class Engine:
    """Records its batches; waits for `go` if it is held, and fails on the text "bad"."""

    def __init__(self, held=False):
        self.batches = []
        self.started, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, features):
        texts = [part.text for part in features]
        self.batches.append(texts)
        self.started.set()
        assert self.go.wait(10)
        if "bad" in texts:
            raise RuntimeError("boom")
        return [{"logits": np.full(2, len(part), np.float32)} for part in features]


class Slow(Engine):
    """Takes the CPU time that `TRUE` predicts, after 2 ms without CPU time."""

    def __call__(self, features):
        time.sleep(0.002)
        end = time.thread_time() + TRUE.seconds(len(features), max(map(len, features)))
        while time.thread_time() < end:
            pass
        return super().__call__(features)


async def busy(submit, engine, **options):
    """Occupies the engine with one text."""
    task = submit("first", **options)
    await asyncio.to_thread(engine.started.wait, 10)
    return task


def test_a_full_queue_refuses_with_a_time_to_retry():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        waiting, refusals = submit("b", tokens=990), submit("c", tokens=11)
        await asyncio.sleep(0)
        await asyncio.wait([refusals])
        assert refused(refusals) == (503, "queue_full")
        assert int(refusals.exception().headers["retry-after"]) >= 1
        engine.go.set()
        await asyncio.gather(first, waiting)

    run(scenario, engine)
    assert engine.batches == [["first"], ["b"]]


def test_a_huge_request_is_accepted_into_an_empty_queue_and_causes_no_other_refusals():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        huge = submit("b", "b", tokens=2500)
        await asyncio.sleep(0)
        other, refusal = submit("c", tokens=90, client="other"), submit("d", tokens=1)
        await asyncio.wait([refusal])
        assert refused(refusal) == (503, "queue_full")
        engine.go.set()
        await asyncio.gather(first, huge, other)
        assert not batcher._excess_tokens

    run(scenario, engine)


def test_a_request_after_its_deadline_is_dropped_before_it_is_computed():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        late = submit("late", timeout_s=0.05)
        await asyncio.wait([late])
        assert refused(late) == (504, "deadline")
        waiting = batcher.queue_state()
        engine.go.set()
        await first
        return waiting

    waiting, _ = run(scenario, engine)
    assert waiting == (0, 0, 0.0)  # it leaves the queue at once, not only when the engine is free
    assert engine.batches == [["first"]]


def test_the_other_texts_of_a_failed_request_are_not_computed():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        failing = submit("bad", "good")
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.wait([first, failing])
        assert refused(failing) == (500, "failed")

    run(scenario, engine, Bounds(batch_tokens=4096, batch_items=1, queue_tokens=1000))
    assert engine.batches == [["first"], ["bad"]]


def test_a_request_whose_deadline_passed_before_the_queue_is_not_computed():
    engine = Engine()

    async def scenario(submit, batcher):
        late = submit("late", timeout_s=-0.001)
        await asyncio.wait([late])
        assert refused(late) == (504, "deadline")
        await submit("b")

    run(scenario, engine)
    assert engine.batches == [["b"]]


def test_a_client_that_left_is_dropped_before_it_is_computed():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        disconnect = asyncio.get_running_loop().create_future()
        cancelled, stays = submit("left", gone=disconnect), submit("stays")
        await asyncio.sleep(0)
        disconnect.set_result(None)
        await asyncio.wait([cancelled])
        assert refused(cancelled) == (499, "client_gone")
        engine.go.set()
        await asyncio.gather(first, stays)

    run(scenario, engine)
    assert engine.batches == [["first"], ["stays"]]


def test_a_bad_text_fails_alone():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        good, bad, fine = submit("good", "good"), submit("bad"), submit("fine")
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.wait([first, good, bad, fine])
        assert refused(bad) == (500, "failed")
        return [len(task.result()[0]) for task in (first, good, fine)]

    answers, metrics = run(scenario, engine)
    assert answers == [1, 2, 1]
    assert engine.batches[1] == ["good", "good", "bad", "fine"]
    assert sorted(engine.batches[2:]) == [["bad"], ["fine"], ["good"], ["good"]]
    assert b"deploykit_batch_retries_total 1.0" in metrics.page()


def test_requests_that_wait_together_run_as_one_batch():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        tasks = [await busy(submit, engine), submit("b"), submit("c", "d")]
        await asyncio.sleep(0)
        engine.go.set()
        return await asyncio.gather(*tasks)

    answers, metrics = run(scenario, engine)
    assert engine.batches == [["first"], ["b", "c", "d"]]
    assert [len(scores) for scores, _ in answers] == [1, 1, 2]
    assert b'deploykit_batch_items_bucket{le="2.0"} 1.0' in metrics.page()


def test_an_idle_engine_starts_at_once():
    engine = Engine()

    async def scenario(submit, batcher):
        for _ in range(3):
            await submit("a")
        return batcher.oldest_batch_age_s

    assert run(scenario, engine)[0] == 0.0
    assert engine.batches == [["a"]] * 3


def test_answers_come_in_the_order_asked_whatever_the_lengths():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        tasks = [submit("x", tokens=length) for length in (9, 3, 7, 3)]
        await asyncio.sleep(0)
        engine.go.set()
        await first
        return [float(outputs[0]["logits"][0]) for outputs, _ in await asyncio.gather(*tasks)]

    assert run(scenario, engine)[0] == [9, 3, 7, 3]


@pytest.mark.parametrize(
    ("lengths", "cost", "bounds", "expected"),
    [
        ([10, 500, 12, 11], Cost(), BOUNDS, [0, 2, 3]),  # padding three short texts to 500 does not pay
        ([500, 10, 12], Cost(), BOUNDS, [0]),
        ([10, 500, 12, 11], WIDE, BOUNDS, [0, 1, 2, 3]),
        ([10, 10, 10], Cost(fixed=0.0), BOUNDS, [0]),  # batches save nothing
        ([500, 500, 500], Cost(), BOUNDS, [0]),  # batches save almost nothing
        ([10] * 9, WIDE, Bounds(50, 64, 99), [0, 1, 2, 3, 4]),
        ([10] * 9, WIDE, Bounds(999, 3, 99), [0, 1, 2]),
        ([100, 1], WIDE, Bounds(50, 64, 99), [0]),  # too long for any batch: runs alone
    ],
)
def test_choosing(lengths, cost, bounds, expected):
    assert sorted(choose_by_cost(lengths, cost, bounds)[0]) == expected


@pytest.mark.parametrize(
    ("lengths", "cost", "bounds", "release"),
    [
        ([10], Cost(), BOUNDS, "all"),
        ([10, 10], Cost(), BOUNDS, "all"),
        ([10, 500], Cost(), BOUNDS, "cost"),
        ([10] * 9, WIDE, Bounds(50, 64, 99), "tokens"),
        ([10] * 9, WIDE, Bounds(999, 3, 99), "items"),
        ([10] * 3, WIDE, Bounds(999, 3, 99), "all"),
    ],
)
def test_a_batch_knows_why_it_is_not_larger(lengths, cost, bounds, release):
    assert choose_by_cost(lengths, cost, bounds)[1] == release


@pytest.mark.parametrize(("waiting", "shared"), [(2, 1), (4, 2), (8, 4), (40, 20)])
def test_a_batch_is_larger_if_more_texts_wait(waiting, shared):
    even = Cost(fixed=2e-3, per_token=1.05e-4)  # nearly half the time of a text of 20 tokens is the fixed cost
    assert len(choose_by_cost([20] * waiting, even, BOUNDS)[0]) == shared


def test_a_batch_is_cut_to_a_size_without_padded_rows():
    engine = Engine(held=True)

    def shape(rows, tokens):
        return -(-rows // 4) * 4 if rows > 2 else rows, tokens

    def make(engine, bounds, metrics):
        return Batcher(engine, bounds, metrics, WIDE, padded_shape=shape)

    async def scenario(submit, batcher):
        tasks = [await busy(submit, engine), *(submit(text) for text in "bcdefghijkl")]
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(*tasks)

    run(scenario, engine, make=make)
    assert [len(batch) for batch in engine.batches] == [1, 8, 2, 1]


def test_texts_that_the_engine_pads_alike_share_a_batch():
    engine, cost = Engine(held=True), Cost(fixed=0.012, per_token=0.001)  # unpadded, 9 and 16 would not share a batch

    def make(engine, bounds, metrics):
        return Batcher(engine, bounds, metrics, cost, padded_shape=lambda rows, tokens: (rows, -(-tokens // 8) * 8))

    async def scenario(submit, batcher):
        tasks = [await busy(submit, engine), submit("b", tokens=9), submit("c", tokens=16), submit("d", tokens=17)]
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(*tasks)

    _, metrics = run(scenario, engine, make=make)
    assert engine.batches == [["first"], ["b", "c"], ["d"]]
    assert b"deploykit_batch_tokens_sum 64.0" in metrics.page()  # padding included: 8, 2 x 16 and 24


def test_releases_are_counted():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        tasks = [await busy(submit, engine), submit("b"), submit("c"), submit("long", tokens=500)]
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(*tasks)

    _, metrics = run(scenario, engine, cost=Cost())
    assert engine.batches == [["first"], ["b", "c"], ["long"]]
    page = metrics.page()
    assert b'deploykit_batches_total{release="all"} 2.0' in page  # the first and the last
    assert b'deploykit_batches_total{release="cost"} 1.0' in page
    assert b'deploykit_batches_total{release="items"} 0.0' in page


def test_a_request_of_many_texts_does_not_hold_up_others():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        many = submit(*[f"m{index}" for index in range(100)])
        await asyncio.sleep(0)
        single, other = submit("single"), submit("other", client="b")
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(first, many, single, other)

    run(scenario, engine, Bounds(batch_tokens=4096, batch_items=1, queue_tokens=1000))
    places = {text: place for place, (text,) in enumerate(engine.batches)}
    assert places["single"] <= 3
    assert places["other"] <= 66  # after one turn of the client that came before
    assert [text for (text,) in engine.batches if text[0] == "m"] == [f"m{index}" for index in range(100)]


def test_clients_with_many_requests_do_not_delay_clients_with_few():
    engine = Engine(held=True)
    done = []

    async def scenario(submit, batcher):
        tasks = [await busy(submit, engine)]
        greedy = [submit(f"g{index}", tokens=64, client="greedy") for index in range(60)]
        await asyncio.sleep(0)
        modest = [submit(f"m{index}", tokens=64, client="modest") for index in range(4)]
        for task in (*greedy, *modest):
            task.add_done_callback(done.append)
        await asyncio.sleep(0)
        engine.go.set()
        await asyncio.gather(*tasks, *greedy, *modest)
        return max(done.index(task) for task in modest)

    last, _ = run(scenario, engine, Bounds(batch_tokens=128, batch_items=2, queue_tokens=9999))
    assert last < 16  # of 64 requests: all four of the modest client ran in the first turns


def test_a_full_queue_still_accepts_clients_below_their_share():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        greedy = submit(*"abcdefghij", tokens=100, client="greedy")
        await asyncio.sleep(0)
        more, modest = submit("k", client="greedy"), submit("m", tokens=400, client="modest")
        await asyncio.sleep(0)
        await asyncio.wait([more], timeout=5)
        assert refused(more) == (503, "queue_full")
        over = submit("n", tokens=700, client="third")  # above the hard limit
        await asyncio.wait([over], timeout=5)
        assert refused(over) == (503, "queue_full")
        engine.go.set()
        await asyncio.gather(first, greedy, modest)

    run(scenario, engine)


def test_a_request_that_would_wait_longer_than_its_timeout_is_refused_at_once():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        waiting = submit("b", tokens=900)  # predicted to take 0.9 s
        await asyncio.sleep(0)
        late, patient = submit("c", timeout_s=0.5), submit("d", timeout_s=5)
        other = submit("e", timeout_s=0.5, client="other")  # its turn comes first
        await asyncio.wait([late])
        assert refused(late) == (503, "queue_full")
        engine.go.set()
        await asyncio.gather(first, waiting, patient, other)

    run(scenario, engine, cost=LINEAR)


def test_a_request_that_would_wait_longer_than_the_limit_is_refused_whatever_its_timeout():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        accepted = [submit("b", tokens=40), submit("c", tokens=40)]  # the second waits 40 ms
        await asyncio.sleep(0)
        batcher.admit("other")
        with pytest.raises(Problem) as early:
            batcher.admit("none")
        late, other = submit("d", tokens=1), submit("e", tokens=40, client="other")
        await asyncio.wait([late])
        engine.go.set()
        await asyncio.gather(first, *accepted, other)
        return refused(late), (early.value.status, early.value.reason)

    refusals, _ = run(scenario, engine, Bounds(4096, 64, 10**6, wait_s=0.05), LINEAR)
    assert refusals == ((503, "queue_full"),) * 2


def test_the_wait_is_estimated_from_the_predicted_times_of_the_waiting_texts():
    engine, cost = Engine(held=True), Cost(fixed=1e-3, per_token=1e-5)

    async def scenario(submit, batcher):
        first = await busy(submit, engine, tokens=1000)  # 11 ms, measured as about 110
        await asyncio.sleep(0.11)
        engine.go.set()
        await first
        pace = batcher._wait_estimator.estimate_s(1)
        engine.go.clear()
        engine.started.clear()
        tasks = [await busy(submit, engine), *(submit("b", tokens=2) for _ in range(10))]
        await asyncio.sleep(0)
        ahead_s = batcher._wait_estimator.estimate_s(batcher._waiting.work_ahead_s("none", 0)) / pace
        engine.go.set()
        await asyncio.gather(*tasks)
        return pace, ahead_s

    (pace, ahead_s), _ = run(scenario, engine, cost=cost)
    assert 1.2 < pace < 3
    assert ahead_s == pytest.approx(10 * 1.02e-3)  # not 20 tokens at 0.1 ms per token, as for the long text


@pytest.mark.parametrize("timeout_s", [10, 0.045])
def test_waits_longer_than_estimated_lead_to_earlier_refusals(timeout_s):
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        ahead = submit("b", tokens=40)  # takes 40 ms
        await asyncio.sleep(0)
        near = submit("c", tokens=40, timeout_s=timeout_s)
        await asyncio.sleep(0.1)
        engine.go.set()
        await asyncio.wait([first, ahead, near])
        margin = batcher._wait_estimator.margin
        for _ in range(300):
            batcher._wait_estimator.learn_wait(2.0, 1.0)
        engine.go.clear()
        engine.started.clear()
        tasks = [await busy(submit, engine), submit("e", tokens=40)]
        await asyncio.sleep(0)
        late = submit("f", tokens=1)
        await asyncio.wait([late])
        engine.go.set()
        await asyncio.gather(*tasks)
        return margin, refused(late)

    (margin, refusal), _ = run(scenario, engine, Bounds(4096, 64, 10**6, wait_s=0.05), LINEAR)
    assert margin > 1
    assert refusal == (503, "queue_full")


def test_a_request_knows_how_long_its_texts_waited_and_took():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        second = submit("b")
        await asyncio.sleep(0.05)
        engine.go.set()
        return [timing for _, timing in await asyncio.gather(first, second)]

    (computed, queued), _ = run(scenario, engine)
    assert computed.queue_s < 0.04 < computed.inference_s
    assert queued.inference_s < 0.04 < queued.queue_s


def test_every_batch_holds_the_oldest_and_keeps_its_bounds():
    random = np.random.default_rng(0)
    bounds = Bounds(256, 8, 0)
    for _ in range(200):
        lengths = random.integers(1, 200, size=random.integers(1, 40)).tolist()
        chosen, _ = choose_by_cost(lengths, Cost(), bounds)
        assert chosen[0] == 0
        assert len(set(chosen)) == len(chosen) <= 8
        assert len(chosen) * max(lengths[index] for index in chosen) <= 256
        alone = sum(Cost().fixed + Cost().per_token * lengths[index] for index in chosen)
        together = Cost().fixed + Cost().per_token * len(chosen) * max(lengths[index] for index in chosen)
        assert together <= alone + 1e-9


@pytest.mark.parametrize(
    ("clock", "least", "most"), [(time.thread_time, 7e-4, 1.4e-3), (time.perf_counter, 1.6e-3, 4e-3)]
)
def test_time_without_cpu_does_not_count_as_a_cost_of_a_batch(clock, least, most):
    def make(engine, bounds, metrics):
        return Batcher(engine, bounds, metrics, TRUE, clock=clock)

    async def scenario(submit, batcher):
        for tokens in [8, 16, 32, 64, 96] * 26:
            await submit("a", tokens=tokens)
        return batcher._cost.current.fixed

    assert least <= run(scenario, Slow(), make=make)[0] <= most
