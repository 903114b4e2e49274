"""The golden set: inputs with verified answers, replayed wherever the artifact runs.

`reference` holds the predictions of the model before compression, `predictions` those of the packaged graph, and
`float_predictions` those of the float graph, if the package carries one. A replay must reproduce those of the graph
that runs: they may move by `tolerance` (see `tolerance_of`), or by `MIN_TOLERANCE` for the float graph.
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

DEFAULT_TOLERANCE = 0.02  # if the answers of the float graph are not known
MIN_TOLERANCE, MAX_TOLERANCE = 0.001, 0.1  # above the noise of float32, and small enough to find a wrong model
TOLERANCE_QUANTILE = 0.9  # of the shifts by quantization
TOLERANCE_FACTOR = 2.0  # times that quantile


class Stored(Frozen):
    """An array in JSON: its shape, its type in numpy's notation, and its values in order, numbers or texts."""

    shape: list[int]
    dtype: str
    data: list[float | str]

    @classmethod
    def of(cls, array: Array) -> "Stored":
        """Converts an array of numbers."""
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


StoredPredictions = dict[str, Stored]  # what the task's `dump` returned


class _Earlier(Frozen):
    """The golden set of formats before 4; scores are nested lists, `(units, labels)` of each text."""

    texts: list[str]
    pairs: list[str | None]
    scores: list[list[list[float]]]
    reference: list[list[list[float]]]
    float_scores: list[list[list[float]]] | None = None
    tolerance: float = DEFAULT_TOLERANCE


class Golden(Frozen):
    """Inputs of the task, and the predictions for them.

    `cut` says that long texts were cut before they were predicted, as all were before format 4.
    """

    inputs: list[dict[str, Any]]
    predictions: StoredPredictions
    reference: StoredPredictions
    float_predictions: StoredPredictions | None = None
    tolerance: float = DEFAULT_TOLERANCE
    cut: bool = False

    @model_validator(mode="before")
    @classmethod
    def _reads_the_earlier_form(cls, content: Any) -> Any:
        """Converts what formats before 4 have."""
        if not isinstance(content, dict) or "texts" not in content:
            return content
        earlier = _Earlier.model_validate(content)
        pairs = zip(earlier.texts, earlier.pairs, strict=True)
        return {
            "inputs": [{"text": text, "text_pair": pair} for text, pair in pairs],
            "predictions": _stored_rows(earlier.scores),
            "reference": _stored_rows(earlier.reference),
            "float_predictions": earlier.float_scores and _stored_rows(earlier.float_scores),
            "tolerance": earlier.tolerance,
            "cut": True,
        }

    def items(self, task: Task) -> list[Any]:
        """Returns the inputs as the task's type."""
        return [task.Input.model_validate(item) for item in self.inputs]

    def predict(self, predictor: Predictor) -> list[Prediction]:
        """Predicts for the inputs as was done for the set."""
        if self.cut:
            options = predictor.spec.options.model_copy(update={"max_windows": 1})
            predictor = replace(predictor, spec=replace(predictor.spec, options=options))
        return predictor.predict(self.items(predictor.task))


def _stored_rows(rows: list[list[list[float]]]) -> StoredPredictions:
    arrays = [np.array(row, dtype=np.float32) for row in rows]
    lengths = np.array([len(array) for array in arrays])
    return stored({"scores": np.concatenate([array for array in arrays if len(array)]), "lengths": lengths})


def stored(arrays: Arrays) -> StoredPredictions:
    """Converts what the task's `dump` returned for the file."""
    return {name: Stored.of(array) for name, array in arrays.items()}


def loaded(predictions: StoredPredictions, task: Task) -> list[Prediction]:
    """Returns the predictions that `stored` has converted."""
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
    """Returns by how much a prediction may move if the same graph runs on another machine.

    Another machine rounds differently, but by less than quantization did: the bound is twice the shift that 90 % of the
    answers stayed within when the graph was quantized. The largest shift would be too wide a bound: a few undecided
    answers move by far more than all others.

    Args:
        task: measures the distance of two predictions.
        exact: predictions of the float graph.
        predictions: of the packaged graph for the same inputs.
    """
    shift = TOLERANCE_FACTOR * np.quantile(moved(task, predictions, exact), TOLERANCE_QUANTILE)
    return float(np.clip(shift, MIN_TOLERANCE, MAX_TOLERANCE))


def replay(
    golden: Golden, predictor: Predictor, expected: Literal["predictions", "float_predictions"] = "predictions"
) -> None:
    """Predicts every input of the set again, and runs one of the largest length.

    Args:
        golden: the set.
        predictor: of the packaged graph, or of the float graph beside it.
        expected: the predictions that it must reproduce.

    Raises:
        ArtifactError: answers moved (says how many, and the largest shift), or the longest input fails.
    """
    before = golden.predictions if expected == "predictions" else golden.float_predictions
    tolerance = golden.tolerance if expected == "predictions" else MIN_TOLERANCE
    if before is None:
        raise ArtifactError("the golden set holds no answers of the float graph. Package the model again.")
    inputs = golden.items(predictor.task)
    shifts = moved(predictor.task, golden.predict(predictor), loaded(before, predictor.task))
    wrong = [index for index, shift in enumerate(shifts) if not shift <= tolerance]  # NaN is wrong too
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(shifts)} golden answers moved: a probability shifted by up to {max(shifts):.3f},"
            f" expected at most {tolerance:.3g}. The first is number {wrong[0]} of the set."
            " This machine computes the model differently, or a file is not the one that was verified: choose again"
            " here with `deploykit retune`, or fetch the package again."
        )
    _run_longest(inputs, predictor)


def _run_longest(inputs: Sequence[Any], predictor: Predictor) -> None:
    """Finds a graph with fewer positions than the manifest says, before a client's long text does."""
    shortest, tokens = min((parts[0] for parts in predictor.encode(inputs)), key=len), predictor.tokenizer.max_tokens
    try:
        predictor.run([lengthen(shortest, tokens)])
    except Exception as error:  # each engine has its own
        raise ArtifactError(
            f"the graph fails on an input of {tokens} tokens, the most that the manifest names:"
            f" {str(error).splitlines()[0]}. Package the model again, with a smaller data.max_tokens."
        ) from error


def moved(task: Task, predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> list[float]:
    """Returns the distance of each prediction from the expected one."""
    return [task.distance(first, second) for first, second in zip(predictions, expected, strict=True)]


def changed(predictor: Predictor, predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> int:
    """Counts the predictions that decide otherwise than expected, or are not finite.

    Of tasks without distinct decisions, those that are further away than any tolerance.
    """
    task, spec = predictor.task, predictor.spec

    def differ(first: Prediction, second: Prediction) -> bool:
        distance = task.distance(first, second)
        if "changes" not in task.FIGURES:
            return not distance <= MAX_TOLERANCE
        return not np.isfinite(distance) or not are_same(task.decide(first, spec), task.decide(second, spec))

    return sum(differ(first, second) for first, second in zip(predictions, expected, strict=True))


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
