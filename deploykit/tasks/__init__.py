"""What inputs and predictions mean. Each task is one file that needs only numpy and pydantic.

Training, evaluation and serving share these functions. An *input* is what a client or a row of the data gives. It
becomes *features*, of which each is read by the model at once; a long text becomes several. From the outputs of the
model for all features of an input, the task makes a *prediction*, which may be anything, and from it the *answer* that
a client gets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods
from deploykit.artifact import Manifest
from deploykit.tasks._types import (
    EMPTY_TEXT_WORK,
    IGNORED,
    Array,
    Arrays,
    Column,
    Example,
    Float32,
    Input,
    Int64,
    Observations,
    Prediction,
    Span,
    Spec,
    Target,
    TextInput,
    TextOptions,
    are_same,
    softmax,
)
from deploykit.tokenizer import Features


class Optional(Protocol):
    """Names that a file of this folder may provide besides those of `Task`.

    `OUTPUT_NAMES` are the names of the model's outputs if they are not labels, and `PROBLEM_TYPE` is written into the
    model's configuration. `items` and `item_labels` are needed for the figure `labels` and the metrics of F1,
    `probabilities` for metrics that rank, `tensors` and `pipeline` for the capabilities of these names. `SERVE` are
    defaults of a service that the task needs, by the names of the recipe's section, and `EXTRA` is a pip extra that it
    needs.
    """

    def bind(self, options: Any) -> "Task":
        """Returns the task with these options, for a task whose outputs, metrics and answers depend on them."""

    def output_labels(self, spec: Spec) -> Mapping[str, tuple[str, ...]]:
        """Returns the labels of each output, for a model that is an encoder with an output head for each of them."""

    def subtasks(self, spec: Spec) -> Mapping[str, tuple["Task", Spec]]:
        """Returns the tasks that this one consists of, by name, each with its labels and options."""

    def prepare(self, examples: Sequence[Example], options: Any) -> Any:
        """Returns the options with what is learned from the training examples before training."""

    def scale(self, examples: Sequence[Example], options: Any) -> Any:
        """Returns the options with the scale of the training examples, for a model whose head is new."""

    def tune(self, gold: Sequence[Any], predictions: Sequence[Prediction], spec: Spec) -> Any:
        """Returns the options with what is tuned on the validation split after training."""

    def observed_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists the labels that `observe` counts; default: those of the model."""

    def items(self, decision: Any, spec: Spec) -> Sequence[tuple[Any, ...]]:
        """Lists what a decision claims, for F1 and recall: tuples that begin with a label, such as an entity."""

    def spans(self, decision: Any, spec: Spec) -> Sequence[tuple[Any, ...]]:
        """Lists the spans of a decision, of a task whose items are something else."""

    def oracle(self, example: Example) -> Any:
        """Returns the input with the true result of a first step, to judge the second step alone."""

    def item_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists the labels that items may have."""

    def golden_input(self, item: Any, tokenizer: Any) -> Any:
        """Returns an input as the golden set keeps it; its predictions must be the same."""

    def probabilities(self, prediction: Prediction, spec: Spec) -> Float32:
        """Returns the probabilities of a prediction, `(units, labels)`, for metrics that rank."""

    def more_metrics(self, examples: Sequence[Example], spec: Spec) -> tuple[str, ...]:
        """Lists metrics besides `METRICS` that fit the rows of a split."""

    def relevance(self, spec: Spec) -> Any:
        """Returns the `Relevance` (`_ranking.py`) of second texts of pairs to the first; None if no label means it."""

    def tensors(self, answers: Sequence[Any], spec: Spec) -> dict[str, Array]:
        """Returns outputs of the Open Inference Protocol, of one row per answer."""

    def pipeline(self, answer: Any, top_k: int | None) -> list[dict[str, Any]] | dict[str, Any]:
        """Turns an answer into the format of transformers' pipeline for this task."""


class Task(Optional, Protocol):
    """The module-level names that a file of this folder provides.

    `AUTO_CLASS` is the class of transformers that opens such a model. `ORT_CLASS` is Optimum's, with which tests open
    packages, and `OPTIMUM_TASK` is the exporter's name for the task. `OUTPUTS` names the outputs of the model that the
    task reads, each with its axes after the batch, for example `("tokens", "labels")`, and `TARGETS` says what training
    compares with them. `COLUMNS` are the columns of the data by role, and `EXAMPLES` are rows that contract tests
    read.

    `METRICS` are computed in `evaluation`; gates and searches use the first. `FIGURES` names what else is computed:
    `changes` (how many decisions differ from those of another model), `labels` (precision and recall of each), and for
    tasks with one label per unit `confusion`, `calibration`, and `coverage` if they may abstain. `CAPABILITIES` names
    the routes of a service that the task supports besides predictions: `explain`, `feedback`, `pipeline` (Hugging
    Face's inference API) and `tensors` (outputs of the Open Inference Protocol besides the answer as JSON). `Answer` is
    the type of one served prediction.
    """

    AUTO_CLASS: str
    ORT_CLASS: str
    OPTIMUM_TASK: str
    OUTPUTS: Mapping[str, tuple[str, ...]]
    TARGETS: Mapping[str, Target]
    COLUMNS: Mapping[str, Column]
    EXAMPLES: tuple[Mapping[str, Any], ...]
    METRICS: tuple[str, ...]
    FIGURES: frozenset[str]
    CAPABILITIES: frozenset[str]
    Options: type[BaseModel]
    Input: type[Input]
    Answer: type[BaseModel]

    def reader(
        self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
    ) -> Callable[[Mapping[str, Any]], Example]:
        """Returns a function that turns one of these rows of a file into an example.

        It raises KeyError for a missing column and ValueError for a value that it cannot read.
        """

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Lists the labels of a model trained on these examples, in the order of its outputs."""

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns labels in the order that the outputs must have, keeping the given order where possible."""

    def example_labels(self, example: Example) -> tuple[str, ...]:
        """Lists the labels of an example as the data names them, each as often as it occurs."""

    def encode(self, inputs: Sequence[Any], tokenizer: Any, spec: Spec) -> list[list[Features]]:
        """Returns what the model reads of each input, at least one features each.

        Args:
            inputs: of the task.
            tokenizer: a `Tokenizer`, or an `ImageTokenizer` for a model that reads images.
            spec: of the model.
        """

    def targets(self, example: Example, features: Features, spec: Spec) -> Arrays:
        """Returns the targets of the training loss by the names of `TARGETS`; some of them may be `IGNORED`."""

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any, spec: Spec) -> Prediction:
        """Returns the prediction for one input.

        Args:
            outputs: of the model, for each of the features: arrays by name without the axis of the batch and without
                padding.
            features: of the input.
            item: the input.
            spec: of the model.
        """

    def gold(self, example: Example, spec: Spec) -> Any:
        """Returns what `decide` would return for a model that is always right."""

    def decide(self, prediction: Prediction, spec: Spec) -> Any:
        """Returns what metrics compare with `gold`, and what must not change when a model is compressed."""

    def changes(self, example: Example, before: Any, after: Any, spec: Spec) -> list[dict[str, str]]:
        """Describes how two decisions differ: `text`, `true`, `before` and `after` for each difference."""

    def distance(self, first: Prediction, second: Prediction) -> float:
        """Returns by how much two predictions for an input differ; infinite if they cannot be compared.

        Of probabilities that is the largest difference, from 0 to 1, of numbers the difference in standard deviations.
        """

    def observe(self, predictions: Sequence[Prediction], spec: Spec) -> Observations:
        """Returns what the metrics of a service count of these predictions."""

    def dump(self, predictions: Sequence[Prediction]) -> dict[str, Array]:
        """Turns predictions into arrays, for a file."""

    def load(self, arrays: Arrays) -> list[Prediction]:
        """Turns the arrays of `dump` into predictions."""

    def answer(self, prediction: Prediction, features: Sequence[Features], item: Any, spec: Spec) -> BaseModel:
        """Turns the prediction for an input into the answer for a client."""

    def record(self, answer: Any) -> dict[str, Any]:
        """Returns what of an answer may be recorded: no part of the text."""


def reads(task: Task, columns: Mapping[str, str | None]) -> frozenset[str]:
    """Returns what an input of a task consists of, with the columns of a recipe: `image`, `text` or both."""
    if "image" not in task.Input.FILES:
        return frozenset({"text"})
    return frozenset({"image", "text"} if columns.get("text") else {"image"})


def spec_of(manifest: Manifest) -> Spec:
    """Returns the labels and the options of an artifact's task."""
    return Spec(manifest.labels, load(manifest.task).Options.model_validate(manifest.task_options))


def tuned(task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Spec:
    """Returns the spec with the options that the task tunes on labelled examples, such as thresholds."""
    if not hasattr(task, "tune"):
        return spec
    return replace(spec, options=task.tune([task.gold(example, spec) for example in examples], predictions, spec))


def observed_labels(task: Task, spec: Spec) -> tuple[str, ...]:
    """Lists the labels that the task's `observe` counts."""
    own = getattr(task, "observed_labels", None)
    return own(spec) if own else spec.labels


def load(name: str, options: Any = None) -> Task:
    """Imports a task by name, for example `"text-classification"`.

    Args:
        name: that `methods.available("task")` lists.
        options: of the task, for one that depends on them; default: the task's own defaults.
    """
    task = cast(Task, methods.load("task", name))
    return task.bind(options) if options is not None and hasattr(task, "bind") else task


def of_manifest(manifest: Manifest) -> Task:
    """Returns the task of an artifact."""
    return load(manifest.task, spec_of(manifest).options)


__all__ = [
    "EMPTY_TEXT_WORK",
    "IGNORED",
    "Array",
    "Arrays",
    "Column",
    "Example",
    "Float32",
    "Input",
    "Int64",
    "Observations",
    "Optional",
    "Prediction",
    "Span",
    "Spec",
    "Target",
    "Task",
    "TextInput",
    "TextOptions",
    "are_same",
    "load",
    "observed_labels",
    "of_manifest",
    "reads",
    "softmax",
    "spec_of",
    "tuned",
]
