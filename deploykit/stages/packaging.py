"""The fifth stage: a graph becomes a directory that serves by itself.

The package holds the graph in the layout of Hugging Face, the golden set, a copy of exactly that part of
deploykit which serves, pinned requirements without torch, a service file and a bentofile, and a model card.
"""

import numpy as np

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact, draft, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.errors import GateError
from deploykit.evaluation import gates, metrics, scoring, timing
from deploykit.evaluation.comparison import Comparison, compare, flips
from deploykit.inference import drift, golden
from deploykit.inference.predictor import Predictor
from deploykit.recipe import PackageSection
from deploykit.stages import bundle
from deploykit.stages.context import REFERENCE, Job
from deploykit.tasks import softmax


def package(job: Job) -> Artifact:
    """Packages the parent's graph with everything that serving it needs.

    Args:
        job: of the stage `package`.
    """
    dataset, options, source = job.dataset(), job.recipe.package, job.source
    if options is None:
        raise RuntimeError("the recipe skips packaging")
    predictor, rows = Predictor.load(source, hardware.cpu_limit()), dataset.validation
    scores = load_predictions(source)
    before, after = scores[f"{REFERENCE}validation"], scores["validation"]
    lengths = scoring.lengths(predictor.tokenizer, rows)
    comparison = compare(job.task, rows, predictor.labels, before, after, job.recipe.seed, lengths)
    verdicts = _judge(job, predictor, comparison)
    gold = [job.task.targets(example, predictor.labels) for example in dataset.test]
    table = metrics.per_label(job.task.METRICS, gold, metrics.predictions(scores["test"]), predictor.labels)
    seen = drift.reference(lengths, [softmax(row) for row in after], len(predictor.labels))
    with draft(job.target) as folder:
        job.copy(folder, GRAPH, *([FLOAT_GRAPH] if options.float_graph else []))
        golden.save(folder, _golden(job, options, predictor))
        packages = [predictor.engine.execution.engine, *bundle.members(job.recipe.serve.extras)]
        bundle.write(folder, source.manifest, job.key, packages, _chosen(job, predictor), comparison, verdicts)
        return job.finish(
            folder,
            kind="package",
            predictor=predictor,
            scores={name: scores[name] for name in ("validation", "test")},
            parameters=source.manifest.step.parameters,
            details={
                "comparison": comparison.model_dump(),
                "verdicts": [verdict.model_dump() for verdict in verdicts],
                "flips": flips(job.task, rows, predictor.labels, before, after, comparison.flipped),
                "test": table,
                "reference": {name: found.model_dump(mode="json") for name, found in seen.items()},
            },
        )


def _judge(job: Job, predictor: Predictor, comparison: Comparison) -> tuple[gates.Verdict, ...]:
    """Holds the graph against every gate.

    Raises:
        GateError: one of them stops it.
    """
    promised = job.recipe.gates
    p95_ms = timing.p95(predictor, job.dataset().validation, job.recipe.seed) if promised.max_p95_ms else None
    found = gates.verdicts(promised, comparison, p95_ms=p95_ms, size_bytes=job.source.manifest.step.bytes)
    failed = gates.failing(promised, found)
    if failed:
        raise GateError(
            "a gate stops the package, on the validation split against the trained model:\n"
            f"{failed}\nThe graph is kept in {job.source.path}."
        )
    return found


def _chosen(job: Job, predictor: Predictor) -> str:
    """Returns the name of the candidate that was kept."""
    candidates = job.source.manifest.details.get("quantize", {}).get("candidates", [])
    return next((str(found["name"]) for found in candidates if found["kept"]), f"float32, {predictor.engine.execution}")


def _golden(job: Job, options: PackageSection, predictor: Predictor) -> golden.Golden:
    """Picks validation rows of all lengths, and asks the graph that will be served and the float graph."""
    cores, carried = hardware.cpu_limit(), job.source.file(FLOAT_GRAPH).is_file()
    floating = Predictor.load(job.source, cores, Execution(threads=cores), FLOAT_GRAPH if carried else GRAPH)
    rows, reference = job.dataset().validation, load_predictions(job.source)[f"{REFERENCE}validation"]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].text))
    positions = np.unique(np.linspace(0, len(rows) - 1, min(options.golden, len(rows))).round().astype(int))
    chosen = [order[position] for position in positions]
    texts, pairs = [rows[index].text for index in chosen], [rows[index].pair for index in chosen]
    scores, exact = predictor.predict(texts, pairs), floating.predict(texts, pairs)
    return golden.Golden(
        texts=texts,
        pairs=pairs,
        scores=[answer.tolist() for answer in scores],
        reference=[reference[index].tolist() for index in chosen],
        float_scores=[answer.tolist() for answer in exact],
        tolerance=golden.tolerance_of(exact, scores),
    )
