"""BentoML's adaptive batching as an option: the same answers, in batches that it chooses."""

import asyncio
import threading

import numpy as np
import pytest
from asgi import BODY, PREDICT, metrics
from queueing import refused, run

from deploykit.artifact import ServeOptions
from deploykit.serving.queue.baselines import Cork


class Engine:
    """Answers with the number of tokens; waits for `go` where it is held, and fails where a text says so."""

    def __init__(self, held=False):
        self.batches, self.go, self.started = [], threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, texts, encodings):
        self.batches.append(len(texts))
        self.started.set()
        assert self.go.wait(10)
        if "bad" in texts:
            raise RuntimeError("boom")
        return [np.full((1, 2), len(found), np.float32) for found in encodings]


def cork(engine, bounds, counted):
    return Cork(engine, bounds, counted, timeout_s=10)


def test_texts_get_their_own_answers_in_batches_of_several():
    engine = Engine()

    async def scenario(submit, batcher):
        for _ in range(12):  # it begins with texts alone, to learn
            await submit("warm")
        found = await asyncio.gather(*(submit("a", "b", tokens=tokens) for tokens in range(3, 30)))
        return [[int(scores[0, 0]) for scores in rows] for rows, _ in found]

    answers, counted = run(scenario, engine, make=cork)
    assert answers == [[tokens, tokens] for tokens in range(3, 30)]
    assert max(engine.batches) > 2
    assert f"deploykit_batch_items_count {len(engine.batches)}.0" in counted.page().decode()


def test_who_waits_too_long_or_leaves_or_meets_an_error_hears_of_it():
    engine = Engine(held=True)

    async def scenario(submit, batcher):
        gone = asyncio.get_running_loop().create_future()
        late, left = submit("a", timeout_s=0.05), submit("b", gone=gone)
        await asyncio.to_thread(engine.started.wait, 10)
        assert batcher.busy_s > 0
        gone.set_result(None)
        await asyncio.wait([late, left])
        engine.go.set()
        bad = submit("bad")
        await asyncio.wait([bad])
        assert (await submit("well"))[1].inference_s > 0
        return refused(late), refused(left), refused(bad), batcher.busy_s

    found, _ = run(scenario, engine, make=cork)
    assert found == ((504, "deadline"), (499, "client_gone"), (500, "failed"), 0)


@pytest.mark.parametrize("batching", ["cost", "fifo", "none", "bentoml"])
def test_a_service_batches_as_its_package_says(batching, serve, make_package, tmp_path):
    texts = [f"a great film {'again ' * (index % 5)}" for index in range(16)]
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(batching=batching)).path)
    whole = client.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
    alone = [client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"][0] for text in texts]
    assert [one["label"] for one in whole] == [one["label"] for one in alone]
    assert (metrics(client)["deploykit_batch_items_count"] == 2 * len(texts)) == (batching == "none")
    assert client.post(PREDICT, json_body=BODY).status == 200
