"""What shares a batch, what is dropped before it is computed, and who fails when a batch does."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.serving import batcher as module
from deploykit.serving.batcher import Batcher, Bounds, Cost, choose
from deploykit.serving.metrics import Metrics
from deploykit.serving.problems import Problem
from deploykit.tokenizer import Encoding

BOUNDS = Bounds(batch_tokens=4096, batch_items=64, queue_tokens=1000)
WIDE = Cost(fixed=1.0, per_token=1e-9)  # padding costs nothing


def encoding(tokens):
    ids = np.arange(tokens)
    return Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, False)


class Engine:
    """Notes its batches; waits for `go` with the first one, and fails where a text says so."""

    def __init__(self, held=False):
        self.batches = []
        self.started, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, texts, encodings):
        self.batches.append(list(texts))
        self.started.set()
        assert self.go.wait(10)
        if "bad" in texts:
            raise RuntimeError("boom")
        return [np.full((1, 2), len(found), np.float32) for found in encodings]


def run(scenario, engine, bounds=BOUNDS, cost=WIDE, streams=1):
    """Runs `scenario(submit, batcher)`; `submit(*texts, tokens=4, ...)` starts one request as a task."""
    metrics = Metrics(["/v1/predict"], ["a", "b"])

    async def body():
        batcher = Batcher(engine, bounds, metrics, cost, streams)

        def submit(*texts, tokens=4, timeout_s=10, gone=None):
            found = batcher.submit(texts, [encoding(tokens) for _ in texts], timeout_s, gone)
            return asyncio.get_running_loop().create_task(found)

        try:
            return await scenario(submit, batcher)
        finally:
            engine.go.set()
            batcher.close()

    return asyncio.run(body()), metrics


class Gates:
    """An engine that notes its batches and holds each until the gate of its first text is opened."""

    def __init__(self, *names):
        self.batches, self.inside, self.most = [], 0, 0
        self.started = {name: threading.Event() for name in names}
        self.gates = {name: threading.Event() for name in names}
        self.go = SimpleNamespace(set=lambda: [gate.set() for gate in self.gates.values()])
        self._lock = threading.Lock()

    def __call__(self, texts, encodings):
        with self._lock:
            self.batches.append(list(texts))
            self.inside += 1
            self.most = max(self.most, self.inside)
        if texts[0] in self.gates:
            self.started[texts[0]].set()
            assert self.gates[texts[0]].wait(10)
        with self._lock:
            self.inside -= 1
        if "bad" in texts:
            raise RuntimeError("boom")
        return [np.full((1, 2), len(found), np.float32) for found in encodings]

    async def entered(self, *names):
        for name in names:
            assert await asyncio.to_thread(self.started[name].wait, 10)


async def busy(submit, engine, **options):
    """Occupies the engine with one text."""
    task = submit("first", **options)
    await asyncio.to_thread(engine.started.wait, 10)
    return task


def refused(task):
    error = task.exception()
    assert isinstance(error, Problem)
    return error.status, error.reason


def test_a_full_queue_refuses_and_says_when_to_come_back():
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


def test_a_request_that_is_too_late_is_dropped_before_it_is_computed():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        late = submit("late", timeout_s=0.05)
        await asyncio.wait([late])
        assert refused(late) == (504, "deadline")
        waiting = len(batcher._waiting), batcher._tokens
        engine.go.set()
        await first
        return waiting

    waiting, metrics = run(scenario, engine)
    assert waiting == (0, 0)  # it makes room at once, and not only when the engine is free
    assert engine.batches == [["first"]]
    assert b"deploykit_queue_tokens 0.0" in metrics.page()


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


def test_a_client_that_left_is_dropped_before_it_is_computed():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        first = await busy(submit, engine)
        gone = asyncio.get_running_loop().create_future()
        left, stays = submit("left", gone=gone), submit("stays")
        await asyncio.sleep(0)
        gone.set_result(None)
        await asyncio.wait([left])
        assert refused(left) == (499, "client_gone")
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
        return batcher.busy_s

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
        return [float(scores[0][0, 0]) for scores, _ in await asyncio.gather(*tasks)]

    assert run(scenario, engine)[0] == [9, 3, 7, 3]


def test_streams_run_batches_at_the_same_time_and_no_more_than_they_are():
    engine = Gates("a", "b")

    async def scenario(submit, batcher):
        first, second = submit("a", tokens=3), submit("b", tokens=5)
        await engine.entered("a", "b")
        third = submit("c", tokens=7)
        done, _ = await asyncio.wait([third], timeout=0.05)
        assert not done
        engine.gates["b"].set()
        found = await asyncio.gather(second, third)
        assert not first.done()
        engine.gates["a"].set()
        return [float(scores[0][0, 0]) for scores, _ in (await first, *found)]

    assert run(scenario, engine, streams=2)[0] == [3, 5, 7]
    assert (engine.batches[2:], engine.most) == ([["c"]], 2)


def test_idle_streams_share_a_request():
    engine = Gates("a", "d")

    async def scenario(submit, batcher):
        task = submit("a", "b", "c", "d", "e")
        await engine.entered("a", "d")
        engine.go.set()
        await task

    run(scenario, engine, streams=2)
    assert sorted(engine.batches) == [["a", "b", "c"], ["d", "e"]]


def test_one_idle_stream_takes_all_that_waits():
    engine = Gates("a", "b")

    async def scenario(submit, batcher):
        tasks = [submit("a"), submit("b")]
        await engine.entered("a", "b")
        tasks += [submit("c"), submit("d"), submit("e")]
        await asyncio.sleep(0)
        engine.gates["a"].set()
        await asyncio.gather(tasks[0], *tasks[2:])
        assert not tasks[1].done()

    run(scenario, engine, streams=2)
    assert engine.batches[2:] == [["c", "d", "e"]]


@pytest.mark.parametrize(("first_done", "after"), [("a", 2.0), ("b", 7.0)])
def test_busy_is_the_batch_that_has_been_there_longest(monkeypatch, first_done, after):
    engine, clock = Gates("a", "b"), SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)

    async def scenario(submit, batcher):
        tasks = {}
        for name, clock.now in (("a", 0.0), ("b", 5.0)):  # the second comes 5 s later
            tasks[name] = submit(name)
            await engine.entered(name)
        clock.now, seen = 7.0, []
        for name in first_done, {"a": "b", "b": "a"}[first_done]:
            seen.append(batcher.busy_s)
            engine.gates[name].set()
            await tasks[name]
        return [*seen, batcher.busy_s]

    assert run(scenario, engine, streams=2)[0] == [7.0, after, 0.0]


def test_a_full_queue_drains_as_fast_as_there_are_streams():
    def wait_s(streams):
        engine = Gates("a", "b")

        async def scenario(submit, batcher):
            tasks = [submit(name) for name in "abc"[:streams]]
            await engine.entered(*"ab"[:streams])
            waiting, refusal = submit("w", tokens=900), submit("x", tokens=900)
            await asyncio.wait([refusal])
            assert refused(refusal) == (503, "queue_full")
            engine.go.set()
            await asyncio.gather(*tasks, waiting)
            return int(refusal.exception().headers["retry-after"])

        return run(scenario, engine, cost=Cost(per_token=0.1), streams=streams)[0]

    assert (wait_s(1), wait_s(2)) == (90, 45)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_under_load_every_text_gets_its_own_answer_and_bad_ones_fail_alone(streams):
    engine, random = Gates(), np.random.default_rng(streams)
    lengths = [int(tokens) for tokens in random.integers(1, 60, size=90)]
    names = ["bad" if index % 17 == 3 else "good" for index in range(90)]

    async def scenario(submit, batcher):
        tasks = []
        for name, tokens in zip(names, lengths, strict=True):
            tasks.append(submit(name, name, tokens=tokens))
            await asyncio.sleep(0.002 * random.random())
        await asyncio.wait(tasks)
        assert (batcher.busy_s, batcher._workers, batcher._tokens) == (0.0, set(), 0)
        return tasks

    tasks, metrics = run(scenario, engine, Bounds(4096, 8, 10**6), Cost(), streams)
    for task, name, tokens in zip(tasks, names, lengths, strict=True):
        if name == "bad":
            assert refused(task) == (500, "failed")
        else:
            assert [scores.tolist() for scores in task.result()[0]] == [[[tokens, tokens]]] * 2
    assert engine.most <= streams
    done = sum(len(batch) for batch in engine.batches if "bad" not in batch)
    assert f"deploykit_batch_items_sum {done:.1f}".encode() in metrics.page()


@pytest.mark.parametrize(
    ("lengths", "cost", "bounds", "expected"),
    [
        ([10, 500, 12, 11], Cost(), BOUNDS, [0, 2, 3]),  # a long text is not worth padding three short ones
        ([500, 10, 12], Cost(), BOUNDS, [0]),
        ([10, 500, 12, 11], WIDE, BOUNDS, [0, 1, 2, 3]),
        ([10, 10, 10], Cost(fixed=0.0), BOUNDS, [0, 1, 2]),  # equal lengths cost nothing
        ([10, 11], Cost(fixed=0.0), BOUNDS, [0]),
        ([10] * 9, WIDE, Bounds(50, 64, 99), [0, 1, 2, 3, 4]),
        ([10] * 9, WIDE, Bounds(999, 3, 99), [0, 1, 2]),
        ([100, 1], WIDE, Bounds(50, 64, 99), [0]),  # too long for any batch: runs alone
    ],
)
def test_choosing(lengths, cost, bounds, expected):
    assert sorted(choose(lengths, cost, bounds)) == expected


def test_every_batch_holds_the_oldest_and_keeps_its_bounds():
    random = np.random.default_rng(0)
    bounds = Bounds(256, 8, 0)
    for _ in range(200):
        lengths = random.integers(1, 200, size=random.integers(1, 40)).tolist()
        chosen = choose(lengths, Cost(), bounds)
        assert chosen[0] == 0
        assert len(set(chosen)) == len(chosen) <= 8
        assert len(chosen) * max(lengths[index] for index in chosen) <= 256
        alone = sum(Cost().fixed + Cost().per_token * lengths[index] for index in chosen)
        together = Cost().fixed + Cost().per_token * len(chosen) * max(lengths[index] for index in chosen)
        assert together <= alone + 1e-9
