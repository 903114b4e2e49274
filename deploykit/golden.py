"""The golden set: inputs with the answers that were verified, replayed wherever the artifact runs.

`reference` holds the scores of the model before compression, `scores` those of the packaged graph, and
`float_scores`, where the package carries the float graph too, those of that one. A replay must give the
answers of the graph that runs again: a probability may move by `tolerance`, because another CPU rounds int8
differently, the float graph's by `LEAST`, and a label may change only where its margin is smaller than that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from deploykit import fallback, hardware
from deploykit.artifact import GOLDEN, Artifact
from deploykit.errors import ArtifactError
from deploykit.predictor import Predictor
from deploykit.tasks import Float32, softmax

TOLERANCE = 0.02  # largest shift of a probability
LEAST = 0.001  # by less do machines differ in float32


class Golden(BaseModel):
    """Inputs and scores; each entry of the scores is one array `(units, labels)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: list[str]
    pairs: list[str | None]
    scores: list[list[list[float]]]
    reference: list[list[list[float]]]
    float_scores: list[list[list[float]]] | None = None
    tolerance: float = TOLERANCE


def save(folder: Path, golden: Golden) -> None:
    """Writes the golden set into a draft."""
    (folder / GOLDEN).write_text(golden.model_dump_json() + "\n", encoding="utf-8")


def load(artifact: Artifact) -> Golden:
    """Reads an artifact's golden set.

    Raises:
        ArtifactError: it has none, or a damaged one.
    """
    try:
        return Golden.model_validate_json(artifact.file(GOLDEN).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{artifact.file(GOLDEN)} cannot be read ({error}). Package the model again.") from error


def replay(golden: Golden, predictor: Predictor, expected: Literal["scores", "float_scores"] = "scores") -> None:
    """Asks every question again.

    Args:
        golden: the set.
        predictor: of the packaged graph, or of the float graph beside it.
        expected: whose answers must come.

    Raises:
        ArtifactError: answers moved; says how many, and the largest shift.
    """
    answers = golden.scores if expected == "scores" else golden.float_scores
    tolerance = golden.tolerance if expected == "scores" else LEAST
    if answers is None:
        raise ArtifactError("the golden set holds no answers of the float graph. Package the model again.")
    found = predictor.predict(golden.texts, golden.pairs)
    shifts = moved(found, [np.array(rows, dtype=np.float32) for rows in answers])
    wrong = [index for index, shift in enumerate(shifts) if not shift <= tolerance]  # NaN is wrong too
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(shifts)} golden answers moved: a probability shifted by up to {max(shifts):.3f},"
            f" expected at most {tolerance:.3g}. The first is number {wrong[0]} of the set."
            " This machine computes the model differently, or a file is not the one that was verified."
        )


def moved(found: Sequence[Float32], expected: Sequence[Float32]) -> list[float]:
    """Returns the largest shift of a probability in each answer; infinite where the shapes differ."""
    return [
        float(np.abs(softmax(a) - softmax(b)).max(initial=0.0)) if a.shape == b.shape else float("inf")
        for a, b in zip(found, expected, strict=True)
    ]


def verify(path: Path | str) -> Artifact:
    """Checks that an artifact is what was made: every file, and the golden answers where it has them.

    Where this machine cannot run what was chosen, the float graph is asked, as a service would do here.

    Raises:
        ArtifactError: names the file that changed, or says how far answers moved.

    Example:
        >>> verify("runs/movie-reviews/package").manifest.kind  # doctest: +SKIP
        'package'
    """
    artifact = Artifact.load(path)
    artifact.verify()
    if artifact.file(GOLDEN).is_file():
        predictor, served = fallback.load(artifact, hardware.cpu_limit())
        replay(load(artifact), predictor, served.expected)
    return artifact
