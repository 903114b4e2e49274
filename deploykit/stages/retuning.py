"""Chooses again among the candidates of a package, on another machine, without labelled data or training.

Gates were evaluated where the package was made, and their verdicts hold here. Only combinations of graph, quantizer,
engine and precision that passed the gates are tried. Each must answer the golden set here as it did there.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from scipy.stats import binomtest

from deploykit import hardware
from deploykit.artifact import (
    FLOAT_GRAPH,
    GRAPH,
    LIBRARY,
    SIGNATURE,
    Artifact,
    Manifest,
    Metric,
    content_key,
    draft,
    seal,
)
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, GateError, InputError
from deploykit.evaluation import gates, timing, workload
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.workload import Lengths
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.quantizers import auto
from deploykit.recipe import GateSection
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.choice import Candidate
from deploykit.selection.evaluator import Bench, Evaluation
from deploykit.stages import bundle
from deploykit.stages.context import provenance_fields
from deploykit.stages.opened_package import Package, open_package

log = logging.getLogger(__name__)
BASELINE_BACKEND = Execution().backend  # engine, device and precision of the float graph as the baseline
MIN_P_VALUE = 1e-3  # of the binomial test on the number of changed golden answers; a lower one refuses the candidate
CALIBRATION_BATCH_ROWS = 8  # golden rows in a batch for quantizers that measure activations


def retune(path: Path | str, output: Path | str | None = None, options: auto.Options | None = None) -> Artifact:
    """Measures a package's candidates on this machine, and writes a package with the best.

    Args:
        path: of a package that carries its float graph.
        output: the directory of the new package; default: beside the package, with `-retuned` at the end of its name.
        options: of the search.

    Raises:
        InputError: the artifact is no package, or the output exists already.
        ArtifactError: it is damaged or carries no float graph.
        GateError: nothing passes on this machine.

    Example:
        >>> retune("runs/movie-reviews/package").manifest.execution.engine  # doctest: +SKIP
        'openvino'
    """
    place, options = Path(path).absolute(), options or auto.Options()
    target = Path(output) if output else place.with_name(f"{place.name}-retuned")
    if target.exists():
        raise InputError(f"{target} exists already. Name another directory with --output, or remove it.")
    package = open_package(path)
    with tempfile.TemporaryDirectory() as folder:
        passed = passed_before(package, options, hardware.cpu_limit())
        bench = make_bench(package, Path(folder), options, passed)
        specs = initial_specs(package, passed, options)
        entries, candidates = search.search(specs, bench, options.model_copy(update={"fallback": False}))
        for candidate in candidates:
            log.info("%s: %s", candidate.name, candidate.reason)
        for entry, candidate in zip(entries, candidates, strict=True):
            if candidate.kept:
                return _write_package(package, target, bench, entry.spec, candidates)
    raise GateError(
        "no candidate of this package passes on this machine; the reasons are above. Run its recipe here: with labelled"
        " data, it can try more."
    )


def parse_options(**values: Any) -> auto.Options:
    """Returns the options of a search.

    Raises:
        InputError: one of them is not valid.
    """
    try:
        return auto.Options(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}.") from error


def passed_before(package: Package, options: auto.Options, cores: int) -> dict[Spec, Candidate]:
    """Returns the candidates that passed every gate where the package was made, and can run here.

    The float graph is always included, as the baseline. Latency gates are ignored, because this machine may be faster.

    Args:
        package: names the candidates and their verdicts.
        options: of the search.
        cores: of this machine.

    Returns:
        The candidates by their specs on this machine, one spec for each thread layout.
    """
    limits = GateSection.model_validate(package.quantization["gates"])
    places = {spec.execution.backend for spec in candidate_grid.specs(options, cores, hardware.cpu_features())}
    passed: dict[Spec, Candidate] = {}
    for content in package.quantization["candidates"]:
        candidate = Candidate.model_validate(content)
        baseline = ("exported", "none", BASELINE_BACKEND)
        is_baseline = (candidate.graph, candidate.quantizer, candidate.execution.backend) == baseline
        verdicts = [verdict for verdict in candidate.verdicts if verdict.gate != "max_p95_ms"]
        passes = candidate.comparison is not None and (is_baseline or not gates.failing(limits, verdicts))
        if passes and candidate.execution.backend in places:
            for execution in candidate_grid.thread_layouts(candidate.execution, cores, options.objective):
                passed.setdefault(candidate_grid.spec_of(candidate, execution), candidate)
    return passed


def initial_specs(package: Package, passed: Mapping[Spec, Candidate], options: auto.Options) -> list[Spec]:
    """Returns the specs to begin the search with: the float graph and all candidates, each in one thread layout.

    Of a candidate's two thread layouts, this is the one that is expected to be faster.

    Args:
        package: its float graph runs on all cores, which decides the layouts.
        passed: from `passed_before`.
        options: of the search.
    """
    execution = package.base.engine.execution

    def is_in_preferred_layout(spec: Spec) -> bool:
        layouts = candidate_grid.thread_layouts(spec.execution, execution.threads, options.objective)
        return spec.execution == layouts[0]

    return list(dict.fromkeys((Spec(execution=execution), *filter(is_in_preferred_layout, passed))))


def make_bench(package: Package, folder: Path, options: auto.Options, passed: Mapping[Spec, Candidate]) -> Bench:
    """Returns the bench that makes, judges and times the candidates of a search.

    Texts are those of the golden set. A candidate that answers them right keeps the metric and the comparison that it
    has in `passed`.

    Args:
        package: the opened package.
        folder: for the graphs of candidates.
        options: of the search. They may name lengths of texts; default: those that the package was measured with.
        passed: from `passed_before`.
    """
    base, inputs = package.base, package.inputs
    features = sorted((window for windows in base.encode(inputs) for window in windows), key=len)
    counts = package.quantization["lengths"]
    lengths = Lengths.read(options.lengths) if options.lengths else Lengths.from_counts(counts)

    def evaluate(spec: Spec, predictor: Predictor) -> Evaluation:
        """Returns what was measured where the package was made, if the candidate answers the golden set right here."""
        candidate = passed[spec]
        if candidate.metric is None or candidate.comparison is None:
            raise RuntimeError("a candidate that passed its gates has no metric")
        _require_plausible_changes(predictor, package, candidate.comparison)
        return Evaluation(metric=candidate.metric, comparison=candidate.comparison)

    return Bench(
        graph=package.graph,
        base=base,
        folder=folder,
        workload=workload.build(lengths, base.tokenizer, features, package.artifact.manifest.seed),
        calibration=pad_in_batches(features, base.tokenizer, CALIBRATION_BATCH_ROWS),
        evaluate=evaluate,
        gates=GateSection.model_validate(package.quantization["gates"]).model_copy(update={"max_p95_ms": None}),
        data_key=package.artifact.digest,
    )


def _require_plausible_changes(predictor: Predictor, package: Package, before: Comparison) -> None:
    """Raises an error if many more golden answers change on this machine than rows did where the package was made.

    Args:
        predictor: of the candidate, on this machine.
        package: has the float graph's answers to compare with.
        before: of the candidate with the float graph, where the package was made.

    Raises:
        ArtifactError: so many changes are improbable, so this machine computes something else.
    """
    float_predictions = package.float_predictions
    changed = golden.count_changed(predictor, package.golden.predict(predictor), float_predictions)
    total = len(float_predictions)
    flips = before.flips or Metric(value=0, low=0, high=0)
    max_share = min(1.0, max(flips.high, 3 / before.rows))  # 3 / n is the 95 % bound if 0 of n rows changed
    if binomtest(changed, total, max_share, alternative="greater").pvalue < MIN_P_VALUE:
        raise ArtifactError(
            f"{changed} of {total} golden answers change on this machine, compared with"
            f" {flips.value:.1%} where the package was made"
        )


def _write_package(
    package: Package, target: Path, bench: Bench, spec: Spec, candidates: Sequence[Candidate]
) -> Artifact:
    """Writes the new package: the kept candidate's graph, its golden predictions, and the changed manifest.

    Args:
        package: the package to start from.
        target: the directory of the new package.
        bench: makes the graph.
        spec: of the kept candidate.
        candidates: all that were tried.
    """
    artifact, manifest = package.artifact, package.artifact.manifest
    kept = next(candidate for candidate in candidates if candidate.kept)
    with draft(target) as folder:
        _copy_files(artifact, folder)
        predictor = bench.write(folder, spec, kept)
        task, predictions = predictor.task, package.golden.predict(predictor)
        tolerance = golden.tolerance_of(task, package.float_predictions, predictions)
        answers = {"predictions": golden.to_stored(task.dump(predictions)), "tolerance": tolerance}
        golden.save(folder, package.golden.model_copy(update=answers))
        changes: dict[str, Any] = {
            "key": content_key(
                parent=manifest.key,
                stage="retune",
                method=kept.name,
                options={"hardware": hardware.describe()},
                data=artifact.digest,
                seed=manifest.seed,
            ),
            "parent_key": manifest.key,
            "parent_digest": artifact.digest,
            "execution": predictor.engine.execution,
            "weights_precision": kept.precision,
            "cost": timing.fit_cost(predictor.engine, bench.workload),
            "details": {**manifest.details, "retune": {"candidates": [c.model_dump(mode="json") for c in candidates]}},
            **provenance_fields(),
        }
        packaging_details = manifest.details["package"]
        bundle.write(
            folder,
            manifest,
            changes["key"],
            bundle.additional_packages(kept.execution.engine, manifest.serve, task),
            f"{kept.name} (chosen again on {hardware.cpu_name()}; the figures are those of: {package.kept.name})",
            Comparison.model_validate(packaging_details["comparison"]),
            [Verdict.model_validate(verdict) for verdict in packaging_details["verdicts"]],
        )
        field_names = set(Manifest.model_fields) - {"format_version", "files"}  # `seal` sets these two
        sealed = seal(folder, target, **{**{name: getattr(manifest, name) for name in field_names}, **changes})
    if artifact.file(SIGNATURE).is_file():
        log.warning(
            "%s is not signed: the signature of %s is of other files. Sign it with: deploykit sign %s --key"
            " PRIVATE_KEY",
            *(sealed.path, artifact.path, sealed.path),
        )
    return sealed


def _copy_files(artifact: Artifact, folder: Path) -> None:
    """Copies a package without its graphs, its copy of deploykit and its signature."""
    for name in artifact.manifest.files:
        if name not in (GRAPH, FLOAT_GRAPH) and not name.startswith(f"{LIBRARY}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact.file(name), folder / name)
