"""The golden set: inputs with the answers that were verified, replayed wherever the artifact runs.

`reference` holds the scores of the model before compression, `scores` those of the packaged graph, and
`float_scores`, where the package carries the float graph too, those of that one. A replay must give the
answers of the graph that runs again: a probability may move by `tolerance` (see `tolerance_of`), the float
graph's by `LEAST`, and a label may change only where its margin is smaller than that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from deploykit import hardware
from deploykit.artifact import GOLDEN, Artifact, signing
from deploykit.errors import ArtifactError
from deploykit.inference import fallback
from deploykit.inference.predictor import Predictor
from deploykit.methods import Frozen
from deploykit.tasks import Float32, softmax

TOLERANCE = 0.02  # largest shift of a probability, where the float graph's answers are not known
LEAST, MOST = 0.001, 0.1  # bounds of a tolerance: float32 differs by less than one, and the other still finds a fault
QUANTILE, SAFETY = 0.9, 2.0


class Golden(Frozen):
    """Inputs and scores; each entry of the scores is one array `(units, labels)`."""

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


def tolerance_of(exact: Sequence[Float32], scores: Sequence[Float32]) -> float:
    """Returns by how much a probability may move where the same graph runs on another machine.

    Another machine rounds differently, and by less than quantization did: the bound is twice the shift that nine in
    ten answers stayed within when the graph was quantized. Not the largest: a few answers that were undecided move
    by far more than all others, and would make the check blind.

    Args:
        exact: the float graph's answers, one array `(units, labels)` an input.
        scores: those of the graph that is packaged, the same shapes.
    """
    return float(np.clip(SAFETY * np.quantile(moved(scores, exact), QUANTILE), LEAST, MOST))


def replay(golden: Golden, predictor: Predictor, expected: Literal["scores", "float_scores"] = "scores") -> None:
    """Asks every question again, and one as long as an input may be.

    Args:
        golden: the set.
        predictor: of the packaged graph, or of the float graph beside it.
        expected: whose answers must come.

    Raises:
        ArtifactError: answers moved (says how many, and the largest shift), or long inputs cannot be read.
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
            " This machine computes the model differently, or a file is not the one that was verified: choose again"
            " here with `deploykit retune`, or fetch the package again."
        )
    _ask_at_length(golden, predictor)


def _ask_at_length(golden: Golden, predictor: Predictor) -> None:
    """A graph with fewer positions than it is said to have fails here, and not at a client's long text."""
    text, tokens = predictor.tokenizer.longest(min(golden.texts, key=len)), predictor.tokenizer.max_tokens
    try:
        predictor.predict([text], [None if golden.pairs[0] is None else text])
    except Exception as error:  # each engine has its own
        raise ArtifactError(
            f"the graph fails on an input of {tokens} tokens, the most that the manifest names:"
            f" {str(error).splitlines()[0]}. Package the model again, with a smaller data.max_tokens."
        ) from error


def moved(found: Sequence[Float32], expected: Sequence[Float32]) -> list[float]:
    """Returns the largest shift of a probability in each answer; infinite where the shapes differ."""
    return [
        float(np.abs(softmax(a) - softmax(b)).max(initial=0.0)) if a.shape == b.shape else float("inf")
        for a, b in zip(found, expected, strict=True)
    ]


def changed(found: Sequence[Float32], expected: Sequence[Float32]) -> int:
    """Counts the answers that name another label somewhere, or are no numbers."""
    return sum(
        not np.isfinite(a).all() or not np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1))
        for a, b in zip(found, expected, strict=True)
    )


def verify(path: Path | str, key: Path | None = None) -> Artifact:
    """Checks that an artifact is what was made: every file, and the golden answers where it has them.

    Where this machine cannot run what was chosen, the float graph is asked, as a service would do here.

    Args:
        path: its directory.
        key: a public key in PEM that must have signed it; None asks for no signature.

    Raises:
        ArtifactError: names the file that changed, says how far answers moved, or why a signature does not hold.
        InputError: the key cannot be read.
        MissingExtraError: signatures cannot be checked, for want of a library.

    Example:
        >>> verify("runs/movie-reviews/package").manifest.kind  # doctest: +SKIP
        'package'
    """
    artifact = Artifact.load(path)
    artifact.verify()
    if key is not None:
        signing.check(artifact, key)
    if artifact.file(GOLDEN).is_file():
        predictor, served = fallback.load(artifact, hardware.cpu_limit())
        replay(load(artifact), predictor, served.expected)
    return artifact
