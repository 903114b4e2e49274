"""Runs the stages of a recipe in order, and skips those whose artifact exists.

A run has a directory of its own, which is locked meanwhile. The directory of an artifact is named after its stage and
the beginning of its content key, so a changed recipe adds artifacts and deletes none. A link with the name of the stage
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
from deploykit.artifact import Artifact, content_key, is_finished, sha256_of
from deploykit.data import Dataset, sources
from deploykit.errors import GateError, InputError
from deploykit.evaluation import gates
from deploykit.modeling import base_model
from deploykit.recipe import STAGES, Recipe
from deploykit.stages import bundle, exporting, packaging, preflight, pruning, quantization, training
from deploykit.stages.context import Job
from deploykit.stages.run_lock import locked

WORK_FOLDER = ".work"  # in the directory of the run: checkpoints of unfinished stages
STAGE_FUNCTIONS: dict[str, Callable[[Job], Artifact]] = {
    "train": training.train,
    "prune": pruning.prune,
    "export": exporting.export,
    "quantize": quantization.quantize,
    "package": packaging.package,
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStage:
    """A stage as a run would treat it.

    Attributes:
        stage: name of the stage.
        method: name of its method in the recipe.
        target: the directory of its artifact.
        key: the content key of its artifact.
        parent_key: the content key of the artifact before it.
        would: what a run would do with the stage.
    """

    stage: str
    method: str
    target: Path
    key: str
    parent_key: str
    would: Literal["run", "be skipped"]

    @property
    def finished(self) -> bool:
        """Whether the artifact exists already and will not be made again."""
        return self.would == "be skipped"


@dataclass(frozen=True)
class StageOutcome:
    """A stage that was run or skipped, and the seconds that this run spent on it."""

    artifact: Artifact
    status: Literal["ran", "skipped"]
    seconds: float


def plan(recipe: Recipe, *, first: str | None = None, until: str | None = None) -> list[PlannedStage]:
    """Lists the stages of a run, and checks the base model and the data; runs no stage.

    Args:
        recipe: of the run.
        first: this stage and all later ones run again, even if they are finished.
        until: the last stage of the run.

    Raises:
        InputError: the base model or the data is missing or cannot be used, or the recipe has no such stage.
    """
    stages = [stage for stage in STAGES if stage == "train" or getattr(recipe, stage) is not None]
    for name in (first, until):
        if name is not None and name not in stages:
            raise InputError(f"the recipe has no stage {name!r}. There are: {', '.join(stages)}.")
    last = stages.index(until) + 1 if until else None
    parent = content_key(
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
        key = content_key(
            parent=parent, stage=stage, method=method, options=options, data=fingerprint, seed=recipe.seed
        )
        target = output_folder(recipe) / f"{stage}-{key[:10]}"
        would: Literal["run", "be skipped"] = "be skipped" if is_finished(target) and not run_again else "run"
        planned.append(PlannedStage(stage, method, target, key, parent, would))
        parent = key
    return planned


def _base_fingerprint(recipe: Recipe) -> str:
    """Checks that the base model can be used, and returns its fingerprint."""
    base = base_model.resolve(recipe.model, recipe.revision)
    if recipe.prune is not None:
        base_model.require_prunable(base)
    is_exported_whole = recipe.export is not None and recipe.prune is None
    task = tasks.load(recipe.task_name, recipe.task_options())
    reads = tasks.input_kinds(task, recipe.data.columns)
    if recipe.serve.redact and "text" not in reads:
        raise InputError("serve.redact masks personal data in texts, and this model reads images alone. Remove it.")
    preflight.check(base, task.AUTO_CLASS, recipe.data.max_tokens, is_exported_whole=is_exported_whole, reads=reads)
    return base.fingerprint


def _key_options(recipe: Recipe, stage: str) -> dict[str, object]:
    """Returns everything in the recipe that changes the artifact of a stage, for its content key."""
    sections: list[BaseModel] = [recipe.options(stage)]
    if stage == "quantize":
        sections.append(recipe.gates)
    if stage == "package":
        sections += [recipe.gates, recipe.serve]
    hashes = {str(path): f"{path.suffix} {sha256_of(sources.locate_file(str(path)))}" for path in recipe.files(stage)}
    options = {type(section).__name__: _with_hashes(section.model_dump(mode="json"), hashes) for section in sections}
    if stage == "train" and recipe.labels:
        options["labels"] = recipe.labels
    if stage == "package":
        options |= {"name": recipe.name, "library": bundle.library_hash()}
    return options


def _with_hashes(content: Any, hashes: Mapping[str, str]) -> Any:
    """Replaces the paths of files in nested JSON by their hashes, so that a project can be moved without new keys."""
    if isinstance(content, dict):
        return {name: _with_hashes(value, hashes) for name, value in content.items()}
    if isinstance(content, list):
        return [_with_hashes(value, hashes) for value in content]
    return hashes.get(content, content) if isinstance(content, str) else content


def output_folder(recipe: Recipe) -> Path:
    """Returns the directory of the run."""
    return Path(recipe.output or f"runs/{recipe.name}")


def run(
    recipe: Recipe,
    *,
    first: str | None = None,
    until: str | None = None,
    only: str | None = None,
    notify: Callable[[PlannedStage, StageOutcome | None], None] | None = None,
) -> list[StageOutcome]:
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
    with locked(output_folder(recipe)), _process_settings():
        for draft in output_folder(recipe).glob(".*.draft"):  # left by a run that was killed
            shutil.rmtree(draft, ignore_errors=True)
        outcomes: list[StageOutcome] = []
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
            report.write(output_folder(recipe), [outcome.artifact for outcome in outcomes], recipe.gates)
            _check_gates(recipe, outcomes[-1].artifact)
            _link(output_folder(recipe) / planned.stage, planned.target)
        return outcomes


@contextmanager
def _process_settings() -> Iterator[None]:
    """Sets torch's threads and silences libraries for all stages, and restores the caller's settings afterwards."""
    with ExitStack() as settings:
        settings.enter_context(process_state.torch_threads(hardware.cpu_limit()))
        settings.enter_context(process_state.restored_environment())
        settings.enter_context(process_state.restored_random_state())
        settings.enter_context(process_state.quiet_loggers("transformers"))
        settings.enter_context(process_state.no_progress_bars())
        yield


def _run_stage(
    recipe: Recipe, planned: PlannedStage, outcomes: list[StageOutcome], dataset: Callable[[], Dataset]
) -> StageOutcome:
    """Runs a stage unless its artifact is finished; `outcomes` are those of the stages before it."""
    started = time.monotonic()
    parent = outcomes[-1].artifact if outcomes else None
    artifact = _finished_artifact(planned, parent)
    status: Literal["ran", "skipped"] = "skipped"
    if artifact is None:
        work = output_folder(recipe) / WORK_FOLDER / planned.target.name
        if is_finished(planned.target):  # it is made again, and not from checkpoints of before
            shutil.rmtree(work, ignore_errors=True)
        earlier = tuple(outcome.artifact for outcome in outcomes)
        job = Job(
            recipe, planned.stage, parent, planned.target, work, planned.key, planned.parent_key, dataset, earlier
        )
        work.mkdir(parents=True, exist_ok=True)
        artifact, status = STAGE_FUNCTIONS[planned.stage](job), "ran"
        shutil.rmtree(work, ignore_errors=True)
    if planned.stage == "package" and recipe.package and recipe.package.store:
        bundle.add_to_store(artifact)
    return StageOutcome(artifact, status, round(time.monotonic() - started, 1))


def _finished_artifact(planned: PlannedStage, parent: Artifact | None) -> Artifact | None:
    """Returns the finished artifact of a stage; None if there is none, or one that was made from another parent."""
    if not planned.finished:
        return None
    artifact = Artifact.load(planned.target)
    artifact.verify()
    return artifact if artifact.manifest.parent_digest == (parent.digest if parent else "") else None


def _check_gates(recipe: Recipe, artifact: Artifact) -> None:
    """Raises a GateError if a gate stops the run after this artifact."""
    failures = gates.failing(recipe.gates, gates.stored_verdicts(recipe.gates, artifact.manifest.own_details))
    if failures:
        raise GateError(
            f"a gate stops {artifact.manifest.stage}, on the validation split:\n{failures}\n"
            f"The artifact is kept in {artifact.path}."
        )


def _link(link: Path, target: Path) -> None:
    """Makes or replaces a symbolic link to `target`, which is in the same directory, atomically."""
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
    """Runs one stage and returns its artifact."""
    return run(recipe, only=stage)[-1].artifact
