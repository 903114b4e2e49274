"""A batcher run by a scenario, with an engine made for it."""

import asyncio

import numpy as np

from deploykit.artifact.cost import Cost
from deploykit.serving.problems import Problem
from deploykit.serving.queue.batch_rules import Bounds
from deploykit.serving.queue.batcher import Batcher
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tokenizer import Encoding, Features

BOUNDS = Bounds(batch_tokens=4096, batch_items=64, queue_tokens=1000)
WIDE = Cost(fixed=1e-3, per_token=1e-12)  # padding costs nothing


def features(text, tokens):
    ids = np.arange(tokens)
    return Features(text, 0, Encoding(ids, ids, np.zeros((tokens, 2), np.int64), 0, False))


def run(scenario, engine, bounds=BOUNDS, cost=WIDE, streams=1, make=None):
    """Runs `scenario(submit, batcher)`; `submit(*texts, tokens=4, ...)` starts one request as a task."""
    metrics = Metrics(["/v1/predict"], ["a", "b"])

    async def body():
        batcher = make(engine, bounds, metrics) if make else Batcher(engine, bounds, metrics, cost, streams)

        def submit(*texts, tokens=4, timeout_s=10, gone=None, client="none"):
            found = batcher.submit([features(text, tokens) for text in texts], timeout_s, gone, client)
            return asyncio.get_running_loop().create_task(found)

        try:
            return await scenario(submit, batcher)
        finally:
            engine.go.set()
            batcher.close()

    return asyncio.run(body()), metrics


def refused(task):
    error = task.exception()
    assert isinstance(error, Problem)
    return error.status, error.reason
