"""The fourth stage: of a graph and its quantized copies, the one that is best on this machine and as good.

The float graph is always a candidate: a copy that is slower here, or that a gate stops, is not kept, and the
manifest says why. The artifact carries the float graph beside a chosen one that differs, so that another
machine can choose again, or fall back to it.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit import hardware
from deploykit.artifact import GRAPH, Artifact, draft, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.data import Dataset
from deploykit.evaluation import scoring, timing, workload
from deploykit.evaluation.comparison import compare, flips
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor
from deploykit.quantizers import auto
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench, Judged
from deploykit.stages.context import Job
from deploykit.tasks import Example
from deploykit.tokenizer import Batch, Encoding, Tokenizer

CALIBRATION, BATCH = 256, 8  # training rows for the methods that look at activations, and how many in a batch
COUNTED = 5000  # training rows whose lengths are counted
log = logging.getLogger(__name__)


def quantize(job: Job) -> Artifact:
    """Searches the candidates of the recipe's method and keeps the best.

    Args:
        job: of the stage `quantize`.
    """
    dataset, source, cores = job.dataset(), job.source, hardware.cpu_limit()
    options, base = job.recipe.options("quantize"), Predictor.load(source, cores)
    searched = options if isinstance(options, auto.Options) else auto.Options()
    specs = candidate_grid.specs(searched, cores, hardware.cpu_features())
    if searched is not options:
        given = tuple(sorted(options.model_dump().items()))
        named = Spec("exported", job.recipe.method("quantize"), given, Execution(threads=cores))
        specs = list(dict.fromkeys((specs[0], named)))
    measured = lengths(searched.lengths, dataset, base.tokenizer)
    bench = _bench(job, base, measured)
    entries, candidates = search.search(specs, bench, searched)
    for found in candidates:
        log.info("%s: %s", found.name, found.reason)
    place = next((place for place, found in enumerate(candidates) if found.kept), 0)  # none passes: the float graph

    with draft(job.target) as folder:
        job.copy(folder)
        predictor = bench.write(folder, entries[place].spec, candidates[place])
        before = load_predictions(source)["validation"]
        scores = scoring.score_all(predictor, dataset)
        kept = candidates[place]
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictor,
            scores=scores,
            parameters=source.manifest.step.parameters,
            cost=timing.cost(predictor.engine, bench.work),
            facts={"weights_precision": kept.precision},
            details={
                **bench.facts(entries[place].spec),
                "candidates": [found.model_dump(mode="json") for found in candidates],
                "gates": job.recipe.gates.model_dump(mode="json"),
                "lengths": measured.counts(),
                "verdicts": [found.model_dump(mode="json") for found in kept.verdicts],
                "flips": flips(
                    job.task,
                    dataset.validation,
                    base.labels,
                    before,
                    scores["validation"],
                    kept.comparison.flipped if kept.comparison else (),
                ),
            },
        )


def _bench(job: Job, base: Predictor, found: Lengths) -> Bench:
    dataset, seed = job.dataset(), job.recipe.seed
    before = load_predictions(job.source)["validation"]
    tokens = [len(one) for one in _encode(base.tokenizer, dataset.validation)]

    def judge(_: Spec, predictor: Predictor) -> Judged:
        scores = scoring.score(predictor, dataset.validation, "validation")
        judged = scoring.judge(job.task, dataset, base.labels, {"validation": scores}, seed)["validation"]
        compared = compare(job.task, dataset.validation, base.labels, before, scores, seed, tokens)
        wanted = job.recipe.gates.max_p95_ms is not None
        p95 = timing.p95(predictor, dataset.validation, seed) if wanted else None
        return Judged(metric=judged[job.task.METRICS[0]], comparison=compared, p95_ms=p95)

    texts = [row.text for row in dataset.train[:CALIBRATION]]
    return Bench(
        graph=job.source.file(GRAPH),
        base=base,
        folder=job.work / "graphs",
        work=workload.build(found, base.tokenizer, texts, seed),
        calibration=calibration(dataset, base.tokenizer, seed),
        judge=judge,
        gates=job.recipe.gates,
        data=job.parent_key,
    )


def _encode(tokenizer: Tokenizer, rows: Sequence[Example]) -> list[Encoding]:
    return tokenizer.encode([row.text for row in rows], [row.pair for row in rows])


def lengths(page: Path | None, dataset: Dataset, tokenizer: Tokenizer) -> Lengths:
    """Returns the lengths to measure at.

    Args:
        page: file with a saved page of a running service's metrics; without it, the training texts are counted.
        dataset: the labelled data.
        tokenizer: of the model.

    Raises:
        InputError: the page cannot be used.
    """
    if page is not None:
        return Lengths.read(page)
    return Lengths.from_counts(Counter(len(found) for found in _encode(tokenizer, dataset.train[:COUNTED])))


def calibration(dataset: Dataset, tokenizer: Tokenizer, seed: int) -> list[Batch]:
    """Draws training rows and pads them in batches, similar lengths together."""
    drawn = np.random.default_rng(seed).permutation(len(dataset.train))[:CALIBRATION]
    found = sorted(_encode(tokenizer, [dataset.train[index] for index in drawn]), key=len)
    return [tokenizer.collate(found[start : start + BATCH]) for start in range(0, len(found), BATCH)]
