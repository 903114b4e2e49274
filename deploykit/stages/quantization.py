"""The fourth stage: chooses, among a graph and its quantized copies, the best one that passes the gates.

The float graph is always a candidate: a copy that is slower on this machine, or that a gate stops, is not kept, and the
manifest says why. If another graph is chosen, the artifact carries the float graph beside it, so that another machine
can choose again or fall back to it.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit import hardware
from deploykit.artifact import GRAPH, Artifact, draft
from deploykit.artifact.execution import Execution
from deploykit.data import Dataset
from deploykit.evaluation import metrics, scoring, timing, workload
from deploykit.evaluation.comparison import compare, flips
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.quantizers import auto
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench, Judged
from deploykit.stages.context import Job
from deploykit.tasks import Example
from deploykit.tokenizer import Batch, Features

CALIBRATION_ROWS = 256  # training rows for the quantizers that measure activations
BATCH_ROWS = 8  # of calibration
COUNTED_ROWS = 5000  # training rows whose lengths are counted
log = logging.getLogger(__name__)


def quantize(job: Job) -> Artifact:
    """Searches the candidates of the recipe's method and keeps the best."""
    dataset, source = job.dataset(), job.source
    base = Predictor.load(source, hardware.cpu_limit())
    specs, options = _specs(job)
    measured = lengths(options.lengths, dataset, base)
    bench = _bench(job, base, measured)
    entries, candidates = search.search(specs, bench, options)
    for candidate in candidates:
        log.info("%s: %s", candidate.name, candidate.reason)
    index = next((index for index, candidate in enumerate(candidates) if candidate.kept), 0)  # default: float graph
    spec, kept = entries[index].spec, candidates[index]

    with draft(job.target) as folder:
        job.copy(folder)
        predictor = bench.write(folder, spec, kept)
        before, predictions = job.predictions()["validation"], scoring.predict_all(predictor, dataset)
        flipped = kept.comparison.flipped if kept.comparison else ()
        changes = flips(job.task, base.spec, dataset.validation, before, predictions["validation"], flipped)
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictor,
            predictions=predictions,
            parameters=source.manifest.step.parameters,
            cost=timing.cost(predictor.engine, bench.work),
            facts={"weights_precision": kept.precision},
            details={
                **bench.facts(spec),
                "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
                "gates": job.recipe.gates.model_dump(mode="json"),
                "lengths": measured.counts(),
                "verdicts": [verdict.model_dump(mode="json") for verdict in kept.verdicts],
                "flips": changes,
            },
        )


def _specs(job: Job) -> tuple[list[Spec], auto.Options]:
    """Returns the candidates and the options of their search: with a method other than `auto`, only two candidates."""
    options, cores = job.recipe.options("quantize"), hardware.cpu_limit()
    if isinstance(options, auto.Options):
        return candidate_grid.specs(options, cores, hardware.cpu_features()), options
    execution, method = Execution(threads=cores), job.recipe.method("quantize")
    quantized = Spec("exported", method, tuple(sorted(options.model_dump().items())), execution)
    return list(dict.fromkeys((Spec(execution=execution), quantized))), auto.Options()


def _bench(job: Job, base: Predictor, measured: Lengths) -> Bench:
    dataset, seed = job.dataset(), job.recipe.seed
    before, tokens = job.predictions()["validation"], scoring.count_tokens(base, dataset.validation)

    def judge(_: Spec, predictor: Predictor) -> Judged:
        after = scoring.predict(predictor, dataset.validation, "validation")
        outcomes = metrics.Outcomes.of(job.task, base.spec, dataset.validation, after)
        first = metrics.with_intervals(job.task.METRICS[:1], outcomes, seed)
        comparison = compare(job.task, base.spec, dataset.validation, before, after, seed, tokens)
        gated = job.recipe.gates.max_p95_ms is not None
        p95_ms = timing.p95(predictor, dataset.validation, seed) if gated else None
        return Judged(metric=first[job.task.METRICS[0]], comparison=comparison, p95_ms=p95_ms)

    return Bench(
        graph=job.source.file(GRAPH),
        base=base,
        folder=job.work / "graphs",
        work=workload.build(measured, base.tokenizer, _features(base, dataset.train[:CALIBRATION_ROWS]), seed),
        calibration=calibration(dataset, base, seed),
        judge=judge,
        gates=job.recipe.gates,
        data=job.parent_key,
    )


def _features(base: Predictor, rows: Sequence[Example]) -> list[Features]:
    return [part for parts in base.encode([row.input for row in rows]) for part in parts]


def lengths(page: Path | None, dataset: Dataset, base: Predictor) -> Lengths:
    """Returns the lengths of texts to measure with: from a service's saved metrics, or those of the training texts."""
    if page is not None:
        return Lengths.read(page)
    return Lengths.from_counts(Counter(map(len, _features(base, dataset.train[:COUNTED_ROWS]))))


def calibration(dataset: Dataset, base: Predictor, seed: int) -> list[Batch]:
    """Draws training rows and pads them in batches of similar lengths."""
    drawn = np.random.default_rng(seed).permutation(len(dataset.train))[:CALIBRATION_ROWS]
    features = sorted(_features(base, [dataset.train[index] for index in drawn]), key=len)
    return pad_in_batches(features, base.tokenizer, BATCH_ROWS)
