"""What a machine runs if it cannot run the chosen graph: the float graph, on ONNX Runtime in float32.

A choice is valid for the machine where it was measured. If the CPU lacks features that it relied on, int8 may saturate
and bfloat16 is emulated; if its engine is missing, nothing runs. The service and `deploykit verify` both load through
this module, so that they agree; both then replay the golden set.
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
    """How a graph runs, which one, and why it is not the chosen one (empty: it is)."""

    execution: Execution
    graph: str = GRAPH
    reason: str = ""

    @property
    def expected(self) -> Literal["predictions", "float_predictions"]:
        """Which predictions of the golden set it must reproduce."""
        return "float_predictions" if self.reason else "predictions"


def load(artifact: Artifact, cores: int) -> tuple[Predictor, Served]:
    """Opens the chosen graph of an artifact, or else the float graph, with a warning.

    Args:
        artifact: one that holds graphs.
        cores: for the engine.

    Raises:
        ArtifactError: this machine cannot run the chosen graph, and there is no float graph.
    """
    served = servable(artifact, hardware.cpu_features(), cores)
    try:
        predictor = _open(artifact, served)
    except Exception as error:  # each engine has its own
        message = " ".join(str(error).split()) or type(error).__name__
        instead = floating(artifact, cores, f"{served.execution.engine} cannot run {served.graph} here ({message})")
        if (instead.execution.backend, instead.graph) == (served.execution.backend, served.graph):
            raise
        served, predictor = instead, _open(artifact, instead)
    if served.reason:
        message = "%s: %s runs in its place, on %s in %s. To choose again on this machine: deploykit retune %s"
        execution = served.execution
        logger.warning(message, served.reason, served.graph, execution.engine, execution.precision, artifact.path)
    return predictor, served


def servable(artifact: Artifact, features: Collection[str], cores: int) -> Served:
    """Returns what a CPU with these features can run of an artifact: the chosen graph, or the float graph.

    Raises:
        ArtifactError: the CPU lacks features that the choice relied on, and there is no float graph.
    """
    chosen = artifact.manifest.execution
    missing = [name for name in chosen.features if name not in features]
    if missing:
        return floating(artifact, cores, f"this CPU lacks {', '.join(missing)}, which the choice of {GRAPH} relied on")
    return Served(chosen.with_cores(cores))


def floating(artifact: Artifact, cores: int, reason: str) -> Served:
    """Returns the float graph, or the chosen graph if its weights are in float32; all cores run one call.

    Args:
        artifact: one that holds graphs.
        cores: for the engine.
        reason: why the chosen graph cannot be run.

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
    return Predictor.load(artifact, served.execution.threads, served.execution, served.graph)
