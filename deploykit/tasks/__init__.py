"""What inputs and predictions mean. Each task is one file that needs only numpy and pydantic.

Training, evaluation and serving share these functions. A client or a row of the data gives an *input*. `encode` turns
it into *features*: one for each pass of the model, so a long text has several. `decode` turns the model's outputs for
all of them into one *prediction*, for example logits. From the prediction follow the *decision*, which metrics compare
with the *gold* decision, and the *answer*, which a client gets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from pydantic import BaseModel

from deploykit import methods
from deploykit.artifact import Manifest
from deploykit.tasks._types import (
    EMPTY_TEXT_COST,
    IGNORE_INDEX,
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


class OptionalMembers(Protocol):
    """Names that a file of this folder may provide besides those of `Task`.

    Attributes:
        OUTPUT_NAMES: names of the model's outputs, for a task without labels.
        PROBLEM_TYPE: the `problem_type` in the model's `config.json`.
        PIPELINE_ALWAYS_LISTS: whether the route `pipeline` answers even a single input with a list, as Hugging Face's
            inference API does for some tasks; default: False.
        PIPELINE_ACTIVATION: the only `function_to_apply` that the route `pipeline` accepts; default: `"softmax"`.
        SERVE: defaults of the recipe's section `serve` that differ for this task.
        EXTRA: pip extra with the packages that the task needs.

    The figure `labels` and the metrics of F1 need `items` and `item_labels`. Metrics that rank need `probabilities`.
    The capabilities `tensors` and `pipeline` need the functions of these names.
    """

    def bind(self, options: Any) -> "Task":
        """Returns the task with these options; for a task whose outputs, metrics or answers depend on them."""

    def output_labels(self, spec: Spec) -> Mapping[str, tuple[str, ...]]:
        """Returns the labels of each output, by name; the model is then an encoder with one head for each output."""

    def subtasks(self, spec: Spec) -> Mapping[str, tuple["Task", Spec]]:
        """Returns the tasks that this one consists of, by name, each with its own labels and options."""

    def prepare(self, examples: Sequence[Example], options: Any) -> Any:
        """Returns the options with what is learned from the training examples, before the model is opened."""

    def fit_scale(self, examples: Sequence[Example], options: Any) -> Any:
        """Returns the options with the mean and deviation of the training targets, for a model with a new head."""

    def tune(self, gold: Sequence[Any], predictions: Sequence[Prediction], spec: Spec) -> Any:
        """Returns the options, tuned on the validation split after training, for example with new thresholds.

        Args:
            gold: the true decision of each validation row.
            predictions: of the same rows.
            spec: of the model.
        """

    def observed_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists the labels that the indices of `observe` refer to; default: `spec.labels`."""

    def items(self, decision: Any, spec: Spec) -> Sequence[tuple[Any, ...]]:
        """Lists the items that a decision claims, for F1 and recall.

        An item is a hashable tuple that begins with its label, such as the label, start and end of an entity.
        """

    def spans(self, decision: Any, spec: Spec) -> Sequence[tuple[Any, ...]]:
        """Lists the entities of a decision, for the metric `span_f1` of a task whose `items` are not entities."""

    def oracle(self, example: Example) -> Any:
        """Returns the input with the gold result of the task's first step, so that only the second is measured."""

    def item_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists all labels with which a tuple of `items` may begin."""

    def golden_input(self, item: Any, tokenizer: Any) -> Any:
        """Returns a smaller input with the same predictions, which the golden set stores instead."""

    def probabilities(self, prediction: Prediction, spec: Spec) -> Float32:
        """Returns the probability of each label, `(units, labels)`, for metrics such as ROC AUC."""

    def misaligned_spans(self, example: Example, features: Sequence[Features], spec: Spec) -> list[Span]:
        """Lists the true spans that begin or end inside a token, so that the model cannot predict them."""

    def more_metrics(self, examples: Sequence[Example], spec: Spec) -> tuple[str, ...]:
        """Lists the metrics that these examples allow besides `METRICS`, for example those of rankings."""

    def relevance(self, spec: Spec) -> Any:
        """Returns the `Relevance` (see `_ranking`) of a pair's second text to its first; None if no label says it."""

    def tensors(self, answers: Sequence[Any], spec: Spec) -> dict[str, Array]:
        """Returns the outputs of the Open Inference Protocol by name, with one row per answer."""

    def pipeline(self, answer: Any, top_k: int | None) -> list[dict[str, Any]] | dict[str, Any]:
        """Returns an answer in the format of transformers' pipeline, with at most `top_k` labels."""


class Task(OptionalMembers, Protocol):
    """The module-level names that a file of this folder provides.

    Attributes:
        AUTO_CLASS: class of transformers that opens such a model.
        ORT_CLASS: Optimum's class, with which tests open packages.
        OPTIMUM_TASK: the task's name in Optimum's exporter.
        OUTPUTS: the model's outputs that the task reads, each with its axes after the batch, such as
            `("tokens", "labels")`.
        TARGETS: what the training loss compares with the outputs.
        COLUMNS: columns of the data, by role.
        EXAMPLES: rows that contract tests read.
        METRICS: names in `evaluation.metrics`; gates and searches use the first.
        FIGURES: what else is computed: `changes` (decisions that differ from another model's), `labels` (precision and
            recall of each label), and where each unit has one label `confusion`, `calibration` and, if the task may
            abstain, `coverage`.
        CAPABILITIES: optional routes of a service: `explain`, `feedback`, `pipeline` (Hugging Face's inference API)
            and `tensors` (arrays of the Open Inference Protocol besides the answer in JSON).
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
    Options: type[BaseModel]  # the task's section of the recipe
    Input: type[Input]  # one input of a request
    Answer: type[BaseModel]  # one answer of a response

    def reader(
        self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
    ) -> Callable[[Mapping[str, Any]], Example]:
        """Returns a function that turns a row of the data into an example.

        The function raises KeyError for a missing column, and ValueError for a value that it cannot read.

        Args:
            rows: all rows that will be read; together they may show a convention, such as the scheme of tags.
            columns: name of the column of each role; None: the recipe names none.
        """

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Lists the labels of a model trained on these examples, in the order of its outputs' last axis."""

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns the labels in an order that the task can decode, as close to the given one as possible."""

    def example_labels(self, example: Example) -> tuple[str, ...]:
        """Lists the labels of an example as the data names them, repeated as often as they occur."""

    def encode(self, inputs: Sequence[Any], tokenizer: Any, spec: Spec) -> list[list[Features]]:
        """Returns for each input the features that the model reads, at least one.

        Args:
            inputs: of the type `Input`.
            tokenizer: a `Tokenizer`, or an `ImageTokenizer` for a model that reads images.
            spec: of the model.
        """

    def targets(self, example: Example, features: Features, spec: Spec) -> Arrays:
        """Returns the targets of the training loss, by the names of `TARGETS`; the loss skips `IGNORE_INDEX`."""

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any, spec: Spec) -> Prediction:
        """Returns the prediction for one input, merged from its windows if it has several.

        Args:
            outputs: of the model for each of the features: arrays by name, with the axes of `OUTPUTS` and no padding.
            features: of the input.
            item: the input.
            spec: of the model.
        """

    def gold(self, example: Example, spec: Spec) -> Any:
        """Returns the true decision, in the form that `decide` returns."""

    def decide(self, prediction: Prediction, spec: Spec) -> Any:
        """Returns the decision: the final result without its probabilities, such as the index of the best label.

        Metrics compare it with `gold`. When a model is compressed, each decision that differs counts as a change.
        """

    def changes(self, example: Example, before: Any, after: Any, spec: Spec) -> list[dict[str, str]]:
        """Describes how two decisions for an example differ: `text`, `true`, `before` and `after` per difference."""

    def distance(self, first: Prediction, second: Prediction) -> float:
        """Returns how far apart two predictions for the same input are; infinity if they cannot be compared.

        For probabilities this is the largest absolute difference, from 0 to 1. For numbers it is the absolute
        difference in standard deviations of the training targets.
        """

    def observe(self, predictions: Sequence[Prediction], spec: Spec) -> Observations:
        """Returns the labels and confidences of predictions, for the metrics of a service and for drift."""

    def dump(self, predictions: Sequence[Prediction]) -> dict[str, Array]:
        """Returns predictions as named arrays, for a file."""

    def load(self, arrays: Arrays) -> list[Prediction]:
        """Returns the predictions that `dump` turned into arrays."""

    def answer(self, prediction: Prediction, features: Sequence[Features], item: Any, spec: Spec) -> BaseModel:
        """Returns the answer that a client gets for an input."""

    def record(self, answer: Any) -> dict[str, Any]:
        """Returns the fields of an answer that a service may store: none that quotes the text."""


def input_kinds(task: Task, columns: Mapping[str, str | None]) -> frozenset[str]:
    """Returns what inputs consist of, given the columns that a recipe names: `image`, `text` or both."""
    if "image" not in task.Input.FILES:
        return frozenset({"text"})
    return frozenset({"image", "text"} if columns.get("text") else {"image"})


def spec_of(manifest: Manifest) -> Spec:
    """Returns the labels and the task's options that an artifact's manifest holds."""
    return Spec(manifest.labels, load(manifest.task).Options.model_validate(manifest.task_options))


def tune_spec(task: Task, spec: Spec, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Spec:
    """Returns the spec with the options, such as thresholds, that the task tunes on labelled examples, if any."""
    if not hasattr(task, "tune"):
        return spec
    return replace(spec, options=task.tune([task.gold(example, spec) for example in examples], predictions, spec))


def observed_labels(task: Task, spec: Spec) -> tuple[str, ...]:
    """Lists the labels that the indices of the task's `observe` refer to."""
    list_labels = getattr(task, "observed_labels", None)
    return list_labels(spec) if list_labels else spec.labels


def load(name: str, options: Any = None) -> Task:
    """Imports a task by name, for example `"text-classification"`.

    Args:
        name: one that `methods.available("task")` lists.
        options: of the type `Options` of the task; needed only if its outputs depend on them (see `bind`).
    """
    task = cast(Task, methods.load("task", name))
    return task.bind(options) if options is not None and hasattr(task, "bind") else task


def task_of(manifest: Manifest) -> Task:
    """Imports the task of an artifact, with the options that its manifest holds."""
    return load(manifest.task, spec_of(manifest).options)


__all__ = [
    "EMPTY_TEXT_COST",
    "IGNORE_INDEX",
    "Array",
    "Arrays",
    "Column",
    "Example",
    "Float32",
    "Input",
    "Int64",
    "Observations",
    "OptionalMembers",
    "Prediction",
    "Span",
    "Spec",
    "Target",
    "Task",
    "TextInput",
    "TextOptions",
    "are_same",
    "input_kinds",
    "load",
    "observed_labels",
    "softmax",
    "spec_of",
    "task_of",
    "tune_spec",
]
