"""The bench of a search: it writes, opens and evaluates candidates, and holds what all of them need for that."""

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
from deploykit.selection.candidates import Spec, installed_engines
from deploykit.selection.choice import Candidate

SCREENING_SAMPLE_S = 0.2  # about how long the float graph takes for the mixed texts of the screening
# Part of the keys of cached measurements. Change the text whenever candidates are made or timed in another way.
MEASUREMENT_VERSION = "padded as in use, weights of 7 bits without VNNI"


class Evaluation(Frozen):
    """A candidate's metric and its comparison with the float graph; `p95_ms` is None unless a gate limits it."""

    metric: Metric
    comparison: Comparison
    p95_ms: Metric | None = None

    def verdicts(self, gates: GateSection, size_bytes: int) -> tuple[Verdict, ...]:
        """Returns the verdict of each gate."""
        return verdicts(gates, self.comparison, p95_ms=self.p95_ms, size_bytes=size_bytes)


@dataclass(frozen=True)
class Bench:
    """Writes, opens and evaluates candidates.

    Attributes:
        graph: the exported float graph.
        base: its predictor on all cores.
        folder: where the graphs of candidates are written.
        workload: the texts to time.
        calibration: padded batches of training rows, for quantizers.
        evaluate: evaluates a candidate, given its predictor.
        gates: the section `gates` of the recipe.
        data_key: identifies the rows that `evaluate` uses: the key of the stage before, or the package's digest.
    """

    graph: Path
    base: Predictor
    folder: Path
    workload: Workload
    calibration: Sequence[Batch]
    evaluate: Callable[[Spec, Predictor], Evaluation]
    gates: GateSection
    data_key: str

    @cached_property
    def key(self) -> str:
        """A hash of what all measurements of this bench depend on: the graph, the data, the machine and the engines."""
        names = ("cpu", "cores", "cpu_features", "gpus")
        machine = {name: value for name, value in hardware.describe().items() if name in names}
        versions = [engines.load(name).versions() for name in installed_engines()]
        return measurements.key_of(
            MEASUREMENT_VERSION, sha256_of(self.graph), self.data_key, self.workload.key, machine, versions
        )

    @cached_property
    def screening_workload(self) -> Workload:
        """A part of the workload, whose mixed texts take the float graph about `SCREENING_SAMPLE_S` seconds."""
        start = time.perf_counter()
        for batch in self.workload.mixed_batches(self.base.engine.execution.batch_tokens, self.base.engine):
            self.base.engine.run(batch)
        return self.workload.subsample(min(1.0, SCREENING_SAMPLE_S / max(time.perf_counter() - start, 1e-9)))

    def file(self, spec: Spec) -> Path:
        """Returns the path of a candidate's graph, which is written on the first call.

        Raises:
            DeploykitError: the graph cannot be made.
        """
        source = self.variant(spec.graph)
        if spec.quantizer == "none":
            return source
        method = quantizers.load(spec.quantizer)
        options = method.Options.model_validate(dict(spec.options))
        return self._write_once(
            f"{spec.graph}-{spec.quantizer}-{measurements.key_of(*spec.graph_key)[:12]}",
            lambda target: method.quantize(source, options, target, self.calibration, spec.float_nodes),
        )

    def variant(self, name: Graph) -> Path:
        """Returns the path of a variant of the graph, which is written on the first call."""
        if name == "exported":
            return self.graph
        return self._write_once(name, lambda target: variants.write(name, self.graph, target))

    def facts(self, spec: Spec) -> dict[str, Any]:
        """Returns the facts that the quantizer, or the variant, reported about a candidate's graph."""
        graph = self.file(spec)
        return {} if graph == self.graph else json.loads(graph.with_suffix(".json").read_text(encoding="utf-8"))

    def _write_once(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Returns the path of a graph; unless it exists, writes it and, beside it, the facts that `write` returns."""
        target = self.folder / f"{name}.onnx"
        if not target.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{name}.draft.onnx"
            target.with_suffix(".json").write_text(json.dumps(write(draft)), encoding="utf-8")
            atomic.move(draft, target)
        return target

    def open(self, spec: Spec) -> Predictor:
        """Returns a predictor that runs a candidate."""
        if self.file(spec) == self.graph and spec.execution == self.base.engine.execution:
            return self.base
        return with_engine(self.base, self.file(spec), spec.execution)

    def write(self, folder: Path, spec: Spec, kept: Candidate) -> Predictor:
        """Writes the graph of the kept candidate into a folder, and beside it the float graph if it is another.

        Args:
            folder: of the artifact that is being written.
            spec: of the kept candidate.
            kept: the same candidate with its measured `execution`.

        Returns:
            A predictor that runs the written graph.
        """
        chosen = self.file(spec)
        shutil.copy(chosen, folder / GRAPH)
        if chosen != self.graph:
            shutil.copy(self.graph, folder / FLOAT_GRAPH)
        relied_on = {
            *hardware.precision_features(kept.precision),
            *hardware.precision_features(kept.execution.precision),
        }
        execution = kept.execution.model_copy(update={"features": tuple(sorted(relied_on))})
        return with_engine(self.base, folder / GRAPH, execution)


def with_engine(base: Predictor, graph: Path, execution: Execution) -> Predictor:
    """Returns a copy of a predictor that runs another graph, or the same in another way."""
    return replace(base, engine=engines.load(execution.engine).load(graph, execution))
