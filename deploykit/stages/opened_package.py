"""Opens a package with its golden set and its float graph, so that its candidates can be measured again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import hardware
from deploykit.artifact import FLOAT_GRAPH, GRAPH, Artifact
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, InputError
from deploykit.inference import golden
from deploykit.inference.golden import Golden
from deploykit.inference.predictor import Predictor
from deploykit.selection.choice import Candidate
from deploykit.tasks import Prediction


@dataclass(frozen=True)
class Package:
    """An opened package.

    Attributes:
        artifact: the package.
        golden: its golden set.
        graph: the file of its float graph.
        base: a predictor of the float graph, on all cores.
    """

    artifact: Artifact
    golden: Golden
    graph: Path
    base: Predictor

    @property
    def inputs(self) -> list[Any]:
        """The inputs of the golden set, as objects of the task."""
        return self.golden.items(self.base.task)

    @property
    def float_predictions(self) -> list[Prediction]:
        """The float graph's predictions for these inputs, from the golden set."""
        return golden.from_stored(self.golden.float_predictions or {}, self.base.task)

    @property
    def quantization(self) -> dict[str, Any]:
        """What the stage `quantize` wrote into the manifest's details, where the package was made."""
        details: dict[str, Any] = self.artifact.manifest.details["quantize"]
        return details

    @property
    def kept(self) -> Candidate:
        """The chosen candidate, from the last retuning or from `quantize`."""
        candidates = self.artifact.manifest.details.get("retune", self.quantization)["candidates"]
        return next(Candidate.model_validate(candidate) for candidate in candidates if candidate["kept"])


def open_package(path: Path | str) -> Package:
    """Opens a package and checks that its float graph gives the golden answers on this machine.

    Raises:
        InputError: the artifact is no package, or a package without candidates.
        ArtifactError: it is damaged, or it carries no float graph.
    """
    artifact, cores = Artifact.load(path), hardware.cpu_limit()
    if artifact.manifest.kind != "package" or not artifact.manifest.details.get("quantize", {}).get("candidates"):
        raise InputError(f"{path} is no package with measured candidates. Give one that a recipe has made.")
    artifact.verify()
    graph = FLOAT_GRAPH if artifact.file(FLOAT_GRAPH).is_file() else GRAPH
    base = Predictor.load(artifact, cores, Execution(threads=cores), graph)
    package = Package(artifact, golden.load(artifact), artifact.file(graph), base)
    if graph == GRAPH and (package.kept.graph, package.kept.quantizer) != ("exported", "none"):
        raise ArtifactError(f"{path} carries no float graph to choose from. Package it with package.float_graph: true.")
    golden.replay(package.golden, base, "float_predictions")
    return package
