"""What runs where an artifact's choice cannot: its float graph, on ONNX Runtime in float32.

A choice holds where it was measured. Where the CPU lacks what it relied on, int8 may saturate and bfloat16 is
emulated; where its engine is missing, nothing runs at all. The service and `deploykit verify` both load through
here, so that they judge alike; both then ask the golden set whether what runs is right.
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
    """What runs: how, which file, and why it is not what was chosen (empty: it is)."""

    execution: Execution
    graph: str = GRAPH
    reason: str = ""

    @property
    def expected(self) -> Literal["scores", "float_scores"]:
        """Which of the golden answers must come."""
        return "float_scores" if self.reason else "scores"


def load(artifact: Artifact, cores: int) -> tuple[Predictor, Served]:
    """Opens what this machine can run of an artifact; a warning says so where that is the float graph.

    Args:
        artifact: that holds graphs.
        cores: that the engine may use.

    Raises:
        ArtifactError: this machine cannot run what was chosen, and there is no float graph.
    """
    served = servable(artifact, hardware.cpu_features(), cores)
    try:
        predictor = _open(artifact, served)
    except Exception as error:  # each engine has its own
        message = " ".join(str(error).split()) or type(error).__name__
        instead = floating(artifact, cores, f"{served.execution.engine} cannot run {served.graph} here ({message})")
        if _kind(instead) == _kind(served):
            raise
        served, predictor = instead, _open(artifact, instead)
    if served.reason:
        message = "%s: %s runs in its place, on %s in %s. To choose again on this machine: deploykit retune %s"
        where = served.execution
        logger.warning(message, served.reason, served.graph, where.engine, where.precision, artifact.path)
    return predictor, served


def servable(artifact: Artifact, features: Collection[str], cores: int) -> Served:
    """Says what a CPU can run of an artifact: what was chosen, or the float graph.

    Args:
        artifact: that holds graphs.
        features: of the CPU.
        cores: that the engine may use.

    Raises:
        ArtifactError: the CPU lacks what was chosen for, and there is no float graph.
    """
    chosen = artifact.manifest.execution
    missing = [name for name in chosen.features if name not in features]
    if missing:
        return floating(artifact, cores, f"this CPU lacks {', '.join(missing)}, which the choice of {GRAPH} relied on")
    return Served(chosen.on(cores))


def floating(artifact: Artifact, cores: int, reason: str) -> Served:
    """Returns the float graph in place of what was chosen, with all cores to one call.

    A chosen graph whose weights are in float32 is as good.

    Args:
        artifact: that holds graphs.
        cores: that the engine may use.
        reason: why the choice cannot be run.

    Raises:
        ArtifactError: it carries no float graph.
    """
    if artifact.file(FLOAT_GRAPH).is_file():
        return Served(Execution(threads=cores), FLOAT_GRAPH, reason)
    if artifact.manifest.weights_precision == "float32":
        return Served(Execution(threads=cores), GRAPH, reason)
    raise ArtifactError(
        f"{reason}, and {artifact.path} carries no float graph to fall back to."
        " Use a machine like the one where it was chosen, or run the recipe on this one."
    )


def _kind(served: Served) -> tuple[str, ...]:
    where = served.execution
    return where.engine, where.precision, where.device, served.graph


def _open(artifact: Artifact, served: Served) -> Predictor:
    return Predictor.load(artifact, served.execution.threads, served.execution, served.graph)
