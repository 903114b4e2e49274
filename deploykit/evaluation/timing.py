"""How long engines take, measured so that a shared and noisy machine treats all of them alike.

Calls are timed in rounds, each in a random order: in a fixed order, every call would always have the same neighbours,
whose caches and awake threads change its time by a few percent. Each turn is a short burst whose first call is not
counted, because it finds the caches full of another model's weights, which never happens in a service. The time that
the calling thread waits for a core held by other processes is subtracted: it would favour short calls, which are
interrupted less often.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from deploykit import hardware
from deploykit.artifact import Metric
from deploykit.artifact.cost import Cost
from deploykit.engines import Engine
from deploykit.evaluation import bootstrap
from deploykit.evaluation.workload import Workload
from deploykit.inference.predictor import Predictor, pad_for_engine
from deploykit.methods import Frozen
from deploykit.tasks import Example
from deploykit.tokenizer import Batch

BURST = 3  # calls of one turn, of which the first is not counted
LEAST_ROUNDS, MOST_ROUNDS = 7, 40
FIRST_LOOK_ROUNDS = 3  # at least, to see whether a candidate is worth a longer measurement
PAUSE_S = 0.001  # lets the threads of the previous engine go to sleep
TYPICAL_S, COST_S = 2.0, 5.0  # duration of `typical` and of `cost`
P95_TEXTS = 300  # texts timed for the 95 % quantile
P95_WARMUP_TEXTS = 10  # untimed texts before them, which fill the caches

Float64 = npt.NDArray[np.float64]


class Latency(Frozen):
    """Milliseconds of a call: median with its 95 % interval, and the 95 % quantile."""

    p50: float
    low: float
    high: float
    p95: float


def p95(predictor: Predictor, examples: Sequence[Example], seed: int) -> Metric:
    """Times single texts, tokenization included, and returns the 95 % quantile in milliseconds with its interval.

    Args:
        predictor: what is served.
        examples: usually the validation split; at most `P95_TEXTS` drawn from it are timed.
        seed: of the draw and of the bootstrap.
    """
    random = np.random.default_rng(seed)
    chosen = [examples[index] for index in random.permutation(len(examples))[:P95_TEXTS]]
    for example in chosen[:P95_WARMUP_TEXTS]:
        _predict_ms(predictor, example)
    times = np.array([_predict_ms(predictor, example) for example in chosen])
    samples = bootstrap.resample(times, lambda drawn: np.quantile(drawn, 0.95, axis=1), random)
    low, high = bootstrap.interval(samples)
    return Metric(value=float(np.quantile(times, 0.95)), low=low, high=high)


def _predict_ms(predictor: Predictor, example: Example) -> float:
    start = time.perf_counter()
    predictor.predict([example.input])
    return (time.perf_counter() - start) * 1000


def typical(predictors: Mapping[str, Predictor], examples: Sequence[Example]) -> tuple[dict[str, float], float]:
    """Times one input of median length on several models in turn, without tokenization.

    Args:
        predictors: by name; the tokenizer of the first decides which input has median length.
        examples: with the inputs; of one that is read in several windows, the first is timed.

    Returns:
        The median milliseconds by name, and the share of the whole time in which other processes held the core.
    """
    first, inputs = next(iter(predictors.values())), [example.input for example in examples]
    lengths = [sum(map(len, parts)) for parts in first.encode(inputs)]
    median = sorted(range(len(inputs)), key=lengths.__getitem__)[(len(inputs) - 1) // 2]
    calls = {}
    for name, predictor in predictors.items():
        ((features, *_),) = predictor.encode([inputs[median]])
        calls[name] = partial(predictor.engine.run, pad_for_engine([features], predictor.tokenizer, predictor.engine))
    waited, start = hardware.thread_wait_s(), time.perf_counter()
    samples = in_turn(calls, TYPICAL_S)
    share = (hardware.thread_wait_s() - waited) / max(time.perf_counter() - start, 1e-9)
    return {name: float(np.median(times)) for name, times in samples.items()}, share


def latencies(
    engines: Mapping[str, Engine], work: Workload, seconds: float, least: int = LEAST_ROUNDS
) -> dict[str, dict[str, Latency]]:
    """Times every engine on every single text, in turn; `seconds` and `least` are as in `in_turn`.

    Args:
        engines: by name; all with the same number of cores.
        work: its `singles` are timed.
        seconds: for all texts together.
        least: rounds for each text.

    Returns:
        Latencies by engine and name of the text.
    """
    by_engine: dict[str, dict[str, Latency]] = {name: {} for name in engines}
    for single, text in work.singles.items():
        calls = {
            name: partial(engine.run, pad_for_engine([text], work.tokenizer, engine))
            for name, engine in engines.items()
        }
        for name, samples in in_turn(calls, seconds / len(work.singles), least=least).items():
            by_engine[name][single] = _latency(samples)
    return by_engine


def rates(
    engines: Mapping[str, Engine], work: Workload, budgets: Sequence[int], seconds: float, least: int = LEAST_ROUNDS
) -> dict[str, dict[int, Metric]]:
    """Times every engine on the mixed texts in batches of each size; `seconds` and `least` are as in `in_turn`.

    Args:
        engines: by name; all with the same number of cores.
        work: its `mixed` texts are timed.
        budgets: padded tokens of a batch.
        seconds: for all engines and budgets together.
        least: rounds.

    Returns:
        Texts per second with the 95 % interval, by engine and budget.
    """
    by_engine: dict[str, dict[int, Metric]] = {name: {} for name in engines}
    with ExitStack() as stack:
        calls = {}
        for name, engine in engines.items():
            pool = stack.enter_context(ThreadPoolExecutor(engine.execution.streams))  # starting threads is not timed
            for budget in budgets:
                calls[name, budget] = partial(_run_all, engine, work.grouped(budget, engine), pool)
        times = in_turn(calls, seconds, burst=1, least=least)
    for (name, budget), samples in times.items():
        latency, texts = _latency(samples), 1000 * len(work.mixed)
        rate = Metric(value=texts / latency.p50, low=texts / latency.high, high=texts / latency.low)
        by_engine[name][budget] = rate
    return by_engine


def cost(engine: Engine, work: Workload) -> Cost:
    """Fits the latency model of the engine that will serve to batches of up to its `batch_tokens`.

    Non-negative least squares on relative errors, so that short batches count as much as long ones.
    """
    widths = sorted({len(text) for text in work.mixed})
    widths = [widths[round(share * (len(widths) - 1))] for share in (0, 0.33, 0.67, 1)]
    budget = engine.execution.batch_tokens
    points = dict.fromkeys((items, width) for width in widths for items in (1, 2, 4, 16) if items * width <= budget)
    points.update(dict.fromkeys((1, width) for width in widths))
    batches = {engine.shape(*point): work.batch(*point, engine) for point in points}  # of points with equal shapes, one
    calls = {shape: partial(engine.run, batch) for shape, batch in batches.items()}
    seconds = {shape: float(np.median(samples)) / 1000 for shape, samples in in_turn(calls, COST_S).items()}
    terms = np.array([[1, items * width, items * width**2] for items, width in seconds])
    times = np.array(list(seconds.values()))
    fixed, per_token, per_square = nnls(terms / times[:, None], np.ones(len(times)))[0]
    return Cost(fixed=fixed, per_token=per_token, per_square=per_square)


def in_turn(
    calls: Mapping[Any, Callable[[], Any]], seconds: float, burst: int = BURST, least: int = LEAST_ROUNDS
) -> dict[Any, Float64]:
    """Times calls in turn.

    Args:
        calls: by name.
        seconds: about how long all rounds may take together.
        burst: calls of one turn; the first is not counted if there are several.
        least: rounds, even if they take longer than `seconds`.

    Returns:
        Milliseconds of each call, one entry per round: the mean of the burst's counted calls.
    """
    for call in calls.values():  # a first call builds caches
        call()
    start = time.perf_counter()
    samples = {name: [_turn(call, burst)] for name, call in calls.items()}
    round_s = max(time.perf_counter() - start, 1e-6)
    rounds = int(np.clip(seconds / round_s, least, MOST_ROUNDS))
    random, names = np.random.default_rng(0), list(calls)
    for _ in range(1, rounds):
        for index in random.permutation(len(names)):
            samples[names[index]].append(_turn(calls[names[index]], burst))
    return {name: np.array(milliseconds) for name, milliseconds in samples.items()}


def _turn(call: Callable[[], Any], burst: int) -> float:
    time.sleep(PAUSE_S)
    if burst > 1:
        call()
    waited, start = hardware.thread_wait_s(), time.perf_counter()
    counted = max(1, burst - 1)
    for _ in range(counted):
        call()
    elapsed = time.perf_counter() - start
    return max(elapsed - (hardware.thread_wait_s() - waited), 1e-9) * 1000 / counted


def _run_all(engine: Engine, grouped: Sequence[Batch], pool: ThreadPoolExecutor) -> None:
    if engine.execution.streams > 1:
        list(pool.map(engine.run, reversed(grouped)))  # the longest first, so that all streams end together
        return
    for batch in grouped:
        engine.run(batch)


def _latency(samples: Float64) -> Latency:
    low, high = bootstrap.interval(bootstrap.resample(samples, bootstrap.median, np.random.default_rng(0)))
    return Latency(p50=float(np.median(samples)), low=low, high=high, p95=float(np.quantile(samples, 0.95)))
