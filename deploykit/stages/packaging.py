"""The fifth stage: packages a graph into a directory that can be served without anything else.

It holds the graph and the tokenizer in the layout of Hugging Face, the golden set, and the files that `bundle` writes.
"""

from typing import Any

import numpy as np

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact, draft
from deploykit.artifact.execution import Execution
from deploykit.errors import GateError
from deploykit.evaluation import gates, scoring, timing
from deploykit.evaluation.comparison import Comparison, compare, describe_changes
from deploykit.inference import drift, golden
from deploykit.inference.predictor import Predictor
from deploykit.recipe import PackageSection
from deploykit.stages import bundle
from deploykit.stages.context import REFERENCE_PREFIX, Job
from deploykit.tasks import observed_labels


def package(job: Job) -> Artifact:
    """Packages the parent's graph with everything that a service needs.

    Raises:
        GateError: a gate of the recipe failed or was inconclusive.
    """
    dataset, options, source = job.dataset(), job.recipe.package, job.required_parent
    if options is None:
        raise RuntimeError("the recipe skips packaging")
    predictor, rows = Predictor.load(source, hardware.cpu_limit()), dataset.validation
    task, spec, predictions = job.task, predictor.spec, job.predictions()
    before, after = predictions[f"{REFERENCE_PREFIX}validation"], predictions["validation"]
    lengths = scoring.count_tokens(predictor, rows)
    comparison = compare(task, spec, rows, before, after, job.recipe.seed, lengths)
    verdicts = _require_gates(job, predictor, comparison)
    test_tables = scoring.tables_of_test(predictor, dataset, predictions, job.recipe.seed)
    observed, labels = task.observe(after, spec), observed_labels(task, spec)
    distributions = drift.reference(lengths, observed, len(labels))
    with draft(job.target) as folder:
        job.copy_files(folder, GRAPH, *([FLOAT_GRAPH] if options.float_graph else []))
        golden.save(folder, _make_golden(job, options, predictor))
        packages = bundle.additional_packages(predictor.engine.execution.engine, job.recipe.serve, task)
        bundle.write(folder, source.manifest, job.key, packages, _chosen_name(job, predictor), comparison, verdicts)
        return job.finish(
            folder,
            kind="package",
            predictor=predictor,
            predictions={name: predictions[name] for name in ("validation", "test")},
            parameters=source.manifest.step.parameters,
            details={
                "comparison": comparison.model_dump(),
                "verdicts": [verdict.model_dump() for verdict in verdicts],
                "flips": describe_changes(task, spec, rows, before, after, comparison.flipped),
                "test": test_tables,
                "reference": {name: feature.model_dump(mode="json") for name, feature in distributions.items()},
            },
        )


def _require_gates(job: Job, predictor: Predictor, comparison: Comparison) -> tuple[gates.Verdict, ...]:
    """Returns the verdict of every gate; raises a GateError if one of them stops the package."""
    section = job.recipe.gates
    p95_ms = timing.p95_latency(predictor, job.dataset().validation, job.recipe.seed) if section.max_p95_ms else None
    verdicts = gates.verdicts(section, comparison, p95_ms=p95_ms, size_bytes=job.required_parent.manifest.step.bytes)
    failing = gates.failing(section, verdicts)
    if failing:
        raise GateError(
            "a gate stops the package, on the validation split against the trained model:\n"
            f"{failing}\nThe graph is kept in {job.required_parent.path}."
        )
    return verdicts


def _chosen_name(job: Job, predictor: Predictor) -> str:
    """Returns the name of the candidate that `quantize` kept; without this stage, the name of the float graph."""
    candidates = job.required_parent.manifest.details.get("quantize", {}).get("candidates", [])
    names = (str(candidate["name"]) for candidate in candidates if candidate["kept"])
    return next(names, f"float32, {predictor.engine.execution}")


def _make_golden(job: Job, options: PackageSection, predictor: Predictor) -> golden.Golden:
    """Picks validation rows of all lengths, and adds the predictions of the packaged graph and of the float graph."""
    cores, has_float_graph = hardware.cpu_limit(), job.required_parent.file(FLOAT_GRAPH).is_file()
    graph = FLOAT_GRAPH if has_float_graph else GRAPH
    float_predictor = Predictor.load(job.required_parent, cores, Execution(threads=cores), graph)
    rows, reference = job.dataset().validation, job.predictions()[f"{REFERENCE_PREFIX}validation"]
    by_length = sorted(range(len(rows)), key=lambda index: sum(map(len, rows[index].input.texts)))
    ranks = np.unique(np.linspace(0, len(rows) - 1, min(options.golden, len(rows))).round().astype(int))
    chosen = [by_length[rank] for rank in ranks]
    inputs = [_golden_input(job, rows[index].input, predictor) for index in chosen]
    predictions, float_predictions = predictor.predict(inputs), float_predictor.predict(inputs)
    return golden.Golden(
        inputs=[item.model_dump(mode="json") for item in inputs],
        predictions=golden.to_stored(job.task.dump(predictions)),
        reference=golden.to_stored(job.task.dump([reference[index] for index in chosen])),
        float_predictions=golden.to_stored(job.task.dump(float_predictions)),
        tolerance=golden.tolerance_of(job.task, float_predictions, predictions),
    )


def _golden_input(job: Job, item: Any, predictor: Predictor) -> Any:
    """Returns an input as the golden set stores it; a task may shorten or replace it with `golden_input`."""
    return job.task.golden_input(item, predictor.tokenizer) if hasattr(job.task, "golden_input") else item
