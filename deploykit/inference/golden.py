"""The golden set: inputs with verified predictions, which are predicted again wherever the artifact runs.

Such a replay must reproduce the predictions of the graph that runs. Those of the packaged graph may move by the
`tolerance` of the set (see `tolerance_of`), those of the float graph by `MIN_TOLERANCE`. How far a prediction moved is
the `distance` that its task defines, mostly the largest difference of probabilities.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError, model_validator

from deploykit import hardware
from deploykit.artifact import GOLDEN, Artifact, signing
from deploykit.errors import ArtifactError
from deploykit.inference import fallback
from deploykit.inference.predictor import Predictor
from deploykit.methods import Frozen
from deploykit.tasks import Array, Arrays, Prediction, Task, are_same
from deploykit.tokenizer import lengthen

DEFAULT_TOLERANCE = 0.02  # of golden sets of older formats, which have none
MIN_TOLERANCE = 0.001  # above the rounding errors of float32
MAX_TOLERANCE = 0.1  # small enough to notice a wrong model
TOLERANCE_QUANTILE = 0.9  # of the distances by which quantization moved the predictions
TOLERANCE_FACTOR = 2.0  # the tolerance is this many times the quantile


class StoredArray(Frozen):
    """An array in JSON.

    Attributes:
        shape: its shape.
        dtype: its type in numpy's notation, for example `<f4`.
        data: its values in C order, numbers or texts.
    """

    shape: list[int]
    dtype: str
    data: list[float | str]

    @classmethod
    def of(cls, array: Array) -> "StoredArray":
        """Converts an array."""
        return cls(shape=list(array.shape), dtype=array.dtype.str, data=array.reshape(-1).tolist())

    @model_validator(mode="after")
    def _is_an_array(self) -> Self:
        try:
            self.array()
        except (TypeError, ValueError) as error:
            raise ValueError(f"no array of the shape {self.shape} and the type {self.dtype!r}") from error
        return self

    def array(self) -> Array:
        """Returns the array."""
        return np.array(self.data).astype(self.dtype).reshape(self.shape)


StoredPredictions = dict[str, StoredArray]  # the arrays that a task's `dump` makes of predictions, by name


class _GoldenBeforeFormat4(Frozen):
    """The golden set in formats before 4; `scores` and the like hold a nested list `(units, labels)` for each text."""

    texts: list[str]
    pairs: list[str | None]
    scores: list[list[list[float]]]
    reference: list[list[list[float]]]
    float_scores: list[list[list[float]]] | None = None
    tolerance: float = DEFAULT_TOLERANCE


class Golden(Frozen):
    """Inputs of the task, and the predictions for them.

    Attributes:
        inputs: as JSON objects.
        predictions: of the packaged graph.
        reference: of the model before compression.
        float_predictions: of the float graph; None in packages of old versions.
        tolerance: how far the predictions of the packaged graph may move.
        cut: long texts were cut before they were predicted, as in all formats before 4; otherwise they were read in
            windows.
    """

    inputs: list[dict[str, Any]]
    predictions: StoredPredictions
    reference: StoredPredictions
    float_predictions: StoredPredictions | None = None
    tolerance: float = DEFAULT_TOLERANCE
    cut: bool = False

    @model_validator(mode="before")
    @classmethod
    def _convert_format_before_4(cls, content: Any) -> Any:
        """Converts the content of a file in a format before 4, and returns any other unchanged."""
        if not isinstance(content, dict) or "texts" not in content:
            return content
        old = _GoldenBeforeFormat4.model_validate(content)
        pairs = zip(old.texts, old.pairs, strict=True)
        return {
            "inputs": [{"text": text, "text_pair": pair} for text, pair in pairs],
            "predictions": _scores_to_stored(old.scores),
            "reference": _scores_to_stored(old.reference),
            "float_predictions": old.float_scores and _scores_to_stored(old.float_scores),
            "tolerance": old.tolerance,
            "cut": True,
        }

    def items(self, task: Task) -> list[Any]:
        """Returns the inputs as objects of the task's type `Input`."""
        return [task.Input.model_validate(item) for item in self.inputs]

    def predict(self, predictor: Predictor) -> list[Prediction]:
        """Predicts for the inputs in the same way as when the set was made, with or without windows."""
        if self.cut:
            options = predictor.spec.options.model_copy(update={"max_windows": 1})
            predictor = replace(predictor, spec=replace(predictor.spec, options=options))
        return predictor.predict(self.items(predictor.task))


def _scores_to_stored(scores: list[list[list[float]]]) -> StoredPredictions:
    """Converts scores of formats before 4, `(units, labels)` for each text, to the arrays of a task's `dump`."""
    arrays = [np.array(text_scores, dtype=np.float32) for text_scores in scores]
    lengths = np.array([len(array) for array in arrays])
    return to_stored({"scores": np.concatenate([array for array in arrays if len(array)]), "lengths": lengths})


def to_stored(arrays: Arrays) -> StoredPredictions:
    """Converts the arrays that a task's `dump` made of predictions to JSON."""
    return {name: StoredArray.of(array) for name, array in arrays.items()}


def from_stored(predictions: StoredPredictions, task: Task) -> list[Prediction]:
    """Returns the predictions that `to_stored` converted."""
    return task.load({name: array.array() for name, array in predictions.items()})


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


def tolerance_of(task: Task, exact: Sequence[Prediction], predictions: Sequence[Prediction]) -> float:
    """Returns how far predictions of a packaged graph may move on another machine.

    Another machine rounds differently, but the difference is smaller than that by quantization. So the tolerance is
    twice the distance within which 90 % of the predictions stayed when the graph was quantized. The largest distance
    would be too wide a tolerance, because a few undecided predictions move by far more than all others.

    Args:
        task: measures the distance of two predictions.
        exact: predictions of the float graph.
        predictions: of the packaged graph for the same inputs.
    """
    quantile = np.quantile(distances(task, predictions, exact), TOLERANCE_QUANTILE)
    return float(np.clip(TOLERANCE_FACTOR * quantile, MIN_TOLERANCE, MAX_TOLERANCE))


def replay(
    golden: Golden, predictor: Predictor, expected: Literal["predictions", "float_predictions"] = "predictions"
) -> None:
    """Predicts every input of the set again, and runs an input of the largest length.

    Args:
        golden: the set.
        predictor: of the packaged graph, or of the float graph beside it.
        expected: the field of the set with the predictions that must be reproduced.

    Raises:
        ArtifactError: predictions moved further than the tolerance, or the longest input fails.
    """
    stored = golden.predictions if expected == "predictions" else golden.float_predictions
    tolerance = golden.tolerance if expected == "predictions" else MIN_TOLERANCE
    if stored is None:
        raise ArtifactError("the golden set holds no answers of the float graph. Package the model again.")
    inputs = golden.items(predictor.task)
    shifts = distances(predictor.task, golden.predict(predictor), from_stored(stored, predictor.task))
    wrong = [index for index, shift in enumerate(shifts) if not shift <= tolerance]  # so that NaN is wrong, too
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(shifts)} golden answers moved: a probability shifted by up to {max(shifts):.3f},"
            f" expected at most {tolerance:.3g}. The first is number {wrong[0]} of the set."
            " This machine computes the model differently, or a file is not the one that was verified: choose again"
            " here with `deploykit retune`, or fetch the package again."
        )
    _run_longest(inputs, predictor)


def _run_longest(inputs: Sequence[Any], predictor: Predictor) -> None:
    """Runs an input of the largest length in the manifest, so that a graph with fewer positions is noticed here.

    Raises:
        ArtifactError: the graph fails.
    """
    tokens = predictor.tokenizer.max_tokens
    shortest = min((windows[0] for windows in predictor.encode(inputs)), key=len)
    try:
        predictor.run([lengthen(shortest, tokens)])
    except Exception as error:  # each engine raises errors of its own
        raise ArtifactError(
            f"the graph fails on an input of {tokens} tokens, the most that the manifest names:"
            f" {str(error).splitlines()[0]}. Package the model again, with a smaller data.max_tokens."
        ) from error


def distances(task: Task, predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> list[float]:
    """Returns the distance of each prediction from the expected one, as the task defines it."""
    return [task.distance(one, other) for one, other in zip(predictions, expected, strict=True)]


def count_changed(predictor: Predictor, predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> int:
    """Counts the predictions with another decision than expected, for example another label, or with NaN.

    For tasks without decisions, it counts predictions that are further away than `MAX_TOLERANCE`.
    """
    task, spec = predictor.task, predictor.spec

    def differ(one: Prediction, other: Prediction) -> bool:
        distance = task.distance(one, other)
        if "changes" not in task.FIGURES:  # a task without decisions
            return not distance <= MAX_TOLERANCE
        return not np.isfinite(distance) or not are_same(task.decide(one, spec), task.decide(other, spec))

    return sum(differ(one, other) for one, other in zip(predictions, expected, strict=True))


def verify(path: Path | str, key: Path | None = None) -> Artifact:
    """Checks that the files of an artifact are unchanged, and replays its golden set if it has one.

    If this machine cannot run the chosen graph, the float graph is checked, because a service would run it here.

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
