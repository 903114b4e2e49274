"""The batchers with which the benchmarks compare ours: the same answers, in batches that they choose."""

import asyncio
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from asgi import PREDICT, Client, metrics
from queueing import refused, run

from deploykit.artifact.cost import Cost
from deploykit.serving import service
from deploykit.serving.queue.batch_rules import Bounds

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "serving"))
import baselines


class Engine:
    """Answers with the number of tokens; waits for `go` if it is held, and fails on the text "bad"."""

    def __init__(self, held=False):
        self.batches, self.go, self.started = [], threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, features):
        self.batches.append(len(features))
        self.started.set()
        assert self.go.wait(10)
        if any(part.text == "bad" for part in features):
            raise RuntimeError("boom")
        return [{"logits": np.full(2, len(part), np.float32)} for part in features]


def bentoml(engine, bounds, counted):
    return baselines.BentoMLBatcher(engine, bounds, counted, timeout_s=10)


def test_texts_get_their_own_answers_in_batches_of_several():
    engine = Engine()

    async def scenario(submit, batcher):
        for _ in range(12):  # it starts with single texts, to learn their time
            await submit("warm")
        answers = await asyncio.gather(*(submit("a", "b", tokens=tokens) for tokens in range(3, 30)))
        return [[int(outputs["logits"][0]) for outputs in rows] for rows, _ in answers]

    answers, counted = run(scenario, engine, make=bentoml)
    assert answers == [[tokens, tokens] for tokens in range(3, 30)]
    assert max(engine.batches) > 2
    assert f"deploykit_batch_items_count {len(engine.batches)}.0" in counted.page().decode()


def test_deadline_disconnect_and_failure_are_reported():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        disconnect = asyncio.get_running_loop().create_future()
        late, cancelled = submit("a", timeout_s=0.05), submit("b", gone=disconnect)
        await asyncio.to_thread(engine.started.wait, 10)
        assert batcher.oldest_batch_age_s > 0
        disconnect.set_result(None)
        await asyncio.wait([late, cancelled])
        engine.go.set()
        bad = submit("bad")
        await asyncio.wait([bad])
        assert (await submit("well"))[1].inference_s > 0
        return refused(late), refused(cancelled), refused(bad), batcher.oldest_batch_age_s

    refusals, _ = run(scenario, engine, make=bentoml)
    assert refusals == ((504, "deadline"), (499, "client_gone"), (500, "failed"), 0)


@pytest.mark.parametrize("make_batcher", [baselines.make_fifo, baselines.make_bentoml])
def test_a_service_batches_as_its_batcher_does(make_batcher, key_file, alice, client, package, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    texts = [f"a great film {'again ' * (index % 5)}" for index in range(16)]
    expected = client.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
    headers = {"x-api-key": alice}
    with Client(service.build(package, make_batcher).to_asgi(), headers=headers) as other:
        answers = other.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
        assert metrics(other)["deploykit_batch_items_sum"] == len(texts)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]


@pytest.mark.parametrize(
    ("lengths", "bounds", "expected"),
    [
        ([10, 500, 12], Bounds(1200, 64, 9999), (2, "tokens")),
        ([10, 500, 12], Bounds(9999, 64, 9999), (3, "all")),
        ([10] * 9, Bounds(999, 3, 99), (3, "items")),
        ([10] * 9, Bounds(50, 64, 99), (5, "tokens")),
        ([10] * 3, Bounds(999, 1, 99), (1, "items")),
        ([100, 1], Bounds(50, 64, 99), (1, "tokens")),  # too long for any batch: runs alone
    ],
)
def test_batches_in_order_hold_the_first_texts_whatever_they_cost(lengths, bounds, expected):
    count, release = expected
    assert baselines.in_order(lengths, Cost(), bounds) == (list(range(count)), release)
