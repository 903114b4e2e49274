"""BentoML's adaptive batching as an option: the same answers, in batches that it chooses."""

import asyncio
import threading

import numpy as np
import pytest
from asgi import BODY, PREDICT, metrics
from queueing import refused, run

from deploykit.artifact import ServeOptions
from deploykit.serving.queue.baselines import BentoMLBatcher


class Engine:
    """Answers with the number of tokens; waits for `go` if it is held, and fails on the text "bad"."""

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
        return [np.full((1, 2), len(encoding), np.float32) for encoding in encodings]


def bentoml(engine, bounds, counted):
    return BentoMLBatcher(engine, bounds, counted, timeout_s=10)


def test_texts_get_their_own_answers_in_batches_of_several():
    engine = Engine()

    async def scenario(submit, batcher):
        for _ in range(12):  # it starts with single texts, to learn their time
            await submit("warm")
        answers = await asyncio.gather(*(submit("a", "b", tokens=tokens) for tokens in range(3, 30)))
        return [[int(scores[0, 0]) for scores in rows] for rows, _ in answers]

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
        assert batcher.busy_s > 0
        disconnect.set_result(None)
        await asyncio.wait([late, cancelled])
        engine.go.set()
        bad = submit("bad")
        await asyncio.wait([bad])
        assert (await submit("well"))[1].inference_s > 0
        return refused(late), refused(cancelled), refused(bad), batcher.busy_s

    refusals, _ = run(scenario, engine, make=bentoml)
    assert refusals == ((504, "deadline"), (499, "client_gone"), (500, "failed"), 0)


@pytest.mark.parametrize("batching", ["cost", "fifo", "none", "bentoml"])
def test_a_service_batches_as_its_package_says(batching, serve, make_package, tmp_path):
    texts = [f"a great film {'again ' * (index % 5)}" for index in range(16)]
    client = serve(make_package(tmp_path / "p", serve=ServeOptions(batching=batching)).path)
    whole = client.post(PREDICT, json_body={"texts": texts}).json()["predictions"]
    alone = [client.post(PREDICT, json_body={"texts": [text]}).json()["predictions"][0] for text in texts]
    assert [answer["label"] for answer in whole] == [answer["label"] for answer in alone]
    assert (metrics(client)["deploykit_batch_items_count"] == 2 * len(texts)) == (batching == "none")
    assert client.post(PREDICT, json_body=BODY).status == 200
