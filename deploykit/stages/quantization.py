"""The fourth stage: chooses the best among a graph and its quantized copies, as far as they pass the gates.

The float graph is always a candidate. A copy that is slower on this machine, or that a gate stops, is not kept, and the
manifest says why. If a copy is chosen, the artifact carries the float graph beside it, so that another machine can
choose again or fall back to the float graph.
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
from deploykit.evaluation.comparison import compare, describe_changes
from deploykit.evaluation.workload import Lengths
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.quantizers import auto
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.evaluator import Bench, Evaluation
from deploykit.stages.context import Job
from deploykit.tasks import Example
from deploykit.tokenizer import Batch, Features

CALIBRATION_ROWS = 256  # training rows on which quantizers measure activations
CALIBRATION_BATCH_ROWS = 8  # rows in a batch of these
MAX_COUNTED_ROWS = 5000  # training rows that are enough to know the lengths of texts
log = logging.getLogger(__name__)


def quantize(job: Job) -> Artifact:
    """Searches the candidates of the recipe's method and keeps the best."""
    dataset, source = job.dataset(), job.required_parent
    base = Predictor.load(source, hardware.cpu_limit())
    specs, options = _candidate_specs(job)
    lengths = lengths_to_measure(options.lengths, dataset, base)
    bench = _make_bench(job, base, lengths)
    entries, candidates = search.search(specs, bench, options)
    for candidate in candidates:
        log.info("%s: %s", candidate.name, candidate.reason)
    # The first candidate is the float graph; it stays if no candidate passes the gates.
    index = next((index for index, candidate in enumerate(candidates) if candidate.kept), 0)
    spec, kept = entries[index].spec, candidates[index]

    with draft(job.target) as folder:
        job.copy_files(folder)
        predictor = bench.write(folder, spec, kept)
        before, predictions = job.predictions()["validation"], scoring.predict_all(predictor, dataset)
        flipped = kept.comparison.flipped if kept.comparison else ()
        changes = describe_changes(job.task, base.spec, dataset.validation, before, predictions["validation"], flipped)
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictor,
            predictions=predictions,
            parameters=source.manifest.step.parameters,
            cost=timing.fit_cost(predictor.engine, bench.workload),
            facts={"weights_precision": kept.precision},
            details={
                **bench.facts(spec),
                "candidates": [candidate.model_dump(mode="json") for candidate in candidates],
                "gates": job.recipe.gates.model_dump(mode="json"),
                "lengths": lengths.shares_by_length(),
                "verdicts": [verdict.model_dump(mode="json") for verdict in kept.verdicts],
                "flips": changes,
            },
        )


def _candidate_specs(job: Job) -> tuple[list[Spec], auto.Options]:
    """Returns the candidates, the float graph first, and the options of the search.

    With a method other than `auto`, there are at most two candidates: the float graph and the graph of this method.
    """
    options, cores = job.recipe.options("quantize"), hardware.cpu_limit()
    if isinstance(options, auto.Options):
        return candidate_grid.specs(options, cores, hardware.cpu_features()), options
    execution, method = Execution(threads=cores), job.recipe.method("quantize")
    quantized = Spec("exported", method, tuple(sorted(options.model_dump().items())), execution)
    return list(dict.fromkeys((Spec(execution=execution), quantized))), auto.Options()


def _make_bench(job: Job, base: Predictor, lengths: Lengths) -> Bench:
    """Returns the bench that makes, judges and times the candidates of a search.

    Args:
        job: of the stage.
        base: the predictor of the float graph.
        lengths: of the texts on which candidates are timed.
    """
    dataset, seed = job.dataset(), job.recipe.seed
    before, tokens = job.predictions()["validation"], scoring.count_tokens(base, dataset.validation)

    def evaluate(_: Spec, predictor: Predictor) -> Evaluation:
        """Measures a candidate on the validation split, and compares it with the model before this stage."""
        after = scoring.predict(predictor, dataset.validation, "validation")
        outcomes = metrics.Outcomes.of(job.task, base.spec, dataset.validation, after)
        first = metrics.compute_with_intervals(job.task.METRICS[:1], outcomes, seed)
        comparison = compare(job.task, base.spec, dataset.validation, before, after, seed, tokens)
        has_latency_gate = job.recipe.gates.max_p95_ms is not None
        p95_ms = timing.p95_latency(predictor, dataset.validation, seed) if has_latency_gate else None
        return Evaluation(metric=first[job.task.METRICS[0]], comparison=comparison, p95_ms=p95_ms)

    return Bench(
        graph=job.required_parent.file(GRAPH),
        base=base,
        folder=job.work / "graphs",
        workload=workload.build(lengths, base.tokenizer, _encode_rows(base, dataset.train[:CALIBRATION_ROWS]), seed),
        calibration=calibration_batches(dataset, base, seed),
        evaluate=evaluate,
        gates=job.recipe.gates,
        data_key=job.parent_key,
    )


def _encode_rows(base: Predictor, rows: Sequence[Example]) -> list[Features]:
    """Returns the features of rows; a long text has several, one for each window."""
    return [window for windows in base.encode([row.input for row in rows]) for window in windows]


def lengths_to_measure(metrics_page: Path | None, dataset: Dataset, base: Predictor) -> Lengths:
    """Returns the lengths of the texts on which candidates are timed.

    Args:
        metrics_page: a saved page of a service's metrics, whose lengths are used; None: those of the training texts.
        dataset: the labelled data.
        base: encodes the training texts.
    """
    if metrics_page is not None:
        return Lengths.read(metrics_page)
    return Lengths.from_counts(Counter(map(len, _encode_rows(base, dataset.train[:MAX_COUNTED_ROWS]))))


def calibration_batches(dataset: Dataset, base: Predictor, seed: int) -> list[Batch]:
    """Draws training rows, and pads them in batches of similar lengths."""
    drawn = np.random.default_rng(seed).permutation(len(dataset.train))[:CALIBRATION_ROWS]
    features = sorted(_encode_rows(base, [dataset.train[index] for index in drawn]), key=len)
    return pad_in_batches(features, base.tokenizer, CALIBRATION_BATCH_ROWS)
