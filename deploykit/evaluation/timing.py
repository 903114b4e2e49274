"""How long engines take, measured so that a shared and noisy machine treats all of them alike.

Calls are timed in turn, round by round, each round in an order drawn at random: in any fixed one a call has always
the same neighbours, and takes a few percent more or less for what those leave in the caches and the threads that they
leave awake. A turn is a short burst whose first call is not counted: it finds the caches full of somebody else's
weights, which a service never does. Nor is what the caller waits for a core that other processes hold: it would
favour short calls, which more often end before they are interrupted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from deploykit import hardware
from deploykit.artifact import Metric, Record
from deploykit.artifact.cost import Cost
from deploykit.engines import Engine
from deploykit.evaluation import bootstrap
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor, batches, padded
from deploykit.tokenizer import Batch, Encoding, Tokenizer

QUANTILES = (0.5, 0.1, 0.95)  # the median first: lengths that are equal share one entry, and it stays the first
MIXED = 128  # texts of the mixed workload
BURST = 3  # calls of one turn, of which the first is not counted
ROUNDS = (7, 40)  # at least and at most
FEW = 3  # rounds, at least, where a first look is enough
PAUSE_S = 0.001  # lets the threads of the engine before go to sleep
TYPICAL_S, COST_S = 2.0, 5.0  # seconds for one text on every model of a run, and for what batches cost

Float64 = npt.NDArray[np.float64]


class Latency(Record):
    """Milliseconds of a call: median with its 95 % interval, and the 95 % quantile."""

    p50: float
    low: float
    high: float
    p95: float


@dataclass(frozen=True)
class Workload:
    """What is timed.

    `singles` maps a name such as `"batch 1, 27 tokens"` to one text, that of median length first; `mixed` are texts
    as they come, to be sorted and batched. Every engine gets them padded as it does in use.
    """

    tokenizer: Tokenizer
    singles: Mapping[str, Encoding]
    mixed: tuple[Encoding, ...]

    @property
    def key(self) -> list[int]:
        """What two workloads share that take as long."""
        return [*map(len, self.singles.values()), *map(len, self.mixed)]

    def batch(self, items: int, width: int, engine: Engine) -> Batch:
        """Returns a batch of `items` texts of `width` tokens each."""
        pool = np.concatenate([found.ids for found in self.mixed])
        return padded([_text(pool, width, start) for start in range(items)], self.tokenizer, engine)

    def part(self, share: float) -> "Workload":
        """Returns the same with a share of the mixed texts, of all lengths, at least one."""
        count = max(1, round(share * len(self.mixed)))
        places = ((np.arange(count) + 0.5) / count * len(self.mixed)).astype(int)
        ranked = sorted(self.mixed, key=len)
        return replace(self, mixed=tuple(ranked[place] for place in places))

    def grouped(self, batch_tokens: int, engine: Engine) -> list[Batch]:
        """Returns the mixed texts in batches of up to `batch_tokens` padded tokens, short ones first."""
        rows = batches([len(found) for found in self.mixed], batch_tokens, engine.shape)
        return [padded([self.mixed[index] for index in found], self.tokenizer, engine) for found in rows]


def workload(lengths: Lengths, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> Workload:
    """Builds the texts to time, of real tokens and of the lengths that are met in use.

    Args:
        lengths: of the training split, or those that a service has recorded.
        tokenizer: of the model; longer texts are cut to its limit.
        texts: where the tokens come from.
        seed: of the draw of the mixed lengths.
    """
    pool = np.concatenate([found.ids for found in tokenizer.encode(list(texts))])
    singles = dict.fromkeys(min(lengths.quantile(share), tokenizer.max_tokens) for share in QUANTILES)
    drawn = [min(length, tokenizer.max_tokens) for length in lengths.draw(MIXED, seed)]
    return Workload(
        tokenizer,
        {f"batch 1, {length} tokens": _text(pool, length, 0) for length in singles},
        tuple(_text(pool, length, start) for start, length in enumerate(drawn)),
    )


def _text(pool: npt.NDArray[np.int64], length: int, start: int) -> Encoding:
    """Cuts a text out of a pool of tokens, going round at its end."""
    ids = np.take(pool, np.arange(start * length, (start + 1) * length), mode="wrap")
    zeros = np.zeros(length, dtype=np.int64)
    return Encoding(ids, zeros, np.zeros((length, 2), dtype=np.int64), unknown=0, truncated=False)


def typical(
    predictors: Mapping[str, Predictor], texts: Sequence[str], pairs: Sequence[str | None]
) -> tuple[dict[str, float], float]:
    """Times one input of median length on several models in turn, without tokenization.

    Args:
        predictors: by name; the tokenizer of the first says which input it is.
        texts: the first text of each input.
        pairs: the second texts, where the models take pairs.

    Returns:
        Name to median milliseconds, and the share of the whole time in which other processes held the core.
    """
    first = next(iter(predictors.values())).tokenizer
    lengths = [len(encoding) for encoding in first.encode(texts, pairs)]
    place = sorted(range(len(texts)), key=lengths.__getitem__)[(len(texts) - 1) // 2]
    calls = {}
    for name, predictor in predictors.items():
        encodings = predictor.tokenizer.encode([texts[place]], [pairs[place]])
        calls[name] = _call(predictor.engine.run, padded(encodings, predictor.tokenizer, predictor.engine))
    waited, start = hardware.waited(), time.perf_counter()
    samples = in_turn(calls, TYPICAL_S)
    share = (hardware.waited() - waited) / max(time.perf_counter() - start, 1e-9)
    return {name: float(np.median(taken)) for name, taken in samples.items()}, share


def latencies(
    engines: Mapping[str, Engine], work: Workload, seconds: float, least: int = ROUNDS[0]
) -> dict[str, dict[str, Latency]]:
    """Times every engine on every single text, in turn.

    Args:
        engines: by name; all with as many cores.
        work: see `Workload`.
        seconds: about how long all of it may take.
        least: rounds that are done whatever they take.

    Returns:
        Engine to text to latency.
    """
    found: dict[str, dict[str, Latency]] = {name: {} for name in engines}
    for probe, text in work.singles.items():
        calls = {name: _call(engine.run, padded([text], work.tokenizer, engine)) for name, engine in engines.items()}
        for name, samples in in_turn(calls, seconds / len(work.singles), least=least).items():
            found[name][probe] = _latency(samples)
    return found


def rates(
    engines: Mapping[str, Engine], work: Workload, budgets: Sequence[int], seconds: float, least: int = ROUNDS[0]
) -> dict[str, dict[int, Metric]]:
    """Times every engine on the mixed texts, batched in each of several ways.

    Args:
        engines: by name; all with as many cores.
        work: see `Workload`.
        budgets: padded tokens of a batch.
        seconds: about how long all of it may take.
        least: rounds that are done whatever they take.

    Returns:
        Engine to budget to texts a second, with the 95 % interval.
    """
    rate: dict[str, dict[int, Metric]] = {name: {} for name in engines}
    with ExitStack() as stack:
        calls = {}
        for name, engine in engines.items():
            pool = stack.enter_context(ThreadPoolExecutor(engine.execution.streams))  # no start of threads is timed
            for budget in budgets:
                calls[name, budget] = _call(_run_all, engine, work.grouped(budget, engine), pool)
        times = in_turn(calls, seconds, burst=1, least=least)
    for (name, budget), samples in times.items():
        middle = _latency(samples)
        count = 1000 * len(work.mixed)
        rate[name][budget] = Metric(value=count / middle.p50, low=count / middle.high, high=count / middle.low)
    return rate


def cost(engine: Engine, work: Workload) -> Cost:
    """Fits what batches cost, within those that this engine runs best, by non-negative least squares.

    Relative errors are squared, so that short batches count as much as long ones.

    Args:
        engine: the one that will serve.
        work: see `Workload`.
    """
    widths = sorted({len(found) for found in work.mixed})
    widths = [widths[round(share * (len(widths) - 1))] for share in (0, 0.33, 0.67, 1)]
    budget = engine.execution.batch_tokens
    points = dict.fromkeys((items, width) for width in widths for items in (1, 2, 4, 16) if items * width <= budget)
    points.update(dict.fromkeys((1, width) for width in widths))
    shaped = {found["input_ids"].shape: found for found in (work.batch(*point, engine) for point in points)}
    calls = {shape: _call(engine.run, batch) for shape, batch in shaped.items()}
    taken = {shape: float(np.median(samples)) / 1000 for shape, samples in in_turn(calls, COST_S).items()}
    rows = np.array([[1, items * width, items * width**2] for items, width in taken])
    times = np.array(list(taken.values()))
    found, _ = nnls(rows / times[:, None], np.ones(len(times)))
    return Cost(fixed=found[0], per_token=found[1], per_square=found[2])


def in_turn(
    calls: Mapping[Any, Callable[[], Any]], seconds: float, burst: int = BURST, least: int = ROUNDS[0]
) -> dict[Any, Float64]:
    """Times calls in turn.

    Args:
        calls: by name.
        seconds: about how long all of it may take.
        burst: calls of one turn; the first is not counted where there are several.
        least: rounds that are done whatever they take.

    Returns:
        Milliseconds of each call, one entry a round: the mean of the burst's counted calls.
    """
    for call in calls.values():  # a first call builds caches
        call()
    start = time.perf_counter()
    samples = {name: [_turn(call, burst)] for name, call in calls.items()}
    round_s = max(time.perf_counter() - start, 1e-6)
    rounds = int(np.clip(seconds / round_s, least, ROUNDS[1]))
    random, names = np.random.default_rng(0), list(calls)
    for _ in range(1, rounds):
        for place in random.permutation(len(names)):
            samples[names[place]].append(_turn(calls[names[place]], burst))
    return {name: np.array(found) for name, found in samples.items()}


def _turn(call: Callable[[], Any], burst: int) -> float:
    time.sleep(PAUSE_S)
    if burst > 1:
        call()
    waited, start = hardware.waited(), time.perf_counter()
    for _ in range(max(1, burst - 1)):
        call()
    taken = time.perf_counter() - start
    return max(taken - (hardware.waited() - waited), 1e-9) * 1000 / max(1, burst - 1)


def _call(run: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: run(*arguments)


def _run_all(engine: Engine, grouped: Sequence[Batch], pool: ThreadPoolExecutor) -> None:
    if engine.execution.streams == 1:
        for batch in grouped:
            engine.run(batch)
        return
    list(pool.map(engine.run, reversed(grouped)))  # the longest first, so that all streams end together


def _latency(samples: Float64) -> Latency:
    """Summarizes samples; the interval of the median is a bootstrap's."""
    low, high = bootstrap.interval(bootstrap.of_values(samples, bootstrap.median, np.random.default_rng(0)))
    return Latency(p50=float(np.median(samples)), low=low, high=high, p95=float(np.quantile(samples, 0.95)))
