"""The golden set: inputs with the answers that were verified, replayed wherever the artifact runs.

`reference` holds the scores of the model before compression, `scores` those of the packaged graph; a
replay must give the latter again. Another CPU rounds int8 differently, so probabilities may move by
`tolerance`, and a label may change only where its margin is smaller than that.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from deploykit import hardware
from deploykit.artifact import GOLDEN, Artifact
from deploykit.errors import ArtifactError
from deploykit.predictor import Predictor
from deploykit.tasks import Float32, softmax

TOLERANCE = 0.02  # largest shift of a probability


class Golden(BaseModel):
    """Inputs and scores; each entry of `scores` and `reference` is one array `(units, labels)`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: list[str]
    pairs: list[str | None]
    scores: list[list[list[float]]]
    reference: list[list[list[float]]]
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


def replay(golden: Golden, predictor: Predictor) -> None:
    """Asks every question again.

    Raises:
        ArtifactError: answers moved; says how many, and the largest shift.
    """
    found = predictor.predict(golden.texts, golden.pairs)
    shifts = moved(found, [np.array(rows, dtype=np.float32) for rows in golden.scores])
    wrong = [index for index, shift in enumerate(shifts) if not shift <= golden.tolerance]  # NaN is wrong too
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(shifts)} golden answers moved: a probability shifted by up to {max(shifts):.3f},"
            f" expected at most {golden.tolerance}. The first is number {wrong[0]} of the set."
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

    Raises:
        ArtifactError: names the file that changed, or says how far answers moved.

    Example:
        >>> verify("runs/movie-reviews/package").manifest.kind  # doctest: +SKIP
        'package'
    """
    artifact = Artifact.load(path)
    artifact.verify()
    if artifact.file(GOLDEN).is_file():
        replay(load(artifact), Predictor.load(artifact, hardware.cpu_limit()))
    return artifact
