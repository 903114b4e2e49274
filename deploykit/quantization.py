"""The fourth stage: of a graph and its quantized copies, the fastest that is as good.

The float graph is always a candidate: a copy that is slower here, or that breaks a gate, is not kept, and
the manifest says why.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from deploykit import engines, hardware, quantizers, selection
from deploykit.artifact import GRAPH, Artifact, draft, load_predictions
from deploykit.evaluation import gates, splits
from deploykit.evaluation.comparison import compare, flips
from deploykit.job import Job
from deploykit.predictor import Predictor
from deploykit.selection import Candidate
from deploykit.tasks import Float32

FLOAT = "float32"


def quantize(job: Job) -> Artifact:
    """Quantizes the parent's graph, measures both and keeps the better one.

    Args:
        job: of the stage `quantize`.
    """
    method, options = quantizers.load(job.recipe.method("quantize")), job.recipe.options("quantize")
    dataset, threads = job.dataset(), hardware.cpu_limit()
    base = Predictor.load(job.source, threads)
    with draft(job.target) as folder:
        job.copy(folder)
        facts = method.quantize(job.source.file(GRAPH), options, folder / GRAPH)
        engine = engines.load(base.engine.execution.engine).load(folder / GRAPH, base.engine.execution)
        predictors = {FLOAT: base, method.PRECISION: replace(base, engine=engine)}

        float_scores = load_predictions(job.source)
        scores = {
            FLOAT: float_scores["validation"],
            method.PRECISION: splits.score(predictors[method.PRECISION], dataset.validation, "validation"),
        }
        graphs = {FLOAT: job.source.file(GRAPH), method.PRECISION: folder / GRAPH}
        candidates = _candidates(job, predictors, graphs, scores)
        stops = {
            found.name: "; ".join(map(str, gates.stopping(job.recipe.gates, found.verdicts)))
            for found in candidates[1:]
        }
        candidates = selection.choose(candidates, stops)
        kept = next(found for found in candidates if found.kept)

        if kept.name == FLOAT:
            shutil.copy(job.source.file(GRAPH), folder / GRAPH)
            test = float_scores["test"]
        else:
            test = splits.score(predictors[kept.name], dataset.test, "test")
        return job.finish(
            folder,
            kind="onnx",
            predictor=predictors[kept.name],
            scores={"validation": scores[kept.name], "test": test},
            parameters=job.source.manifest.step.parameters,
            details={
                **(facts if kept.name != FLOAT else {}),
                "candidates": [found.model_dump() for found in candidates],
                "flips": flips(
                    job.task,
                    dataset.validation,
                    base.labels,
                    scores[FLOAT],
                    scores[kept.name],
                    kept.comparison.flipped,
                ),
            },
        )


def _candidates(
    job: Job, predictors: dict[str, Predictor], graphs: dict[str, Path], scores: dict[str, list[Float32]]
) -> list[Candidate]:
    """Measures and compares every candidate, the float graph first."""
    rows, first = job.dataset().validation, job.task.METRICS[0]
    judged = {
        name: splits.judge(job.task, job.dataset(), predictors[name].labels, {"validation": found}, job.recipe.seed)
        for name, found in scores.items()
    }
    latencies = selection.measure(predictors, rows, selection.probes(rows, predictors[FLOAT]))
    lengths = splits.lengths(predictors[FLOAT].tokenizer, rows)
    found = []
    for name, predictor in predictors.items():
        size = graphs[name].stat().st_size
        compared = compare(job.task, rows, predictor.labels, scores[FLOAT], scores[name], job.recipe.seed, lengths)
        found.append(
            Candidate(
                name=name,
                precision=name,
                engine=job.source.manifest.execution.engine,
                threads=predictor.engine.execution.threads,
                bytes=size,
                metric=judged[name]["validation"][first],
                latency=latencies[name],
                comparison=compared,
                verdicts=gates.verdicts(job.recipe.gates, compared, size_bytes=size),
            )
        )
    return found
