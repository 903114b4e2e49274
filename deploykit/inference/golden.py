"""The golden set: inputs with verified answers, replayed wherever the artifact runs.

`reference` holds the scores of the model before compression, `scores` those of the packaged graph, and `float_scores`
those of the float graph, if the package carries one. A replay must reproduce the answers of the graph that runs: a
probability may move by `tolerance` (see `tolerance_of`), or by `MIN_TOLERANCE` for the float graph.
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

DEFAULT_TOLERANCE = 0.02  # if the answers of the float graph are not known
MIN_TOLERANCE, MAX_TOLERANCE = 0.001, 0.1  # above the noise of float32, and small enough to find a wrong model
TOLERANCE_QUANTILE = 0.9  # of the shifts by quantization
TOLERANCE_FACTOR = 2.0  # times that quantile


class Golden(Frozen):
    """Inputs and scores; each entry of the scores is one array `(units, labels)`."""

    texts: list[str]
    pairs: list[str | None]
    scores: list[list[list[float]]]
    reference: list[list[list[float]]]
    float_scores: list[list[list[float]]] | None = None
    tolerance: float = DEFAULT_TOLERANCE


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
    """Returns by how much a probability may move if the same graph runs on another machine.

    Another machine rounds differently, but by less than quantization did: the bound is twice the shift that 90 % of the
    answers stayed within when the graph was quantized. The largest shift would be too wide a bound: a few undecided
    answers move by far more than all others.

    Args:
        exact: answers of the float graph, one array `(units, labels)` per input.
        scores: answers of the packaged graph, the same shapes.
    """
    shift = TOLERANCE_FACTOR * np.quantile(moved(scores, exact), TOLERANCE_QUANTILE)
    return float(np.clip(shift, MIN_TOLERANCE, MAX_TOLERANCE))


def replay(golden: Golden, predictor: Predictor, expected: Literal["scores", "float_scores"] = "scores") -> None:
    """Predicts every input of the set again, and one of the largest length.

    Args:
        golden: the set.
        predictor: of the packaged graph, or of the float graph beside it.
        expected: the scores that it must reproduce.

    Raises:
        ArtifactError: answers moved (says how many, and the largest shift), or the longest input fails.
    """
    answers = golden.scores if expected == "scores" else golden.float_scores
    tolerance = golden.tolerance if expected == "scores" else MIN_TOLERANCE
    if answers is None:
        raise ArtifactError("the golden set holds no answers of the float graph. Package the model again.")
    scores = predictor.predict(golden.texts, golden.pairs)
    shifts = moved(scores, [np.array(rows, dtype=np.float32) for rows in answers])
    wrong = [index for index, shift in enumerate(shifts) if not shift <= tolerance]  # NaN is wrong too
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(shifts)} golden answers moved: a probability shifted by up to {max(shifts):.3f},"
            f" expected at most {tolerance:.3g}. The first is number {wrong[0]} of the set."
            " This machine computes the model differently, or a file is not the one that was verified: choose again"
            " here with `deploykit retune`, or fetch the package again."
        )
    _predict_longest(golden, predictor)


def _predict_longest(golden: Golden, predictor: Predictor) -> None:
    """Finds a graph with fewer positions than the manifest says, before a client's long text does."""
    text, tokens = predictor.tokenizer.longest(min(golden.texts, key=len)), predictor.tokenizer.max_tokens
    try:
        predictor.predict([text], [None if golden.pairs[0] is None else text])
    except Exception as error:  # each engine has its own
        raise ArtifactError(
            f"the graph fails on an input of {tokens} tokens, the most that the manifest names:"
            f" {str(error).splitlines()[0]}. Package the model again, with a smaller data.max_tokens."
        ) from error


def moved(scores: Sequence[Float32], expected: Sequence[Float32]) -> list[float]:
    """Returns the largest shift of a probability in each answer; infinite if the shapes differ."""
    return [
        float(np.abs(softmax(a) - softmax(b)).max(initial=0.0)) if a.shape == b.shape else float("inf")
        for a, b in zip(scores, expected, strict=True)
    ]


def changed(scores: Sequence[Float32], expected: Sequence[Float32]) -> int:
    """Counts the answers of which a unit has another label, or scores that are not finite."""
    return sum(
        not np.isfinite(a).all() or not np.array_equal(a.argmax(axis=-1), b.argmax(axis=-1))
        for a, b in zip(scores, expected, strict=True)
    )


def verify(path: Path | str, key: Path | None = None) -> Artifact:
    """Checks that an artifact is unchanged: every file, and the answers of its golden set, if it has one.

    If this machine cannot run the chosen graph, the float graph is checked, as a service would run it here.

    Args:
        path: its directory.
        key: public key in PEM of the required signature; None: no signature is required.

    Raises:
        ArtifactError: a file changed, answers moved, or the signature is not valid.
        InputError: the key cannot be read.
        MissingExtraError: the library that checks signatures is not installed.

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
