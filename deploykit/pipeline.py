"""The loop over the stages: what is done is skipped, what is missing is made, in order.

A run owns one directory. Each stage's artifact lies there under its name and the beginning of its content
key, so that a changed recipe makes new artifacts and loses none; a link with the plain name of the stage
points to the newest that kept its gates. Two runs cannot work in one directory at the same time.
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
    """One stage of a run: where its artifact goes, and whether it is there already."""

    stage: str
    method: str
    target: Path
    key: str
    parent_key: str
    would: Literal["run", "be skipped"]

    @property
    def finished(self) -> bool:
        """Whether the artifact is there already and is not to be made again."""
        return self.would == "be skipped"


@dataclass(frozen=True)
class Outcome:
    """A stage that was run or skipped; `seconds` are those that this run spent on it."""

    artifact: Artifact
    status: Literal["ran", "skipped"]
    seconds: float


def plan(recipe: Recipe, *, first: str | None = None, until: str | None = None) -> list[Planned]:
    """Says which stages a run has, and which are finished, without running any.

    Args:
        recipe: the whole statement of the run.
        first: this stage and all after it are made again.
        until: the last stage.

    Raises:
        InputError: the base model or the data is not there or cannot be used, or the recipe has no such stage.
    """
    for name in (first, until):
        if name is not None and name not in _stages(recipe):
            raise InputError(f"the recipe has no stage {name!r}. There are: {', '.join(_stages(recipe))}.")
    base = base_model.find(recipe.model, recipe.revision)
    if recipe.prune is not None:
        base_model.require_prunable(base)
    whole = recipe.export is not None and recipe.prune is None
    preflight.check(base, tasks.load(recipe.task).AUTO_CLASS, recipe.data.max_tokens, whole=whole)
    parent = key_of(parent=base.fingerprint, stage="base", method=recipe.task, options={}, data="", seed=0)
    fingerprint = data.fingerprint(recipe.data, recipe.seed)
    found = []
    again = False
    for stage in _stages(recipe):
        again = again or stage == first
        key = key_of(
            parent=parent,
            stage=stage,
            method=recipe.method(stage),
            options=_content(recipe, stage),
            data=fingerprint,
            seed=recipe.seed,
        )
        target = output(recipe) / f"{stage}-{key[:10]}"
        would: Literal["run", "be skipped"] = "be skipped" if is_finished(target) and not again else "run"
        found.append(Planned(stage, recipe.method(stage), target, key, parent, would))
        if stage == until:
            break
        parent = key
    return found


def _content(recipe: Recipe, stage: str) -> dict[str, object]:
    """Returns everything of the recipe that changes what a stage makes."""
    sections: list[BaseModel] = [recipe.options(stage)]
    if stage == "quantize":
        sections.append(recipe.gates)
    if stage == "package":
        sections += [recipe.gates, recipe.serve]
    content: dict[str, object] = {type(found).__name__: found.model_dump(mode="json") for found in sections}
    hashes = {str(path): f"{path.suffix} {sha256_of(sources.require(str(path)))}" for path in recipe.files(stage)}
    content = _replaced(content, hashes)
    if stage == "train" and recipe.labels:
        content["labels"] = recipe.labels
    return {**content, **({"name": recipe.name, "library": bundle.library_hash()} if stage == "package" else {})}


def _replaced(content: Any, hashes: Mapping[str, str]) -> Any:
    """Puts the hashes of files in place of their paths, so that a project may be moved."""
    if isinstance(content, dict):
        return {name: _replaced(value, hashes) for name, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, hashes) for value in content]
    return hashes.get(content, content) if isinstance(content, str) else content


def output(recipe: Recipe) -> Path:
    """Returns the run's directory."""
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
        recipe: the whole statement of the run.
        first: this stage and all after it are made again.
        until: the last stage to run.
        only: run this stage alone; those before it must be finished.
        notify: called with each stage before it starts (outcome None) and after it ended.

    Returns:
        One outcome a stage, in order.

    Raises:
        GateError: a promise of the recipe was broken; what was made is kept.
        BusyError: another run is working in the same directory.
        InputError: the recipe, the data or the model cannot be used.

    Example:
        >>> run(recipe.load("recipe.yaml"))[-1].artifact.path  # doctest: +SKIP
    """
    with locked(output(recipe)), _own_settings():
        for left in output(recipe).glob(".*.draft"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        outcomes: list[Outcome] = []
        dataset = cache(lambda: data.load(recipe.data, tasks.load(recipe.task), recipe.seed))
        for found in plan(recipe, first=first, until=until or only):
            if only is not None and found.stage != only and not found.finished:
                raise InputError(f"{only} starts from {found.stage}, which is not finished. Run deploykit run first.")
            if notify:
                notify(found, None)
            outcomes.append(_stage(recipe, found, outcomes, dataset))
            if notify:
                notify(found, outcomes[-1])
            report.write(output(recipe), [outcome.artifact for outcome in outcomes], recipe.gates)
            _check_gates(recipe, outcomes[-1].artifact)
            _link(output(recipe) / found.stage, found.target)
        return outcomes


@contextmanager
def _own_settings() -> Iterator[None]:
    """Gives every stage the same threads, silences libraries, and restores what they change in the process."""
    with ExitStack() as settings:
        settings.enter_context(process_state.threads(hardware.cpu_limit()))
        settings.enter_context(process_state.environment())
        settings.enter_context(process_state.draws())
        settings.enter_context(process_state.quiet("transformers"))
        settings.enter_context(process_state.no_progress_bars())
        yield


def _stages(recipe: Recipe) -> list[str]:
    return [stage for stage in STAGES if stage == "train" or getattr(recipe, stage) is not None]


def _stage(recipe: Recipe, planned: Planned, outcomes: list[Outcome], dataset: Callable[[], Dataset]) -> Outcome:
    started = time.monotonic()
    parent = outcomes[-1].artifact if outcomes else None
    artifact = _finished(planned, parent)
    status: Literal["ran", "skipped"] = "skipped"
    if artifact is None:
        work = output(recipe) / WORK / planned.target.name
        if is_finished(planned.target):  # made again, from the beginning
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
    """Returns the artifact that is there already, if it is undamaged and was made from this parent."""
    if not planned.finished:
        return None
    artifact = Artifact.load(planned.target)
    artifact.verify()
    return artifact if artifact.manifest.parent_digest == (parent.digest if parent else "") else None


def _check_gates(recipe: Recipe, artifact: Artifact) -> None:
    """Holds what a stage found against the gates; a quantized graph that is stopped by one was not kept."""
    failed = gates.failing(recipe.gates, gates.recorded(recipe.gates, artifact.manifest.own))
    if failed:
        raise GateError(
            f"a gate stops {artifact.manifest.stage}, on the validation split:\n{failed}\n"
            f"What was made is kept in {artifact.path}."
        )


def _link(link: Path, target: Path) -> None:
    """Points a link at the newest artifact of a stage, in one step."""
    temporary = link.with_name(f".{link.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def train(recipe: Recipe) -> Artifact:
    """Runs the stage `train` alone and returns its checkpoint."""
    return _alone(recipe, "train")


def prune(recipe: Recipe) -> Artifact:
    """Runs the stage `prune` alone; the stages before it must be finished."""
    return _alone(recipe, "prune")


def export(recipe: Recipe) -> Artifact:
    """Runs the stage `export` alone; the stages before it must be finished."""
    return _alone(recipe, "export")


def quantize(recipe: Recipe) -> Artifact:
    """Runs the stage `quantize` alone; the stages before it must be finished."""
    return _alone(recipe, "quantize")


def package(recipe: Recipe) -> Artifact:
    """Runs the stage `package` alone; the stages before it must be finished."""
    return _alone(recipe, "package")


def _alone(recipe: Recipe, stage: str) -> Artifact:
    return run(recipe, only=stage)[-1].artifact
