"""Opens the chosen graph of an artifact, or the float graph on ONNX Runtime if this machine cannot run the choice.

A choice is valid for the machine where it was measured. On a CPU that lacks features on which the choice relied, int8
may saturate and bfloat16 is emulated. Without the chosen engine nothing runs. The service and `deploykit verify` both
open artifacts here, so that they run the same graph. Both then replay the golden set.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError
from deploykit.inference.predictor import Predictor

logger = logging.getLogger("deploykit.inference.fallback")


@dataclass(frozen=True)
class Served:
    """The graph that a machine runs.

    Attributes:
        execution: how it runs.
        graph: name of its file.
        reason: why the chosen graph cannot run here; empty if it is the chosen graph.
    """

    execution: Execution
    graph: str = GRAPH
    reason: str = ""

    @property
    def expected(self) -> Literal["predictions", "float_predictions"]:
        """The field of the golden set with the predictions that the graph must reproduce."""
        return "float_predictions" if self.reason else "predictions"


def load(artifact: Artifact, cores: int) -> tuple[Predictor, Served]:
    """Opens the chosen graph of an artifact; if that fails, opens the float graph and logs a warning.

    Args:
        artifact: one that holds graphs.
        cores: number of cores for the engine.

    Raises:
        ArtifactError: this machine cannot run the chosen graph, and there is no float graph.
    """
    served = choose_graph(artifact, hardware.cpu_features(), cores)
    try:
        predictor = _open(artifact, served)
    except Exception as error:  # each engine raises errors of its own
        message = " ".join(str(error).split()) or type(error).__name__
        reason = f"{served.execution.engine} cannot run {served.graph} here ({message})"
        substitute = choose_float_graph(artifact, cores, reason)
        if (substitute.execution.backend, substitute.graph) == (served.execution.backend, served.graph):
            raise  # the substitute is the graph that has just failed
        served, predictor = substitute, _open(artifact, substitute)
    if served.reason:
        message = "%s: %s runs in its place, on %s in %s. To choose again on this machine: deploykit retune %s"
        execution = served.execution
        logger.warning(message, served.reason, served.graph, execution.engine, execution.precision, artifact.path)
    return predictor, served


def choose_graph(artifact: Artifact, features: Collection[str], cores: int) -> Served:
    """Returns the chosen graph of an artifact if a CPU can run it, or else the float graph.

    Args:
        artifact: one that holds graphs.
        features: of the CPU, as `hardware.cpu_features` names them.
        cores: number of cores for the engine.

    Raises:
        ArtifactError: the CPU lacks features that the choice relied on, and there is no float graph.
    """
    chosen = artifact.manifest.execution
    missing = [name for name in chosen.features if name not in features]
    if missing:
        return choose_float_graph(
            artifact, cores, f"this CPU lacks {', '.join(missing)}, which the choice of {GRAPH} relied on"
        )
    return Served(chosen.with_cores(cores))


def choose_float_graph(artifact: Artifact, cores: int, reason: str) -> Served:
    """Returns the float graph of an artifact, which may be the chosen graph, on ONNX Runtime.

    Args:
        artifact: one that holds graphs.
        cores: number of cores for the engine; all of them compute one batch.
        reason: why the choice cannot run.

    Raises:
        ArtifactError: there is no float graph.
    """
    if artifact.file(FLOAT_GRAPH).is_file():
        return Served(Execution(threads=cores), FLOAT_GRAPH, reason)
    if artifact.manifest.weights_precision == "float32":
        return Served(Execution(threads=cores), GRAPH, reason)
    raise ArtifactError(
        f"{reason}, and {artifact.path} carries no float graph to fall back to."
        " Use a machine like the one where it was chosen, or run the recipe on this one."
    )


def _open(artifact: Artifact, served: Served) -> Predictor:
    """Loads the served graph with its execution."""
    return Predictor.load(artifact, served.execution.threads, served.execution, served.graph)
