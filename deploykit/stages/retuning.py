"""Chooses again on another machine, from what a package carries: no labelled data and no training.

Gates were evaluated where the package was made, and their verdicts stand. Only combinations of graph, quantizer, engine
and precision that passed them are tried here, and each must answer the golden set as it did there.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from scipy.stats import binomtest

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, LIBRARY, SIGNATURE, Artifact, Manifest, Metric, draft, key_of, seal
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, GateError, InputError
from deploykit.evaluation import gates, timing, workload
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.workload import Lengths
from deploykit.inference import golden
from deploykit.inference.golden import Golden
from deploykit.inference.predictor import Predictor, pad_in_batches
from deploykit.quantizers import auto
from deploykit.recipe import GateSection
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.choice import Candidate
from deploykit.selection.evaluator import Bench, Judged
from deploykit.stages import bundle
from deploykit.stages.context import stamp
from deploykit.tasks import Prediction

log = logging.getLogger(__name__)
BASE = Execution().place  # of the float graph, with which all others are compared
MIN_PROBABILITY = 1e-3  # if the changes of golden answers are less likely than this, the machine computes wrong answers


@dataclass(frozen=True)
class Package:
    """A package to choose from: its golden set, its float graph and a predictor of that graph, on all cores."""

    artifact: Artifact
    golden: Golden
    graph: Path
    base: Predictor

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the golden set."""
        return self.golden.items(self.base.task)

    @property
    def float_predictions(self) -> list[Prediction]:
        """The float graph's predictions for them."""
        return golden.from_stored(self.golden.float_predictions or {}, self.base.task)

    @property
    def quantization(self) -> dict[str, Any]:
        """The details of the stage `quantize`, measured where the package was made."""
        details: dict[str, Any] = self.artifact.manifest.details["quantize"]
        return details

    @property
    def kept(self) -> Candidate:
        """The candidate that runs at present."""
        candidates = self.artifact.manifest.details.get("retune", self.quantization)["candidates"]
        return next(Candidate.model_validate(candidate) for candidate in candidates if candidate["kept"])


def open_package(path: Path | str) -> Package:
    """Opens a package and checks that its float graph gives the golden answers on this machine.

    Raises:
        InputError: the artifact is no package, or one without candidates.
        ArtifactError: it is damaged or carries no float graph.
    """
    artifact, cores = Artifact.load(path), hardware.cpu_limit()
    if artifact.manifest.kind != "package" or not artifact.manifest.details.get("quantize", {}).get("candidates"):
        raise InputError(f"{path} is no package with measured candidates. Give one that a recipe has made.")
    artifact.verify()
    graph = FLOAT_GRAPH if artifact.file(FLOAT_GRAPH).is_file() else GRAPH
    base = Predictor.load(artifact, cores, Execution(threads=cores), graph)
    package = Package(artifact, golden.load(artifact), artifact.file(graph), base)
    if graph == GRAPH and (package.kept.graph, package.kept.quantizer) != ("exported", "none"):
        raise ArtifactError(f"{path} carries no float graph to choose from. Package it with package.float_graph: true.")
    golden.replay(package.golden, base, "float_predictions")
    return package


def retune(path: Path | str, output: Path | str | None = None, options: auto.Options | None = None) -> Artifact:
    """Measures a package's candidates on this machine, and writes a package with the best.

    Args:
        path: of a package that carries its float graph.
        output: directory to write; default: beside the package, with `-retuned` at the end of its name.
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
        bench = bench_of(package, Path(folder), options, passed)
        specs = first_specs(package, passed, options)
        entries, candidates = search.search(specs, bench, options.model_copy(update={"fallback": False}))
        for candidate in candidates:
            log.info("%s: %s", candidate.name, candidate.reason)
        for entry, candidate in zip(entries, candidates, strict=True):
            if candidate.kept:
                return _write(package, target, bench, entry.spec, candidates)
    raise GateError(
        "no candidate of this package passes on this machine; the reasons are above. Run its recipe here: with labelled"
        " data, it can try more."
    )


def options(**values: Any) -> auto.Options:
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
    """Returns the candidates that passed every gate where the package was made and can run here, by their specs here.

    The float graph is always included, as the baseline. Latency gates are ignored, because this machine may be faster.
    """
    limits = GateSection.model_validate(package.quantization["gates"])
    places = {spec.execution.place for spec in candidate_grid.specs(options, cores, hardware.cpu_features())}
    passed: dict[Spec, Candidate] = {}
    for content in package.quantization["candidates"]:
        candidate = Candidate.model_validate(content)
        is_float = (candidate.graph, candidate.quantizer, candidate.execution.place) == ("exported", "none", BASE)
        verdicts = [verdict for verdict in candidate.verdicts if verdict.gate != "max_p95_ms"]
        passes = candidate.comparison is not None and (is_float or not gates.failing(limits, verdicts))
        if passes and candidate.execution.place in places:
            for execution in candidate_grid.thread_layouts(candidate.execution, cores, options.objective):
                passed.setdefault(candidate_grid.spec_of(candidate, execution), candidate)
    return passed


def first_specs(package: Package, passed: Mapping[Spec, Candidate], options: auto.Options) -> list[Spec]:
    """Returns the specs to begin with: the float graph, and each other candidate with its likelier thread layout."""
    execution, objective = package.base.engine.execution, options.objective
    layouts = candidate_grid.thread_layouts
    likely = (spec for spec in passed if spec.execution == layouts(spec.execution, execution.threads, objective)[0])
    return list(dict.fromkeys((Spec(execution=execution), *likely)))


def bench_of(package: Package, folder: Path, options: auto.Options, passed: Mapping[Spec, Candidate]) -> Bench:
    """Returns the bench of a search with the package's lengths, unless the options name others, and its golden set.

    A candidate whose golden answers are right keeps the metric and comparison that it had in `passed`.
    """
    base, inputs = package.base, package.inputs
    features = sorted((part for parts in base.encode(inputs) for part in parts), key=len)
    counts = package.quantization["lengths"]
    lengths = Lengths.read(options.lengths) if options.lengths else Lengths.from_counts(counts)

    def judge(spec: Spec, predictor: Predictor) -> Judged:
        before = passed[spec]
        if before.metric is None or before.comparison is None:
            raise RuntimeError("a candidate that passed its gates has no metric")
        _require_alike(predictor, package, before.comparison)
        return Judged(metric=before.metric, comparison=before.comparison)

    return Bench(
        graph=package.graph,
        base=base,
        folder=folder,
        work=workload.build(lengths, base.tokenizer, features, package.artifact.manifest.seed),
        calibration=pad_in_batches(features, base.tokenizer, 8),
        judge=judge,
        gates=GateSection.model_validate(package.quantization["gates"]).model_copy(update={"max_p95_ms": None}),
        data=package.artifact.digest,
    )


def _require_alike(predictor: Predictor, package: Package, before: Comparison) -> None:
    """Compares the share of changed golden answers here with the share of changed rows where the package was made.

    Raises:
        ArtifactError: so many changes are improbable, so this machine computes something else.
    """
    exact = package.float_predictions
    changed = golden.count_changed(predictor, package.golden.predict(predictor), exact)
    flips = before.flips or Metric(value=0, low=0, high=0)
    expected = min(1.0, max(flips.high, 3 / before.rows))  # for 0 of n, the 95 % bound is 3 / n
    if binomtest(changed, len(exact), expected, alternative="greater").pvalue < MIN_PROBABILITY:
        raise ArtifactError(
            f"{changed} of {len(exact)} golden answers change on this machine, compared with"
            f" {flips.value:.1%} where the package was made"
        )


def _write(package: Package, target: Path, bench: Bench, spec: Spec, candidates: Sequence[Candidate]) -> Artifact:
    artifact, manifest, questions = package.artifact, package.artifact.manifest, package.golden
    kept = next(candidate for candidate in candidates if candidate.kept)
    with draft(target) as folder:
        _copy(artifact, folder)
        predictor = bench.write(folder, spec, kept)
        task, predictions = predictor.task, questions.predict(predictor)
        tolerance = golden.tolerance_of(task, package.float_predictions, predictions)
        answers = {"predictions": golden.to_stored(task.dump(predictions)), "tolerance": tolerance}
        golden.save(folder, questions.model_copy(update=answers))
        changes: dict[str, Any] = {
            "key": key_of(
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
            "cost": timing.cost(predictor.engine, bench.work),
            "details": {**manifest.details, "retune": {"candidates": [c.model_dump(mode="json") for c in candidates]}},
            **stamp(),
        }
        own = manifest.details["package"]
        bundle.write(
            folder,
            manifest,
            changes["key"],
            bundle.packages(kept.execution.engine, manifest.serve, task),
            f"{kept.name} (chosen again on {hardware.cpu_name()}; the figures are those of: {package.kept.name})",
            Comparison.model_validate(own["comparison"]),
            [Verdict.model_validate(verdict) for verdict in own["verdicts"]],
        )
        unchanged = set(Manifest.model_fields) - {"format_version", "files"}
        sealed = seal(folder, target, **{**{name: getattr(manifest, name) for name in unchanged}, **changes})
    if artifact.file(SIGNATURE).is_file():
        log.warning(
            "%s is not signed: the signature of %s is of other files. Sign it with: deploykit sign %s --key"
            " PRIVATE_KEY",
            *(sealed.path, artifact.path, sealed.path),
        )
    return sealed


def _copy(artifact: Artifact, folder: Path) -> None:
    """Copies a package without its graphs, its copy of deploykit and its signature."""
    for name in artifact.manifest.files:
        if name not in (GRAPH, FLOAT_GRAPH) and not name.startswith(f"{LIBRARY}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact.file(name), folder / name)
