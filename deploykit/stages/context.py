"""What a stage is given, and how it hands over what it made. Shared by the five stages."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploykit import __version__, hardware, tasks
from deploykit.artifact import (
    ARCHITECTURE,
    BUSY_SHARE,
    CONFIG,
    GENERATION,
    GRAPH,
    TOKENIZER_FILES,
    WEIGHTS,
    Artifact,
    Kind,
    Step,
    load_predictions,
    save_predictions,
    seal,
)
from deploykit.artifact.cost import Cost
from deploykit.data import Dataset
from deploykit.evaluation import scoring, timing
from deploykit.inference.predictor import Predictor
from deploykit.recipe import Recipe
from deploykit.tokenizer import Tokenizer

log = logging.getLogger(__name__)
BUSY = "other processes held the cores for %.0f %% of the time of measuring p50: measure again on a quiet machine"
REFERENCE = "reference."  # prefix of the trained model's scores, which every later artifact carries
LIBRARIES = (
    *("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "onnx"),
    *("onnxruntime", "onnxruntime-gpu", "optimum", "optimum-onnx", "bentoml"),
)


@dataclass(frozen=True)
class Job:
    """One stage of one run.

    `parent` is the artifact that the stage starts from (None for the first), `target` the directory to
    make, `work` one for what must outlive a kill; `dataset` loads the labelled data when it is called, and `earlier`
    are the artifacts of all stages before, in order.
    """

    recipe: Recipe
    stage: str
    parent: Artifact | None
    target: Path
    work: Path
    key: str
    parent_key: str
    dataset: Callable[[], Dataset]
    earlier: tuple[Artifact, ...] = ()
    started: float = field(default_factory=time.monotonic)

    @property
    def source(self) -> Artifact:
        """The parent of a stage that must have one."""
        if self.parent is None:
            raise RuntimeError(f"the stage {self.stage} has no parent")
        return self.parent

    @property
    def task(self) -> tasks.Task:
        """The recipe's task."""
        return tasks.load(self.recipe.task)

    def tokenizer(self) -> Tokenizer:
        """The parent's tokenizer."""
        return Tokenizer.load(self.source.path, self.source.manifest.max_tokens)

    def copy(self, folder: Path, *names: str) -> None:
        """Copies the configuration, the tokenizer and further files of the parent into a draft."""
        for name in (CONFIG, GENERATION, ARCHITECTURE, *TOKENIZER_FILES, *names):
            if self.source.file(name).is_file():
                shutil.copy(self.source.file(name), folder / name)

    def finish(
        self,
        folder: Path,
        *,
        kind: Kind,
        predictor: Predictor,
        scores: scoring.Scores,
        parameters: int,
        details: dict[str, Any],
        facts: Mapping[str, Any] | None = None,
        cost: Cost | None = None,
    ) -> Artifact:
        """Judges the scores, stores them and seals the draft.

        Args:
            folder: the draft, complete but for the predictions.
            kind: of the artifact.
            predictor: what was evaluated; it is timed.
            scores: of the validation and test splits.
            parameters: of the model.
            details: what the manifest keeps of this stage.
            facts: manifest fields that differ from the parent's; the first stage gives all.
            cost: what batches take, where that was measured.
        """
        inherited = self.parent.manifest.model_dump(include=INHERITED) if self.parent else {}
        fields = {"weights_precision": "float32", **inherited, **(facts or {})}
        labels = fields["labels"]
        reference = self.reference() or {f"{REFERENCE}{name}": rows for name, rows in scores.items()}
        save_predictions(folder, {**scores, **reference})
        times, waited = self._times(predictor)
        step = Step(
            stage=self.stage,
            method=self.recipe.method(self.stage),
            key=self.key,
            seconds=round(time.monotonic() - self.started, 1),
            parameters=parameters,
            bytes=(folder / (WEIGHTS if kind == "checkpoint" else GRAPH)).stat().st_size,
            p50_ms=times[self.stage],
            waited_share=waited,
            metrics=scoring.judge(self.task, self.dataset(), labels, scores, self.recipe.seed),
        )
        return seal(
            folder,
            self.target,
            **fields,
            kind=kind,
            name=self.recipe.name,
            task=self.recipe.task,
            stage=self.stage,
            method=step.method,
            options=self.recipe.options(self.stage).model_dump(mode="json"),
            key=self.key,
            parent_key=self.parent_key,
            parent_digest=self.parent.digest if self.parent else "",
            seed=self.recipe.seed,
            history=(*self._history(times, waited), step),
            execution=predictor.engine.execution,
            cost=cost,
            serve=self.recipe.serve,
            details={**(self.parent.manifest.details if self.parent else {}), self.stage: details},
            hardware=hardware.describe(),
            versions=versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _times(self, predictor: Predictor) -> tuple[dict[str, float], float]:
        """Times what this stage made in turn with what all stages before have made; see `timing.typical`."""
        cores, rows = hardware.cpu_limit(), self.dataset().validation
        opened = {found.manifest.stage: Predictor.load(found, cores) for found in self.earlier}
        texts, pairs = [row.text for row in rows], [row.pair for row in rows]
        times, waited = timing.typical({**opened, self.stage: predictor}, texts, pairs)
        if waited > BUSY_SHARE:
            log.warning(BUSY, 100 * waited)
        return times, waited

    def _history(self, times: Mapping[str, float], waited: float) -> list[Step]:
        """Returns the steps before this one with the times that were measured together with its own."""
        return [
            step.model_copy(update={"p50_ms": times[step.stage], "waited_share": waited})
            if step.stage in times
            else step
            for step in (self.parent.manifest.history if self.parent else ())
        ]

    def reference(self) -> dict[str, Any]:
        """Returns the trained model's scores that the parent carries; empty in the first stage."""
        found = load_predictions(self.parent) if self.parent else {}
        return {name: rows for name, rows in found.items() if name.startswith(REFERENCE)}


INHERITED = {"labels", "pair", "max_tokens", "base_model", "base_revision", "weights_precision"}


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that the path stands on, those that are installed."""
    found = {"deploykit": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
