"""The job of a stage: what it works on, and how it evaluates and seals the artifact that it made."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

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
from deploykit.artifact.execution import Execution
from deploykit.data import Dataset
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import scoring, timing
from deploykit.images import AnyTokenizer, load_tokenizer
from deploykit.inference.predictor import Predictor
from deploykit.recipe import Recipe

log = logging.getLogger(__name__)
BUSY_WARNING = (
    "other processes held the cores for %.0f %% of the time of measuring p50: measure again on a quiet machine"
)
# All artifacts carry the trained model's predictions beside their own; this comes before the names of their splits.
REFERENCE_PREFIX = "reference."
# Fields of the manifest that a stage takes from its parent, unless it changes them.
INHERITED_FIELDS = {"labels", "pair", "max_tokens", "base_model", "base_revision", "weights_precision"}
# Packages whose versions the manifest records.
RECORDED_LIBRARIES = (
    *("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "onnx"),
    *("onnxruntime", "onnxruntime-gpu", "optimum", "optimum-onnx", "bentoml", "pillow"),
)


@dataclass(frozen=True)
class Job:
    """One stage of one run.

    Attributes:
        recipe: of the run.
        stage: name of the stage.
        parent: the artifact that the stage starts from; None for the first stage.
        target: the directory of the new artifact.
        work: a directory for checkpoints and the like, which survives a killed run.
        key: the content key of the new artifact.
        parent_key: the content key of the parent; for the first stage, a key of the base model.
        dataset: loads the labelled data on its first call.
        earlier: the artifacts of all stages before this one, in order.
        started: when the stage began, on the clock `time.monotonic`.
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
    def required_parent(self) -> Artifact:
        """The parent; raises a RuntimeError in the first stage, which has none."""
        if self.parent is None:
            raise RuntimeError(f"the stage {self.stage} has no parent")
        return self.parent

    @property
    def task(self) -> tasks.Task:
        """The recipe's task, with its options."""
        return tasks.load(self.recipe.task_name, self.recipe.task_options())

    def tokenizer(self) -> AnyTokenizer:
        """Loads the parent's tokenizer."""
        return load_tokenizer(self.required_parent.path, self.required_parent.manifest.max_tokens)

    def spec(self) -> tasks.Spec:
        """Returns the labels and the task's options that the parent's manifest holds."""
        return tasks.spec_of(self.required_parent.manifest)

    def torch_predictor(self, model: torch.nn.Module, tokenizer: AnyTokenizer, spec: tasks.Spec) -> Predictor:
        """Returns a predictor that runs a torch model on all cores."""
        engine = TorchModel(model, Execution(engine="torch", threads=hardware.cpu_limit()))
        return Predictor(self.task, spec, tokenizer, engine)

    def predictions(self) -> dict[str, list[tasks.Prediction]]:
        """Reads the parent's predictions, by split; those of the trained model have `REFERENCE_PREFIX`."""
        return scoring.load_stored(self.required_parent, self.task)

    def copy_files(self, folder: Path, *names: str) -> None:
        """Copies the parent's configuration and tokenizer, and files with these names, as far as the parent has them.

        Args:
            folder: the draft of the new artifact.
            names: of further files.
        """
        for name in (CONFIG, GENERATION, ARCHITECTURE, *TOKENIZER_FILES, *names):
            if self.required_parent.file(name).is_file():
                shutil.copy(self.required_parent.file(name), folder / name)

    def finish(
        self,
        folder: Path,
        *,
        kind: Kind,
        predictor: Predictor,
        predictions: scoring.Predictions,
        parameters: int,
        details: dict[str, Any],
        facts: Mapping[str, Any] | None = None,
        cost: Cost | None = None,
    ) -> Artifact:
        """Computes the metrics, stores the predictions and seals the draft.

        Args:
            folder: the draft, complete except for the predictions.
            kind: of the artifact.
            predictor: runs the model of the artifact; its time is measured.
            predictions: of the model, for the validation and test splits.
            parameters: number of weights.
            details: the entry of this stage in the manifest's `details`.
            facts: those of `INHERITED_FIELDS` that differ from the parent's; the first stage gives all of them.
            cost: the measured cost of batches, if it was measured.
        """
        parent, recipe = self.parent.manifest if self.parent else None, self.recipe
        inherited = parent.model_dump(include=INHERITED_FIELDS) if parent else {"weights_precision": "float32"}
        fields = {**inherited, **(facts or {})}
        arrays_by_split = {split: self.task.dump(rows) for split, rows in predictions.items()}
        reference = self._reference_arrays() or {
            f"{REFERENCE_PREFIX}{split}": arrays for split, arrays in arrays_by_split.items()
        }
        save_predictions(folder, {**arrays_by_split, **reference})
        history = self._history(
            predictor,
            parameters=parameters,
            bytes=(folder / (WEIGHTS if kind == "checkpoint" else GRAPH)).stat().st_size,
            metrics=scoring.compute_metrics(self.task, predictor.spec, self.dataset(), predictions, recipe.seed),
        )
        return seal(
            folder,
            self.target,
            **fields,
            **provenance_fields(),
            kind=kind,
            name=recipe.name,
            task=recipe.task_name,
            task_options=predictor.spec.options.model_dump(mode="json"),
            stage=self.stage,
            method=recipe.method(self.stage),
            options=recipe.options(self.stage).model_dump(mode="json"),
            key=self.key,
            parent_key=self.parent_key,
            parent_digest=self.parent.digest if self.parent else "",
            seed=recipe.seed,
            history=history,
            execution=predictor.engine.execution,
            cost=cost,
            serve=recipe.serve.with_defaults(getattr(self.task, "SERVE", {})),
            details={**(parent.details if parent else {}), self.stage: details},
        )

    def _history(self, predictor: Predictor, **measured: Any) -> list[Step]:
        """Returns the entries of the manifest's history: those of earlier stages, and one of this stage.

        The models of all stages are timed together, so that their times can be compared; see `timing`.

        Args:
            predictor: runs the model of this stage.
            measured: further fields of this stage's entry.
        """
        cores, rows = hardware.cpu_limit(), self.dataset().validation
        predictors = {artifact.manifest.stage: Predictor.load(artifact, cores) for artifact in self.earlier}
        times_ms, waited_share = timing.typical_latencies({**predictors, self.stage: predictor}, rows)
        if waited_share > BUSY_SHARE:
            log.warning(BUSY_WARNING, 100 * waited_share)
        earlier = [
            step.model_copy(update={"p50_ms": times_ms[step.stage], "waited_share": waited_share})
            if step.stage in times_ms
            else step
            for step in (self.parent.manifest.history if self.parent else ())
        ]
        current = Step(
            stage=self.stage,
            method=self.recipe.method(self.stage),
            key=self.key,
            seconds=round(time.monotonic() - self.started, 1),
            p50_ms=times_ms[self.stage],
            waited_share=waited_share,
            **measured,
        )
        return [*earlier, current]

    def _reference_arrays(self) -> dict[str, Any]:
        """Returns the trained model's predictions, which the parent carries, as arrays; empty in the first stage."""
        splits = load_predictions(self.parent) if self.parent else {}
        return {name: arrays for name, arrays in splits.items() if name.startswith(REFERENCE_PREFIX)}


def provenance_fields() -> dict[str, Any]:
    """Returns the manifest's fields `hardware`, `versions` and `created` for an artifact that is made now."""
    versions = {"deploykit": __version__}
    for name in RECORDED_LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"hardware": hardware.describe(), "versions": versions, "created": created}
