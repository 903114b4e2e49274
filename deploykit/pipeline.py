"""Runs the stages of a recipe in order, and skips those whose artifact exists.

A run has a directory of its own, which is locked. The directory of each artifact is named after the stage and the
beginning of its content key, so a changed recipe adds artifacts and deletes none. A link with the name of the stage
points to the newest artifact that passed its gates.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from deploykit import data, hardware, process_state, report, tasks
from deploykit.artifact import Artifact, is_finished, key_of, sha256_of
from deploykit.data import Dataset, sources
from deploykit.errors import GateError, InputError
from deploykit.evaluation import gates
from deploykit.modeling import base_model
from deploykit.recipe import STAGES, Recipe
from deploykit.stages import bundle, exporting, packaging, preflight, pruning, quantization, training
from deploykit.stages.context import Job
from deploykit.stages.run_lock import locked

WORK = ".work"
COMPUTE: dict[str, Callable[[Job], Artifact]] = {
    "train": training.train,
    "prune": pruning.prune,
    "export": exporting.export,
    "quantize": quantization.quantize,
    "package": packaging.package,
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """One stage of a run, and the directory of its artifact."""

    stage: str
    method: str
    target: Path
    key: str
    parent_key: str
    would: Literal["run", "be skipped"]

    @property
    def finished(self) -> bool:
        """Whether the artifact exists and is not to be replaced."""
        return self.would == "be skipped"


@dataclass(frozen=True)
class Outcome:
    """A stage that was run or skipped, and the time that this run spent on it."""

    artifact: Artifact
    status: Literal["ran", "skipped"]
    seconds: float


def plan(recipe: Recipe, *, first: str | None = None, until: str | None = None) -> list[Planned]:
    """Lists the stages of a run without running them, and tells which are finished.

    Args:
        recipe: of the run.
        first: this stage and all later ones run again.
        until: the last stage.

    Raises:
        InputError: the base model or the data is missing or cannot be used, or the recipe has no such stage.
    """
    stages = [stage for stage in STAGES if stage == "train" or getattr(recipe, stage) is not None]
    for name in (first, until):
        if name is not None and name not in stages:
            raise InputError(f"the recipe has no stage {name!r}. There are: {', '.join(stages)}.")
    last = stages.index(until) + 1 if until else None
    parent = key_of(
        parent=_base_fingerprint(recipe),
        stage="base",
        method=recipe.task_name,
        options=recipe.task_options().model_dump(mode="json"),
        data="",
        seed=0,
    )
    task = tasks.load(recipe.task_name, recipe.task_options())
    fingerprint, run_again = data.fingerprint(recipe.data, recipe.seed, task), False
    planned = []
    for stage in stages[:last]:
        run_again = run_again or stage == first
        method, options = recipe.method(stage), _key_options(recipe, stage)
        key = key_of(parent=parent, stage=stage, method=method, options=options, data=fingerprint, seed=recipe.seed)
        target = output(recipe) / f"{stage}-{key[:10]}"
        would: Literal["run", "be skipped"] = "be skipped" if is_finished(target) and not run_again else "run"
        planned.append(Planned(stage, method, target, key, parent, would))
        parent = key
    return planned


def _base_fingerprint(recipe: Recipe) -> str:
    """Checks that the base model can be used, and returns its fingerprint."""
    base = base_model.resolve(recipe.model, recipe.revision)
    if recipe.prune is not None:
        base_model.require_prunable(base)
    is_exported_whole = recipe.export is not None and recipe.prune is None
    task = tasks.load(recipe.task_name, recipe.task_options())
    reads = tasks.reads(task, recipe.data.columns)
    if recipe.serve.redact and "text" not in reads:
        raise InputError("serve.redact masks personal data in texts, and this model reads images alone. Remove it.")
    preflight.check(base, task.AUTO_CLASS, recipe.data.max_tokens, is_exported_whole=is_exported_whole, reads=reads)
    return base.fingerprint


def _key_options(recipe: Recipe, stage: str) -> dict[str, object]:
    """Returns everything in the recipe that changes the artifact of a stage."""
    sections: list[BaseModel] = [recipe.options(stage)]
    if stage == "quantize":
        sections.append(recipe.gates)
    if stage == "package":
        sections += [recipe.gates, recipe.serve]
    hashes = {str(path): f"{path.suffix} {sha256_of(sources.require(str(path)))}" for path in recipe.files(stage)}
    options = {type(section).__name__: _with_hashes(section.model_dump(mode="json"), hashes) for section in sections}
    if stage == "train" and recipe.labels:
        options["labels"] = recipe.labels
    if stage == "package":
        options |= {"name": recipe.name, "library": bundle.library_hash()}
    return options


def _with_hashes(content: Any, hashes: Mapping[str, str]) -> Any:
    """Replaces the paths of files by their hashes, so that the key does not change if a project is moved."""
    if isinstance(content, dict):
        return {name: _with_hashes(value, hashes) for name, value in content.items()}
    if isinstance(content, list):
        return [_with_hashes(value, hashes) for value in content]
    return hashes.get(content, content) if isinstance(content, str) else content


def output(recipe: Recipe) -> Path:
    """Returns the directory of the run."""
    return Path(recipe.output or f"runs/{recipe.name}")


def run(
    recipe: Recipe,
    *,
    first: str | None = None,
    until: str | None = None,
    only: str | None = None,
    notify: Callable[[Planned, Outcome | None], None] | None = None,
) -> list[Outcome]:
    """Runs a recipe; stages whose artifact is finished and undamaged are skipped.

    Args:
        recipe: of the run.
        first: this stage and all later ones run again.
        until: the last stage to run.
        only: the only stage to run; the earlier ones must be finished.
        notify: called with each stage before it starts (outcome None) and after it has ended.

    Returns:
        The outcomes of the stages, in order.

    Raises:
        GateError: a gate of the recipe stops the run; the artifact is kept.
        BusyError: another run is working in the same directory.
        InputError: the recipe, the data or the model cannot be used.

    Example:
        >>> run(recipe.load("recipe.yaml"))[-1].artifact.path  # doctest: +SKIP
    """
    with locked(output(recipe)), _own_settings():
        for draft in output(recipe).glob(".*.draft"):  # of a run that was killed
            shutil.rmtree(draft, ignore_errors=True)
        outcomes: list[Outcome] = []
        task = tasks.load(recipe.task_name, recipe.task_options())
        dataset = cache(lambda: data.load(recipe.data, task, recipe.seed))
        for planned in plan(recipe, first=first, until=until or only):
            if only is not None and planned.stage != only and not planned.finished:
                raise InputError(f"{only} starts from {planned.stage}, which is not finished. Run deploykit run first.")
            if notify:
                notify(planned, None)
            outcomes.append(_run_stage(recipe, planned, outcomes, dataset))
            if notify:
                notify(planned, outcomes[-1])
            report.write(output(recipe), [outcome.artifact for outcome in outcomes], recipe.gates)
            _check_gates(recipe, outcomes[-1].artifact)
            _link(output(recipe) / planned.stage, planned.target)
        return outcomes


@contextmanager
def _own_settings() -> Iterator[None]:
    """Sets torch's threads for all stages, silences libraries, and restores the settings that they change."""
    with ExitStack() as settings:
        settings.enter_context(process_state.threads(hardware.cpu_limit()))
        settings.enter_context(process_state.environment())
        settings.enter_context(process_state.draws())
        settings.enter_context(process_state.quiet("transformers"))
        settings.enter_context(process_state.no_progress_bars())
        yield


def _run_stage(recipe: Recipe, planned: Planned, outcomes: list[Outcome], dataset: Callable[[], Dataset]) -> Outcome:
    started = time.monotonic()
    parent = outcomes[-1].artifact if outcomes else None
    artifact = _finished(planned, parent)
    status: Literal["ran", "skipped"] = "skipped"
    if artifact is None:
        work = output(recipe) / WORK / planned.target.name
        if is_finished(planned.target):  # run again, from the beginning
            shutil.rmtree(work, ignore_errors=True)
        earlier = tuple(outcome.artifact for outcome in outcomes)
        job = Job(
            recipe, planned.stage, parent, planned.target, work, planned.key, planned.parent_key, dataset, earlier
        )
        work.mkdir(parents=True, exist_ok=True)
        artifact, status = COMPUTE[planned.stage](job), "ran"
        shutil.rmtree(work, ignore_errors=True)
    if planned.stage == "package" and recipe.package and recipe.package.store:
        bundle.store(artifact)
    return Outcome(artifact, status, round(time.monotonic() - started, 1))


def _finished(planned: Planned, parent: Artifact | None) -> Artifact | None:
    """Returns the existing artifact if it was made from this parent; raises ArtifactError if it is damaged."""
    if not planned.finished:
        return None
    artifact = Artifact.load(planned.target)
    artifact.verify()
    return artifact if artifact.manifest.parent_digest == (parent.digest if parent else "") else None


def _check_gates(recipe: Recipe, artifact: Artifact) -> None:
    """Raises GateError if a gate stops the run after this artifact."""
    failed = gates.failing(recipe.gates, gates.recorded(recipe.gates, artifact.manifest.own))
    if failed:
        raise GateError(
            f"a gate stops {artifact.manifest.stage}, on the validation split:\n{failed}\n"
            f"The artifact is kept in {artifact.path}."
        )


def _link(link: Path, target: Path) -> None:
    """Makes or replaces a symbolic link atomically."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def train(recipe: Recipe) -> Artifact:
    """Runs only the stage `train`."""
    return _run_only(recipe, "train")


def prune(recipe: Recipe) -> Artifact:
    """Runs only the stage `prune`; the earlier stages must be finished."""
    return _run_only(recipe, "prune")


def export(recipe: Recipe) -> Artifact:
    """Runs only the stage `export`; the earlier stages must be finished."""
    return _run_only(recipe, "export")


def quantize(recipe: Recipe) -> Artifact:
    """Runs only the stage `quantize`; the earlier stages must be finished."""
    return _run_only(recipe, "quantize")


def package(recipe: Recipe) -> Artifact:
    """Runs only the stage `package`; the earlier stages must be finished."""
    return _run_only(recipe, "package")


def _run_only(recipe: Recipe, stage: str) -> Artifact:
    return run(recipe, only=stage)[-1].artifact
