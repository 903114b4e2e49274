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

BURST_CALLS = 3  # calls in one turn, of which the first is not counted
MIN_ROUNDS = 7  # a 95 % interval of a median takes at least 6 values, and an odd number of them has a middle one
MAX_ROUNDS = 40  # more rounds would narrow the intervals little
ROUGH_MIN_ROUNDS = 3  # in place of `MIN_ROUNDS`, where a rough figure is enough
PAUSE_S = 0.001  # before each turn; lets the threads of the previous engine go to sleep
TYPICAL_DURATION_S = 2.0  # how long `typical_latencies` measures
FIT_DURATION_S = 5.0  # how long `fit_cost` measures
P95_TEXTS = 300  # texts timed for the 95 % quantile
P95_WARMUP_TEXTS = 10  # untimed texts before these, which fill the caches

Float64 = npt.NDArray[np.float64]


class Latency(Frozen):
    """Milliseconds of a call: the median `p50`, its 95 % interval from `low` to `high`, and the 95 % quantile `p95`."""

    p50: float
    low: float
    high: float
    p95: float


def p95_latency(predictor: Predictor, examples: Sequence[Example], seed: int) -> Metric:
    """Times single texts, tokenization included, and returns the 95 % quantile in milliseconds with its interval.

    Args:
        predictor: the model as it will be served.
        examples: usually the validation split; at most `P95_TEXTS` of them, drawn at random, are timed.
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
    """Returns how many milliseconds one prediction takes, from the text on."""
    start = time.perf_counter()
    predictor.predict([example.input])
    return (time.perf_counter() - start) * 1000


def typical_latencies(
    predictors: Mapping[str, Predictor], examples: Sequence[Example]
) -> tuple[dict[str, float], float]:
    """Times one input of median length on several models in turn, without tokenization.

    An input that is read in several windows is represented by its first window.

    Args:
        predictors: by name; the tokenizer of the first decides which input has median length.
        examples: the input is one of theirs.

    Returns:
        The median milliseconds by name, and the share of the measuring time in which other processes held the core.
    """
    first, inputs = next(iter(predictors.values())), [example.input for example in examples]
    lengths = [sum(map(len, windows)) for windows in first.encode(inputs)]
    median_index = sorted(range(len(inputs)), key=lengths.__getitem__)[(len(inputs) - 1) // 2]
    calls = {}
    for name, predictor in predictors.items():
        ((first_window, *_),) = predictor.encode([inputs[median_index]])
        calls[name] = partial(
            predictor.engine.run, pad_for_engine([first_window], predictor.tokenizer, predictor.engine)
        )
    waited, start = hardware.thread_wait_s(), time.perf_counter()
    samples = time_in_turn(calls, TYPICAL_DURATION_S)
    share = (hardware.thread_wait_s() - waited) / max(time.perf_counter() - start, 1e-9)
    return {name: float(np.median(times)) for name, times in samples.items()}, share


def latencies(
    engines: Mapping[str, Engine], workload: Workload, seconds: float, min_rounds: int = MIN_ROUNDS
) -> dict[str, dict[str, Latency]]:
    """Times every engine on one text at a time, for each of the workload's single texts.

    Args:
        engines: by name; all with the same number of cores.
        workload: its `singles` are timed.
        seconds: about how long the measurement may take, all texts and engines together.
        min_rounds: rounds for each text, even if they take longer.

    Returns:
        Latencies by name of the engine and name of the text.
    """
    by_engine: dict[str, dict[str, Latency]] = {name: {} for name in engines}
    for single, text in workload.singles.items():
        calls = {
            name: partial(engine.run, pad_for_engine([text], workload.tokenizer, engine))
            for name, engine in engines.items()
        }
        for name, samples in time_in_turn(calls, seconds / len(workload.singles), min_rounds=min_rounds).items():
            by_engine[name][single] = _latency(samples)
    return by_engine


def throughputs(
    engines: Mapping[str, Engine],
    workload: Workload,
    budgets: Sequence[int],
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, dict[int, Metric]]:
    """Times every engine on all mixed texts of the workload, in batches of several sizes.

    Args:
        engines: by name; all with the same number of cores.
        workload: its `mixed` texts are timed.
        budgets: the sizes to try: padded tokens per batch.
        seconds: about how long the measurement may take, all engines and budgets together.
        min_rounds: rounds, even if they take longer.

    Returns:
        Texts per second with the 95 % interval, by name of the engine and budget.
    """
    by_engine: dict[str, dict[int, Metric]] = {name: {} for name in engines}
    with ExitStack() as stack:
        calls = {}
        for name, engine in engines.items():
            pool = stack.enter_context(ThreadPoolExecutor(engine.execution.streams))  # starting threads is not timed
            for budget in budgets:
                calls[name, budget] = partial(_run_batches, engine, workload.mixed_batches(budget, engine), pool)
        times = time_in_turn(calls, seconds, burst_calls=1, min_rounds=min_rounds)
    for (name, budget), samples in times.items():
        latency, texts = _latency(samples), len(workload.mixed)
        rate, low, high = (1000 * texts / ms for ms in (latency.p50, latency.high, latency.low))
        by_engine[name][budget] = Metric(value=rate, low=low, high=high)
    return by_engine


def fit_cost(engine: Engine, workload: Workload) -> Cost:
    """Fits the service's model of latency to timed batches of up to the engine's `batch_tokens`.

    It is fitted by non-negative least squares on relative errors, so that short batches count as much as long ones.
    """
    lengths = sorted({len(text) for text in workload.mixed})
    widths = [lengths[round(share * (len(lengths) - 1))] for share in (0, 0.33, 0.67, 1)]
    budget = engine.execution.batch_tokens
    sizes = [(rows, width) for width in widths for rows in (1, 2, 4, 16) if rows == 1 or rows * width <= budget]
    batches = {engine.shape(*size): workload.batch(*size, engine) for size in sizes}  # one for each padded shape
    calls = {shape: partial(engine.run, batch) for shape, batch in batches.items()}
    samples = time_in_turn(calls, FIT_DURATION_S)
    terms = np.array([[1, rows * width, rows * width**2] for rows, width in samples])
    seconds = np.array([float(np.median(milliseconds)) / 1000 for milliseconds in samples.values()])
    fixed, per_token, per_square = nnls(terms / seconds[:, None], np.ones(len(seconds)))[0]
    return Cost(fixed=fixed, per_token=per_token, per_square=per_square)


def time_in_turn(
    calls: Mapping[Any, Callable[[], Any]],
    seconds: float,
    burst_calls: int = BURST_CALLS,
    min_rounds: int = MIN_ROUNDS,
) -> dict[Any, Float64]:
    """Times calls in rounds; each call has one turn per round.

    Args:
        calls: by name.
        seconds: about how long all rounds may take together.
        burst_calls: how often a turn makes its call; the first time is not counted if there are several.
        min_rounds: rounds, even if they take longer than `seconds`; at most there are `MAX_ROUNDS`.

    Returns:
        Milliseconds by name, `(rounds,)` each: the mean over the counted calls of a turn.
    """
    for call in calls.values():  # a first call builds caches
        call()
    start = time.perf_counter()
    samples = {name: [_time_turn(call, burst_calls)] for name, call in calls.items()}
    round_s = max(time.perf_counter() - start, 1e-6)
    rounds = int(np.clip(seconds / round_s, min_rounds, MAX_ROUNDS))
    random, names = np.random.default_rng(0), list(calls)
    for _ in range(1, rounds):
        for index in random.permutation(len(names)):
            samples[names[index]].append(_time_turn(calls[names[index]], burst_calls))
    return {name: np.array(milliseconds) for name, milliseconds in samples.items()}


def _time_turn(call: Callable[[], Any], burst_calls: int) -> float:
    """Makes a call `burst_calls` times, and returns the mean milliseconds of all but the first.

    A single call is counted. The time that this thread waited for a core is subtracted.
    """
    time.sleep(PAUSE_S)
    if burst_calls > 1:
        call()
    waited, start = hardware.thread_wait_s(), time.perf_counter()
    counted = max(1, burst_calls - 1)
    for _ in range(counted):
        call()
    elapsed = time.perf_counter() - start
    return max(elapsed - (hardware.thread_wait_s() - waited), 1e-9) * 1000 / counted


def _run_batches(engine: Engine, batches: Sequence[Batch], pool: ThreadPoolExecutor) -> None:
    """Runs all batches, on as many threads of the pool at once as the engine has streams."""
    if engine.execution.streams > 1:
        list(pool.map(engine.run, reversed(batches)))  # the longest first, so that all streams end together
        return
    for batch in batches:
        engine.run(batch)


def _latency(samples: Float64) -> Latency:
    """Summarizes measured milliseconds, `(count,)`; the interval of the median is from a bootstrap."""
    low, high = bootstrap.interval(bootstrap.resample(samples, bootstrap.median, np.random.default_rng(0)))
    return Latency(p50=float(np.median(samples)), low=low, high=high, p95=float(np.quantile(samples, 0.95)))
