"""Several tasks on the same text, such as its intent and its slots, with one pass of one encoder.

The model has one head for each task, with labels, metrics and answers of its own. A row of the data may have labels for
some heads only; the other heads learn nothing from it. The first metric is the mean of the heads' first metrics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, Field, create_model

from deploykit import tasks
from deploykit.errors import DataError
from deploykit.methods import Frozen
from deploykit.tasks import Array, Arrays, Example, Observations, Spec, Task, TextInput
from deploykit.tasks._classification import encode
from deploykit.tasks._heads import COLUMNS, Head, Options
from deploykit.tokenizer import Features, join_windows

MEAN_METRIC = "mean_of_heads"  # name in `evaluation.metrics`


class MultiTask:
    """The task for the heads that its options list.

    A prediction is a dictionary from the name of each head to the prediction of that head's task; so are a decision and
    a gold decision, and an example's target.
    """

    AUTO_CLASS = "AutoModel"
    ORT_CLASS = "ORTModelForCustomTasks"
    OPTIMUM_TASK = "feature-extraction"
    COLUMNS = COLUMNS
    EXAMPLES = (
        {"tokens": ["Play", "Waterloo"], "tags": ["O", "B-SONG"], "intent": "play"},
        {"tokens": ["stop", "it"], "tags": ["O", "O"], "intent": "stop"},
    )
    FIGURES = frozenset({"changes"})
    CAPABILITIES = frozenset[str]()
    encode = staticmethod(encode)

    def __init__(self, options: Options) -> None:
        self.Options = Options
        self.heads = [Head(name, head) for name, head in options.heads.items()]
        self.OUTPUTS = {key: axes for head in self.heads for key, axes in head.add_prefix(head.task.OUTPUTS).items()}
        self.TARGETS = {
            key: target._replace(output=f"{head.name}/{target.output}")
            for head in self.heads
            for key, target in head.add_prefix(head.task.TARGETS).items()
        }
        self.METRICS = (MEAN_METRIC, *(f"{head.name}/{metric}" for head in self.heads for metric in head.task.METRICS))
        head_name: Any = Literal[tuple(head.name for head in self.heads)]
        description = "names of the heads that answer; empty: all of them"
        heads: Any = (tuple[head_name, ...], Field(default=(), description=description))
        self.Input = create_model("Input", __base__=TextInput, __doc__="A text, and the heads to ask.", heads=heads)
        answers: Any = {
            head.name: (head.task.Answer | None, Field(description=f"the answer of the head {head.name}"))
            for head in self.heads
        }
        counts: Any = {
            "tokens": (int, Field(description="tokens that the model read")),
            "windows": (int, Field(description="overlapping parts that a long text was read in")),
            "truncated": (bool, Field(description="whether the end of the text was cut off")),
        }
        self.Answer = create_model("Answer", __base__=Frozen, __doc__="The answers for one text.", **answers, **counts)

    def output_labels(self, spec: Spec) -> dict[str, tuple[str, ...]]:
        """Returns the labels of each output, by its name `HEAD/OUTPUT`."""
        return {
            key: head_spec.labels or getattr(head.task, "OUTPUT_NAMES", ())
            for head, head_spec in self._specs(spec)
            for key in head.add_prefix(head.task.OUTPUTS)
        }

    def _specs(self, spec: Spec) -> Iterator[tuple[Head, Spec]]:
        """Yields each head with the labels and options of its own task."""
        for head in self.heads:
            yield head, spec.options.heads[head.name].spec

    def subtasks(self, spec: Spec) -> dict[str, tuple[Task, Spec]]:
        """Returns the task of each head with its labels and options, by the name of the head."""
        return {head.name: (head.task, head_spec) for head, head_spec in self._specs(spec)}

    def reader(
        self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
    ) -> Callable[[Mapping[str, Any]], Example]:
        """Returns a function that reads a text, and the labels of each head that has some in the row."""
        rows, head_column, text_column = list(rows), columns.get("head"), str(columns["text"])
        readers = {head.name: head.task.reader(rows, {**columns, **head.columns}) for head in self.heads}

        def read(row: Mapping[str, Any]) -> Example:
            name = str(row.get(head_column) or "").strip() if head_column else ""
            labelled = [head for head in self.heads if (head.name == name if name else head.is_labelled(row))]
            if not labelled:
                heads = ", ".join(head.describe() for head in self.heads)
                raise ValueError(
                    f"has labels of no head{f' called {name!r}' if name else ''}, expected those of {heads}"
                )
            reads_spans = any(row.get(head.columns.get("spans") or "") for head in labelled)
            targets = {}
            # Heads that label words come first: they join the words to the text that the other heads read.
            for head in sorted(labelled, key=lambda head: "tokens" not in head.task.COLUMNS):
                example = head.read_row(row, readers[head.name])
                if row.get(text_column) not in (None, example.input.text) and reads_spans:
                    raise ValueError(
                        f"has spans in the text {row[text_column]!r}, and the words of the head {head.name!r} join to"
                        f" {example.input.text!r}, where they stand elsewhere. Give the spans in that text"
                    )
                targets[head.name] = example.target
                row = {**row, text_column: example.input.text}
            if example.input.text_pair and any("tokens" in head.task.COLUMNS for head in self.heads):
                raise ValueError("is a pair of texts, and a head that labels words reads single texts only")
            return Example(self.Input(**dict(example.input)), targets)

        return read

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Returns no labels: those of the heads are in the options, where `prepare` puts them."""
        return ()

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns no labels, as `label_names`."""
        return ()

    def example_labels(self, example: Example) -> tuple[str, ...]:
        """Returns the labels of an example as `HEAD/LABEL`."""
        return tuple(
            f"{head.name}/{label}" for head, row in self._labelled(example) for label in head.task.example_labels(row)
        )

    def _labelled(self, example: Example) -> Iterator[tuple[Head, Example]]:
        """Yields each head for which an example is labelled, with the example as the head's task has it."""
        for head in self.heads:
            if head.name in example.target:
                yield head, Example(example.input, example.target[head.name], example.slice)

    def prepare(self, examples: Sequence[Example], options: Options) -> Options:
        """Returns options with the labels of each head, and with what its task learns from the examples.

        Raises:
            DataError: no example is labelled for a head, or its task classifies and finds fewer than two labels.
        """
        heads = {}
        for head in self.heads:
            rows = [row for example in examples for labelled, row in self._labelled(example) if labelled is head]
            if not rows:
                raise DataError(f"no training row has labels of the head {head.describe()}. Name its columns.")
            untrained = options.heads[head.name]
            task_options = untrained.spec.options
            if hasattr(head.task, "prepare"):
                task_options = head.task.prepare(rows, task_options)
            labels = head.task.label_names(rows)
            if "labels" in head.task.FIGURES and len(labels) < 2:
                raise DataError(
                    f"the head {head.describe()} has fewer than two labels in the training rows: add rows of others."
                )
            heads[head.name] = untrained.with_training_results(labels, task_options)
        return Options(max_windows=options.max_windows, heads=heads)

    def fit_scale(self, examples: Sequence[Example], options: Options) -> Options:
        """Returns options with the mean and deviation of the numbers that heads predict."""
        heads = dict(options.heads)
        for head in self.heads:
            rows = [row for example in examples for labelled, row in self._labelled(example) if labelled is head]
            if hasattr(head.task, "fit_scale"):
                spec = heads[head.name].spec
                task_options = head.task.fit_scale(rows, spec.options)
                heads[head.name] = heads[head.name].with_training_results(spec.labels, task_options)
        return Options(max_windows=options.max_windows, heads=heads)

    def tune(self, gold: Sequence[Any], predictions: Sequence[Any], spec: Spec) -> Options:
        """Returns options with what each head's task tunes on the validation split."""
        heads = dict(spec.options.heads)
        for head, head_spec in self._specs(spec):
            rows = [row for row, decisions in enumerate(gold) if head.name in decisions]
            if rows and hasattr(head.task, "tune"):
                true, predicted = ([values[row][head.name] for row in rows] for values in (gold, predictions))
                options = head.task.tune(true, predicted, head_spec)
                heads[head.name] = heads[head.name].with_training_results(head_spec.labels, options)
        return Options(max_windows=spec.options.max_windows, heads=heads)

    def targets(self, example: Example, features: Features, spec: Spec) -> dict[str, Array]:
        """Returns the targets of all heads; the losses skip those of heads for which the example is not labelled."""
        labelled = {head.name: row for head, row in self._labelled(example)}
        targets = dict[str, Array]()
        for head, head_spec in self._specs(spec):
            row = labelled.get(head.name)
            arrays = head.task.targets(row, features, head_spec) if row else head.ignored_targets(features, head_spec)
            targets |= head.add_prefix(arrays)
        return targets

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any, spec: Spec) -> dict[str, Any]:
        """Returns the prediction of each head."""
        return {
            head.name: head.task.decode([head.select(arrays) for arrays in outputs], features, item, head_spec)
            for head, head_spec in self._specs(spec)
        }

    def gold(self, example: Example, spec: Spec) -> dict[str, Any]:
        """Returns the gold decision of each head for which the example is labelled."""
        specs = self.subtasks(spec)
        return {head.name: head.task.gold(row, specs[head.name][1]) for head, row in self._labelled(example)}

    def decide(self, prediction: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
        """Returns the decision of each head."""
        return {head.name: head.task.decide(prediction[head.name], head_spec) for head, head_spec in self._specs(spec)}

    def changes(self, example: Example, before: Any, after: Any, spec: Spec) -> list[dict[str, str]]:
        """Returns the changes of each head for which the example is labelled; their `text` begins with its name."""
        specs = self.subtasks(spec)
        return [
            {**change, "text": f"{head.name}: {change['text']}"}
            for head, row in self._labelled(example)
            for change in head.task.changes(row, before[head.name], after[head.name], specs[head.name][1])
        ]

    def distance(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
        """Returns the largest distance of any head."""
        return float(np.max([head.task.distance(first[head.name], second[head.name]) for head in self.heads]))

    def observed_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists the observed labels of all heads as `HEAD/LABEL`, in the order of the heads."""
        return tuple(
            f"{head.name}/{label}"
            for head, head_spec in self._specs(spec)
            for label in tasks.observed_labels(head.task, head_spec)
        )

    def observe(self, predictions: Sequence[Mapping[str, Any]], spec: Spec) -> Observations:
        """Returns label, confidence and entropy of each unit of each head, prediction by prediction.

        The labels of a head count on from those of the heads before it, as in `observed_labels`.
        """
        first_label, abstained = 0, 0
        by_prediction = [list[tuple[Any, ...]]() for _ in predictions]  # for each head: labels, confidences, entropies
        for head, head_spec in self._specs(spec):
            for of_heads, prediction in zip(by_prediction, predictions, strict=True):
                observed = head.task.observe([prediction[head.name]], head_spec)
                abstained += observed.abstained
                of_heads.append((observed.labels + first_label, observed.confidences, observed.entropies))
            first_label += len(tasks.observed_labels(head.task, head_spec))
        units = np.array([sum(len(labels) for labels, _, _ in of_heads) for of_heads in by_prediction], dtype=np.int64)
        empty = (np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))  # if there are no predictions
        columns = zip(empty, *(arrays for of_heads in by_prediction for arrays in of_heads), strict=True)
        labels, confidences, entropies = map(np.concatenate, columns)
        return Observations(units, labels, confidences, entropies, abstained)

    def dump(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Returns the arrays of each head's task, by their names as `HEAD/NAME`."""
        return {
            key: array
            for head in self.heads
            for key, array in head.add_prefix(head.task.dump([row[head.name] for row in predictions])).items()
        }

    def load(self, arrays: Arrays) -> list[dict[str, Any]]:
        """Returns the predictions that `dump` turned into arrays."""
        columns = [head.task.load(head.select(arrays)) for head in self.heads]
        return [
            {head.name: row for head, row in zip(self.heads, rows, strict=True)} for rows in zip(*columns, strict=True)
        ]

    def answer(self, prediction: Mapping[str, Any], features: Sequence[Features], item: Any, spec: Spec) -> BaseModel:
        """Returns the answers of the heads that the input names, or of all heads if it names none."""
        names, encoding = getattr(item, "heads", ()), join_windows(features)
        answers = {
            head.name: head.task.answer(prediction[head.name], features, item, head_spec)
            if not names or head.name in names
            else None
            for head, head_spec in self._specs(spec)
        }
        counts = {"tokens": len(encoding), "windows": encoding.windows, "truncated": encoding.truncated}
        return self.Answer(**answers, **counts)

    def record(self, answer: Any) -> dict[str, Any]:
        """Returns, as `answers`, what each head that answered allows to be stored, by the name of the head."""
        answers = [(head, getattr(answer, head.name)) for head in self.heads]
        return {"answers": {head.name: head.task.record(own) for head, own in answers if own is not None}}


def bind(options: Options) -> Task:
    """Returns the task for these heads."""
    return cast(Task, MultiTask(options))


_default_task = MultiTask(Options())


def __getattr__(name: str) -> Any:
    """Returns a name of the protocol `Task` from the task with its default options."""
    return getattr(_default_task, name)
