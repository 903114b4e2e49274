"""Several batches in the engine at once: they overlap, share what waits, and do not mix."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from queueing import refused, run

from deploykit.artifact.cost import Cost
from deploykit.serving.queue import batcher as module
from deploykit.serving.queue.batch_rules import Bounds


class Gates:
    """An engine that notes its batches and holds each until the gate of its first text is opened."""

    def __init__(self, *names):
        self.batches, self.inside, self.most = [], 0, 0
        self.started = {name: threading.Event() for name in names}
        self.gates = {name: threading.Event() for name in names}
        self.go = SimpleNamespace(set=lambda: [gate.set() for gate in self.gates.values()])
        self._lock = threading.Lock()

    def __call__(self, features):
        texts = [part.text for part in features]
        with self._lock:
            self.batches.append(texts)
            self.inside += 1
            self.most = max(self.most, self.inside)
        if texts[0] in self.gates:
            self.started[texts[0]].set()
            assert self.gates[texts[0]].wait(10)
        with self._lock:
            self.inside -= 1
        if "bad" in texts:
            raise RuntimeError("boom")
        return [{"logits": np.full(2, len(part), np.float32)} for part in features]

    async def entered(self, *names):
        for name in names:
            assert await asyncio.to_thread(self.started[name].wait, 10)


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
        return [float(outputs[0]["logits"][0]) for outputs, _ in (await first, *found)]

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
            seen.append(batcher.oldest_batch_age_s)
            engine.gates[name].set()
            await tasks[name]
        return [*seen, batcher.oldest_batch_age_s]

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

        return run(scenario, engine, cost=Cost(fixed=0.0, per_token=0.1), streams=streams)[0]

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
        assert (batcher.oldest_batch_age_s, batcher._workers, batcher._waiting.total_tokens) == (0.0, set(), 0)
        return tasks

    tasks, metrics = run(scenario, engine, Bounds(4096, 8, 10**6), Cost(), streams)
    for task, name, tokens in zip(tasks, names, lengths, strict=True):
        if name == "bad":
            assert refused(task) == (500, "failed")
        else:
            assert [outputs["logits"].tolist() for outputs in task.result()[0]] == [[tokens, tokens]] * 2
    assert engine.most <= streams
    done = sum(len(batch) for batch in engine.batches if "bad" not in batch)
    assert f"deploykit_batch_items_sum {done:.1f}".encode() in metrics.page()
