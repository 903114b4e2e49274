"""Chooses again on another machine, from what a package carries: no labelled data and no training.

What was proven where the package was made stays proven: only combinations of graph, quantizer, engine and
precision that passed every gate there are tried here, and each must answer the golden set here as it should.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from deploykit import bundle, golden, hardware, search, timing
from deploykit.artifact import FLOAT_GRAPH, GENERATED, GRAPH, MANIFEST, Artifact, Manifest, draft, key_of, seal
from deploykit.errors import ArtifactError, GateError, InputError
from deploykit.evaluation import gates
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.execution import Execution
from deploykit.golden import Golden
from deploykit.job import versions
from deploykit.lengths import Lengths
from deploykit.predictor import Predictor
from deploykit.quantizers import auto
from deploykit.recipe import GateSection
from deploykit.search import Bench, Judged, Spec
from deploykit.selection import Candidate
from deploykit.tasks import Float32

DOUBT = 1e-3  # flips of golden answers that are less probable than this are taken for another model


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
    artifact, options, cores = Artifact.load(path), options or auto.Options(), hardware.cpu_limit()
    place = artifact.path.resolve()
    target = Path(output) if output else place.with_name(f"{place.name}-retuned")
    _check(artifact, target)
    asked = golden.load(artifact)
    graph = FLOAT_GRAPH if artifact.file(FLOAT_GRAPH).is_file() else GRAPH
    base = Predictor.load(artifact, cores, Execution(threads=cores), graph)
    golden.replay(asked, base, "float_scores")
    with tempfile.TemporaryDirectory() as folder:
        proven = _proven(artifact, options, cores)
        bench = _bench(artifact, asked, base, artifact.file(graph), Path(folder), options, proven)
        entries, candidates = search.search(list(proven), bench, options.model_copy(update={"fallback": False}))
        kept = next((place for place, found in enumerate(candidates) if found.kept), None)
        if kept is None:
            listing = "\n".join(f"  {found.name}: {found.reason}" for found in candidates)
            raise GateError(f"nothing that this package may run as passes on this machine:\n{listing}")
        return _write(artifact, target, bench, entries[kept].spec, candidates, asked)


def _check(artifact: Artifact, target: Path) -> None:
    details = artifact.manifest.details.get("quantize", {})
    if artifact.manifest.kind != "package" or not details.get("candidates"):
        raise InputError(f"{artifact.path} is no package with measured candidates. Give one that a recipe has made.")
    if target.exists():
        raise InputError(f"{target} is there already. Name another directory with --output, or remove it.")
    artifact.verify()
    kept = _kept(artifact)
    if not artifact.file(FLOAT_GRAPH).is_file() and (kept.graph, kept.quantizer) != ("exported", "none"):
        raise ArtifactError(
            f"{artifact.path} carries no float graph to choose from. Package it with package.float_graph: true."
        )


def _kept(artifact: Artifact) -> Candidate:
    """Returns what runs now."""
    candidates = artifact.manifest.details.get("retune", artifact.manifest.details["quantize"])["candidates"]
    return next(Candidate.model_validate(found) for found in candidates if found["kept"])


def _proven(artifact: Artifact, options: auto.Options, cores: int) -> dict[Spec, Candidate]:
    """Returns what passed every gate where the package was made and can run here, the float graph first."""
    gates_then = GateSection.model_validate(artifact.manifest.details["quantize"]["gates"])
    possible = {
        (spec.execution.engine, spec.execution.precision, spec.execution.device)
        for spec in search.grid(options, cores, hardware.cpu_features())
    }
    found: dict[Spec, Candidate] = {}
    for content in artifact.manifest.details["quantize"]["candidates"]:
        candidate = Candidate.model_validate(content)
        place = candidate.execution
        if candidate.comparison is None or gates.failing(gates_then, candidate.verdicts):
            continue
        if (place.engine, place.precision, place.device) in possible:
            for execution in search.spread(place.model_copy(update={"features": ()}), cores):
                found.setdefault(search.spec_of(candidate, execution), candidate)
    return found


def _bench(
    artifact: Artifact,
    asked: Golden,
    base: Predictor,
    graph: Path,
    folder: Path,
    options: auto.Options,
    proven: Mapping[Spec, Candidate],
) -> Bench:
    exact = [np.array(rows, dtype=np.float32) for rows in asked.float_scores or ()]
    encodings = sorted(base.tokenizer.encode(asked.texts, asked.pairs), key=len)
    details = artifact.manifest.details["quantize"]

    def judge(spec: Spec, predictor: Predictor) -> Judged:
        then = proven[spec]
        if then.metric is None or then.comparison is None:
            raise RuntimeError("what is proven was judged")
        _require_alike(predictor.predict(asked.texts, asked.pairs), exact, then.comparison)
        return Judged(metric=then.metric, comparison=then.comparison)

    return Bench(
        graph=graph,
        base=base,
        folder=folder,
        work=timing.workload(
            Lengths.read(options.lengths) if options.lengths else Lengths.from_counts(details["lengths"]),
            base.tokenizer,
            asked.texts,
            artifact.manifest.seed,
        ),
        calibration=[base.tokenizer.collate(encodings[start : start + 8]) for start in range(0, len(encodings), 8)],
        judge=judge,
        gates=GateSection.model_validate(details["gates"]).model_copy(update={"max_p95_ms": None}),
        data=artifact.digest,
    )


def _require_alike(found: Sequence[Float32], exact: Sequence[Float32], then: Comparison) -> None:
    """Holds the share of golden answers that changed here against that of the rows that were judged there.

    Raises:
        ArtifactError: so many are improbable: this machine computes something else.
    """
    changed = sum(
        not np.isfinite(a).all() or not np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1))
        for a, b in zip(found, exact, strict=True)
    )
    expected = min(1.0, max(then.flips.high, 3 / then.rows))  # none in n rows: at most 3 in n, at 95 %
    if binomtest(changed, len(exact), expected, alternative="greater").pvalue < DOUBT:
        raise ArtifactError(
            f"{changed} of {len(exact)} golden answers change on this machine, where {then.flips.value:.1%} did when it"
            " was made"
        )


def _write(
    artifact: Artifact, target: Path, bench: Bench, spec: Spec, candidates: Sequence[Candidate], asked: Golden
) -> Artifact:
    manifest, before = artifact.manifest, _kept(artifact)
    kept = next(found for found in candidates if found.kept)
    with draft(target) as folder:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, *GENERATED))
        (folder / FLOAT_GRAPH).unlink(missing_ok=True)
        predictor = search.write(folder, bench, spec, kept)
        scores = predictor.predict(asked.texts, asked.pairs)
        exact = [np.array(rows, dtype=np.float32) for rows in asked.float_scores or ()]
        tolerance = golden.tolerance_of(exact, scores)
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
            kept.execution.engine,
            f"{kept.name} (chosen again on {hardware.cpu_name()}; the figures are those of: {before.name})",
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
            "cost": timing.cost(predictor.engine, bench.work, search.COST_S),
            "details": {**manifest.details, "retune": {"candidates": [c.model_dump(mode="json") for c in candidates]}},
            "hardware": hardware.describe(),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return seal(folder, target, **{**facts, **changes})
