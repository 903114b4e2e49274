"""Chooses again on another machine, from what a package carries: no labelled data and no training.

What was proven where the package was made stays proven: only combinations of graph, quantizer, engine and
precision that passed every gate there are tried here, and each must answer the golden set here as it should.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.stats import binomtest

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, LIBRARY, SIGNATURE, Artifact, Manifest, draft, key_of, seal
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, GateError, InputError
from deploykit.evaluation import gates, timing, workload
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.evaluation.workload import Lengths
from deploykit.inference import golden
from deploykit.inference.golden import Golden
from deploykit.inference.predictor import Predictor
from deploykit.quantizers import auto
from deploykit.recipe import GateSection
from deploykit.selection import candidates as candidate_grid
from deploykit.selection import search
from deploykit.selection.candidates import Spec
from deploykit.selection.choice import Candidate
from deploykit.selection.evaluator import Bench, Judged
from deploykit.stages import bundle
from deploykit.stages.context import versions
from deploykit.tasks import Float32

log = logging.getLogger(__name__)
BASE = Execution().place  # of the float graph that all others are compared with
DOUBT = 1e-3  # flips of golden answers that are less probable than this are taken for another model


@dataclass(frozen=True)
class Carried:
    """What a package carries to choose from: its golden set, its float graph and a predictor of that, on all cores."""

    artifact: Artifact
    asked: Golden
    graph: Path
    base: Predictor

    @property
    def exact(self) -> list[Float32]:
        """The float graph's answers to the golden set, one array `(units, labels)` a text."""
        return [np.array(rows, dtype=np.float32) for rows in self.asked.float_scores or ()]

    @property
    def then(self) -> dict[str, Any]:
        """What was found where the package was made."""
        found: dict[str, Any] = self.artifact.manifest.details["quantize"]
        return found

    @property
    def kept(self) -> Candidate:
        """What runs now."""
        candidates = self.artifact.manifest.details.get("retune", self.then)["candidates"]
        return next(Candidate.model_validate(found) for found in candidates if found["kept"])


def carried(path: Path | str) -> Carried:
    """Opens a package and proves that its float graph is right on this machine.

    Raises:
        InputError: the artifact is no package, or one that was not chosen from candidates.
        ArtifactError: it is damaged or carries no float graph.
    """
    artifact, cores = Artifact.load(path), hardware.cpu_limit()
    if artifact.manifest.kind != "package" or not artifact.manifest.details.get("quantize", {}).get("candidates"):
        raise InputError(f"{path} is no package with measured candidates. Give one that a recipe has made.")
    artifact.verify()
    graph = FLOAT_GRAPH if artifact.file(FLOAT_GRAPH).is_file() else GRAPH
    base = Predictor.load(artifact, cores, Execution(threads=cores), graph)
    found = Carried(artifact, golden.load(artifact), artifact.file(graph), base)
    if graph == GRAPH and (found.kept.graph, found.kept.quantizer) != ("exported", "none"):
        raise ArtifactError(f"{path} carries no float graph to choose from. Package it with package.float_graph: true.")
    golden.replay(found.asked, base, "float_scores")
    return found


def retune(path: Path | str, output: Path | str | None = None, options: auto.Options | None = None) -> Artifact:
    """Measures on this machine what a package may run as, and writes a package with the best.

    Args:
        path: of a package that carries its float graph.
        output: directory to write; default: beside it, with `-retuned` at the end of its name.
        options: of the search.

    Raises:
        InputError: the artifact is no package, or the output is there already.
        ArtifactError: it is damaged or carries no float graph.
        GateError: nothing passes on this machine.

    Example:
        >>> retune("runs/movie-reviews/package").manifest.execution.engine  # doctest: +SKIP
        'openvino'
    """
    place, options = Path(path).absolute(), options or auto.Options()
    target = Path(output) if output else place.with_name(f"{place.name}-retuned")
    if target.exists():
        raise InputError(f"{target} is there already. Name another directory with --output, or remove it.")
    package = carried(path)
    with tempfile.TemporaryDirectory() as folder:
        known = proven(package, options, hardware.cpu_limit())
        bench = bench_of(package, Path(folder), options, known)
        specs, once = first_specs(package, known, options), options.model_copy(update={"fallback": False})
        entries, candidates = search.search(specs, bench, once)
        for found in candidates:
            log.info("%s: %s", found.name, found.reason)
        kept = next((entry for entry, found in zip(entries, candidates, strict=True) if found.kept), None)
        if kept:
            return _write(package, target, bench, kept.spec, candidates)
    raise GateError(
        "nothing that this package may run as passes on this machine; the reasons stand above. Run its recipe here: it"
        " has labelled data, and looks further."
    )


def options(**wanted: Any) -> auto.Options:
    """Returns options of a search.

    Raises:
        InputError: one of them makes no sense.
    """
    try:
        return auto.Options(**wanted)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}.") from error


def proven(package: Carried, options: auto.Options, cores: int) -> dict[Spec, Candidate]:
    """Returns what passed every gate where the package was made and can run here, the float graph first.

    That one is there whether or not it passed: all others are timed against it. What took too long there may not here.
    """
    limits = GateSection.model_validate(package.then["gates"])
    here = {spec.execution.place for spec in candidate_grid.specs(options, cores, hardware.cpu_features())}
    found: dict[Spec, Candidate] = {}
    for content in package.then["candidates"]:
        candidate = Candidate.model_validate(content)
        floating = (candidate.graph, candidate.quantizer, candidate.execution.place) == ("exported", "none", BASE)
        judged = [verdict for verdict in candidate.verdicts if verdict.gate != "max_p95_ms"]
        passed = candidate.comparison is not None and (floating or not gates.failing(limits, judged))
        if passed and candidate.execution.place in here:
            for execution in candidate_grid.ways(candidate.execution, cores, options.objective):
                found.setdefault(candidate_grid.spec_of(candidate, execution), candidate)
    return found


def first_specs(package: Carried, known: Mapping[Spec, Candidate], options: auto.Options) -> list[Spec]:
    """Returns what a search begins with: the float graph, and the likelier way to share the cores of all others."""
    first, cores = Spec(execution=package.base.engine.execution), package.base.engine.execution.threads
    likely = [
        spec for spec in known if spec.execution == candidate_grid.ways(spec.execution, cores, options.objective)[0]
    ]
    return [first, *(spec for spec in likely if spec != first)]


def bench_of(package: Carried, folder: Path, options: auto.Options, known: Mapping[Spec, Candidate]) -> Bench:
    """Returns what a search works on: the lengths that were measured at before, and the golden set for everything else.

    Args:
        package: see `Carried`.
        folder: for the graphs that are written.
        options: name other lengths, or none.
        known: what was found of each candidate; a candidate is judged by it once its golden answers are right.
    """
    tokenizer, asked = package.base.tokenizer, package.asked
    encodings = sorted(tokenizer.encode(asked.texts, asked.pairs), key=len)
    lengths = Lengths.read(options.lengths) if options.lengths else Lengths.from_counts(package.then["lengths"])

    def judge(spec: Spec, predictor: Predictor) -> Judged:
        then = known[spec]
        if then.metric is None or then.comparison is None:
            raise RuntimeError("what is proven was judged")
        _require_alike(predictor.predict(asked.texts, asked.pairs), package.exact, then.comparison)
        return Judged(metric=then.metric, comparison=then.comparison)

    return Bench(
        graph=package.graph,
        base=package.base,
        folder=folder,
        work=workload.build(lengths, tokenizer, asked.texts, package.artifact.manifest.seed),
        calibration=[tokenizer.collate(encodings[start : start + 8]) for start in range(0, len(encodings), 8)],
        judge=judge,
        gates=GateSection.model_validate(package.then["gates"]).model_copy(update={"max_p95_ms": None}),
        data=package.artifact.digest,
    )


def _require_alike(found: Sequence[Float32], exact: Sequence[Float32], then: Comparison) -> None:
    """Holds the share of golden answers that changed here against that of the rows that were judged there.

    Raises:
        ArtifactError: so many are improbable: this machine computes something else.
    """
    changed = golden.changed(found, exact)
    expected = min(1.0, max(then.flips.high, 3 / then.rows))  # none in n rows: at most 3 in n, at 95 %
    if binomtest(changed, len(exact), expected, alternative="greater").pvalue < DOUBT:
        raise ArtifactError(
            f"{changed} of {len(exact)} golden answers change on this machine, where {then.flips.value:.1%} did when it"
            " was made"
        )


def _copy(artifact: Artifact, folder: Path) -> None:
    """Copies what stays of a package: no graph, no library of the version that made it, and no signature."""
    for name in artifact.manifest.files:
        if name not in (GRAPH, FLOAT_GRAPH) and not name.startswith(f"{LIBRARY}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact.file(name), folder / name)


def _say_unsigned(before: Artifact, after: Artifact) -> None:
    """Says that a package has lost the signature of the one that it was made of."""
    if before.file(SIGNATURE).is_file():
        log.warning(
            "%s is not signed: the signature of %s is of other files. Sign it with: deploykit sign %s --key"
            " PRIVATE_KEY",
            after.path,
            before.path,
            after.path,
        )


def _write(package: Carried, target: Path, bench: Bench, spec: Spec, candidates: Sequence[Candidate]) -> Artifact:
    artifact, manifest, asked = package.artifact, package.artifact.manifest, package.asked
    kept = next(found for found in candidates if found.kept)
    with draft(target) as folder:
        _copy(artifact, folder)
        predictor = bench.write(folder, spec, kept)
        scores = predictor.predict(asked.texts, asked.pairs)
        tolerance = golden.tolerance_of(package.exact, scores)
        answers = {"scores": [rows.tolist() for rows in scores], "tolerance": tolerance}
        golden.save(folder, asked.model_copy(update=answers))
        key = key_of(
            parent=manifest.key,
            stage="retune",
            method=kept.name,
            options={"hardware": hardware.describe()},
            data=artifact.digest,
            seed=manifest.seed,
        )
        own = manifest.details["package"]
        bundle.write(
            folder,
            manifest,
            key,
            [kept.execution.engine, *bundle.members(manifest.serve.extras)],
            f"{kept.name} (chosen again on {hardware.cpu_name()}; the figures are those of: {package.kept.name})",
            Comparison.model_validate(own["comparison"]),
            [Verdict.model_validate(found) for found in own["verdicts"]],
        )
        facts = {
            name: getattr(manifest, name) for name in Manifest.model_fields if name not in ("format_version", "files")
        }
        changes = {
            "key": key,
            "parent_key": manifest.key,
            "parent_digest": artifact.digest,
            "execution": predictor.engine.execution,
            "weights_precision": kept.precision,
            "cost": timing.cost(predictor.engine, bench.work),
            "details": {**manifest.details, "retune": {"candidates": [c.model_dump(mode="json") for c in candidates]}},
            "hardware": hardware.describe(),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        sealed = seal(folder, target, **{**facts, **changes})
    _say_unsigned(artifact, sealed)
    return sealed
