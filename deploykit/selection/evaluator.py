"""The bench on which candidates are made and evaluated: the float graph, timed texts, rows to calibrate and judge."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from deploykit import engines, hardware, quantizers
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Metric, atomic, sha256_of
from deploykit.artifact.execution import Execution
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict, verdicts
from deploykit.evaluation.workload import Workload
from deploykit.graphs import variants
from deploykit.inference.predictor import Predictor
from deploykit.methods import Frozen
from deploykit.quantizers import Batch
from deploykit.quantizers.auto import Graph
from deploykit.recipe import GateSection
from deploykit.selection import measurements
from deploykit.selection.candidates import Spec, installed
from deploykit.selection.choice import Candidate

SAMPLE_S = 0.2  # running time of the float graph in a first measurement
PROTOCOL = "padded as in use, weights of 7 bits without VNNI"  # if it changes, older measurements are not used


class Judged(Frozen):
    """A candidate's metric and its comparison with the float graph; `p95_ms` if a gate limits it."""

    metric: Metric
    comparison: Comparison
    p95_ms: Metric | None = None

    def verdicts(self, gates: GateSection, size_bytes: int) -> tuple[Verdict, ...]:
        """Returns the verdict of each gate."""
        return verdicts(gates, self.comparison, p95_ms=self.p95_ms, size_bytes=size_bytes)


@dataclass(frozen=True)
class Bench:
    """Writes, opens and evaluates candidates.

    `graph` is the exported float graph, and `base` its predictor on all cores. `folder` is for graphs that are written,
    `work` are the texts to time, and `calibration` padded batches of training rows. `judge` evaluates a predictor, and
    `data` is a hash of the rows that it evaluates.
    """

    graph: Path
    base: Predictor
    folder: Path
    work: Workload
    calibration: Sequence[Batch]
    judge: Callable[[Spec, Predictor], Judged]
    gates: GateSection
    data: str

    @cached_property
    def key(self) -> str:
        """The common part of the keys of measurements: the graph, the data and the machine."""
        names = ("cpu", "cores", "cpu_features", "gpus")
        machine = {name: value for name, value in hardware.describe().items() if name in names}
        versions = [engines.load(name).versions() for name in installed()]
        return measurements.key_of(PROTOCOL, sha256_of(self.graph), self.data, self.work.key, machine, versions)

    @cached_property
    def sample(self) -> Workload:
        """The part of the mixed texts that the float graph runs in `SAMPLE_S` seconds, for first measurements."""
        start = time.perf_counter()
        for batch in self.work.grouped(self.base.engine.execution.batch_tokens, self.base.engine):
            self.base.engine.run(batch)
        return self.work.part(min(1.0, SAMPLE_S / max(time.perf_counter() - start, 1e-9)))

    def file(self, spec: Spec) -> Path:
        """Returns a candidate's graph, written on the first call; raises a DeploykitError if it cannot be made."""
        source = self.variant(spec.graph)
        if spec.quantizer == "none":
            return source
        method = quantizers.load(spec.quantizer)
        options = method.Options.model_validate(dict(spec.options))
        return self._written(
            f"{spec.graph}-{spec.quantizer}-{measurements.key_of(*spec.file)[:12]}",
            lambda target: method.quantize(source, options, target, self.calibration, spec.keep),
        )

    def variant(self, name: Graph) -> Path:
        """Returns a variant of the graph, which is written on the first call."""
        if name == "exported":
            return self.graph
        return self._written(name, lambda target: variants.write(name, self.graph, target))

    def facts(self, spec: Spec) -> dict[str, Any]:
        """Returns the facts that were stored when a candidate's graph was written."""
        notes = self.file(spec).with_suffix(".json")
        return json.loads(notes.read_text(encoding="utf-8")) if self.file(spec) != self.graph else {}

    def _written(self, name: str, write: Callable[[Path], Any]) -> Path:
        target = self.folder / f"{name}.onnx"
        if not target.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{name}.draft.onnx"
            target.with_suffix(".json").write_text(json.dumps(write(draft)), encoding="utf-8")
            atomic.move(draft, target)
        return target

    def open(self, spec: Spec) -> Predictor:
        """Opens a candidate."""
        if self.file(spec) == self.graph and spec.execution == self.base.engine.execution:
            return self.base
        return opened(self.base, self.file(spec), spec.execution)

    def write(self, folder: Path, spec: Spec, kept: Candidate) -> Predictor:
        """Writes the chosen graph into a draft, and the float graph if it differs; returns a predictor of the first."""
        chosen = self.file(spec)
        shutil.copy(chosen, folder / GRAPH)
        if chosen != self.graph:
            shutil.copy(self.graph, folder / FLOAT_GRAPH)
        relied_on = {
            *hardware.precision_features(kept.precision),
            *hardware.precision_features(kept.execution.precision),
        }
        execution = kept.execution.model_copy(update={"features": tuple(sorted(relied_on))})
        return opened(self.base, folder / GRAPH, execution)


def opened(base: Predictor, graph: Path, execution: Execution) -> Predictor:
    """Returns a predictor on another graph or engine."""
    return replace(base, engine=engines.load(execution.engine).load(graph, execution))
