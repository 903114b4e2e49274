"""What a stage works on, and how it evaluates and seals the artifact that it made. Shared by the five stages."""

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
BUSY = "other processes held the cores for %.0f %% of the time of measuring p50: measure again on a quiet machine"
REFERENCE = "reference."  # prefix of the trained model's predictions, which every later artifact carries
INHERITED = {"labels", "pair", "max_tokens", "base_model", "base_revision", "weights_precision"}
LIBRARIES = (
    *("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "onnx"),
    *("onnxruntime", "onnxruntime-gpu", "optimum", "optimum-onnx", "bentoml", "pillow"),
)


@dataclass(frozen=True)
class Job:
    """One stage of one run.

    `parent` is the artifact that the stage starts from (None for the first), `target` the directory to write, and
    `work` a directory that survives a killed run. `dataset` loads the labelled data on its first call, and `earlier`
    are the artifacts of all stages before this one, in order.
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
        return tasks.load(self.recipe.task_name, self.recipe.task_options())

    def tokenizer(self) -> AnyTokenizer:
        """Loads the parent's tokenizer."""
        return load_tokenizer(self.source.path, self.source.manifest.max_tokens)

    def spec(self) -> tasks.Spec:
        """Returns the labels and the options of the parent's task."""
        return tasks.spec_of(self.source.manifest)

    def torch_predictor(self, model: torch.nn.Module, tokenizer: AnyTokenizer, spec: tasks.Spec) -> Predictor:
        """Returns a predictor of a torch model on all cores."""
        engine = TorchModel(model, Execution(engine="torch", threads=hardware.cpu_limit()))
        return Predictor(self.task, spec, tokenizer, engine)

    def predictions(self) -> dict[str, list[tasks.Prediction]]:
        """Reads the parent's predictions, by split."""
        return scoring.load_stored(self.source, self.task)

    def copy(self, folder: Path, *names: str) -> None:
        """Copies the parent's configuration, its tokenizer and the named files into a draft, if it has them."""
        for name in (CONFIG, GENERATION, ARCHITECTURE, *TOKENIZER_FILES, *names):
            if self.source.file(name).is_file():
                shutil.copy(self.source.file(name), folder / name)

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
            predictor: the model, which is timed.
            predictions: for the validation and test splits.
            parameters: number of weights.
            details: of this stage, for the manifest.
            facts: manifest fields that differ from the parent's; the first stage gives all of them.
            cost: the measured cost of batches, if there is one.
        """
        parent, recipe = self.parent.manifest if self.parent else None, self.recipe
        inherited = parent.model_dump(include=INHERITED) if parent else {"weights_precision": "float32"}
        fields = {**inherited, **(facts or {})}
        own = {name: self.task.dump(rows) for name, rows in predictions.items()}
        reference = self.reference() or {f"{REFERENCE}{name}": arrays for name, arrays in own.items()}
        save_predictions(folder, {**own, **reference})
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
            **stamp(),
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
        """Returns the steps so far and this stage's, with times from one measurement by `timing.typical_latencies`."""
        cores, rows = hardware.cpu_limit(), self.dataset().validation
        predictors = {artifact.manifest.stage: Predictor.load(artifact, cores) for artifact in self.earlier}
        times, waited = timing.typical_latencies({**predictors, self.stage: predictor}, rows)
        if waited > BUSY_SHARE:
            log.warning(BUSY, 100 * waited)
        earlier = [
            step.model_copy(update={"p50_ms": times[step.stage], "waited_share": waited})
            if step.stage in times
            else step
            for step in (self.parent.manifest.history if self.parent else ())
        ]
        own = Step(
            stage=self.stage,
            method=self.recipe.method(self.stage),
            key=self.key,
            seconds=round(time.monotonic() - self.started, 1),
            p50_ms=times[self.stage],
            waited_share=waited,
            **measured,
        )
        return [*earlier, own]

    def reference(self) -> dict[str, Any]:
        """Returns the trained model's predictions as arrays, which the parent carries; empty in the first stage."""
        splits = load_predictions(self.parent) if self.parent else {}
        return {name: arrays for name, arrays in splits.items() if name.startswith(REFERENCE)}


def stamp() -> dict[str, Any]:
    """Returns the manifest fields that say where, with what and when an artifact is made."""
    versions = {"deploykit": __version__}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"hardware": hardware.describe(), "versions": versions, "created": created}
