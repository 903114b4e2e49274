"""Several tasks on the same text, such as its intent and its slots, with one pass of one encoder.

Each head is a task of its own, with its labels, metrics and answers. A row of the data may have the labels of some
heads only; the others learn nothing from it. The first metric is the mean of the heads' first metrics.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, Field, create_model, field_validator

from deploykit import tasks
from deploykit.errors import DataError
from deploykit.methods import Frozen
from deploykit.tasks import (
    Array,
    Arrays,
    Example,
    Observations,
    Spec,
    Task,
    TextInput,
    TextOptions,
)
from deploykit.tasks._classification import encode
from deploykit.tasks._heads import COLUMNS, Head, HeadOptions
from deploykit.tokenizer import Features, joined

MEAN = "mean_of_heads"
# Fields that answers of tasks have, in the client, too.
RESERVED = {
    *("request", "index", "label", "score", "scores", "labels", "entities", "relations", "answer", "start", "end"),
    *("context", "tokens", "windows", "truncated", "abstained", "record"),
}


class Options(TextOptions):
    """The heads."""

    heads: dict[str, HeadOptions] = Field(
        default_factory=lambda: {
            "intent": HeadOptions(method="text-classification", columns={"label": "intent"}),
            "slots": HeadOptions(method="token-classification"),
        },
        min_length=1,
    )
    """The heads by name, each with `method`, the name of its task, and `columns`, where its labels stand."""

    @field_validator("heads")
    @classmethod
    def _are_valid(cls, heads: dict[str, HeadOptions]) -> dict[str, HeadOptions]:
        for name, head in heads.items():
            if not name.replace("_", "").isalnum() or name in RESERVED:
                raise ValueError(
                    f"a head cannot be called {name!r}, expected letters, digits and underscores, and none of"
                    f" {', '.join(sorted(RESERVED))}"
                )
            _ = head.spec  # its options are validated
            Head(name, head).require_roles(head.columns)
        return heads


class MultiTask:
    """The task with the heads of its options; a prediction, a decision and a gold are dicts by head."""

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
        self.parts = [Head(name, head) for name, head in options.heads.items()]
        self.OUTPUTS = {key: axes for head in self.parts for key, axes in head.prefixed(head.task.OUTPUTS).items()}
        self.TARGETS = {
            key: target._replace(output=f"{head.name}/{target.output}")
            for head in self.parts
            for key, target in head.prefixed(head.task.TARGETS).items()
        }
        self.METRICS = (MEAN, *(f"{head.name}/{metric}" for head in self.parts for metric in head.task.METRICS))
        names: Any = Literal[tuple(head.name for head in self.parts)]
        description = "names of the heads that answer; empty: all of them"
        heads: Any = (tuple[names, ...], Field(default=(), description=description))
        self.Input = create_model("Input", __base__=TextInput, __doc__="A text, and the heads to ask.", heads=heads)
        answers: Any = {
            head.name: (head.task.Answer | None, Field(description=f"the answer of the head {head.name}"))
            for head in self.parts
        }
        read: Any = {
            "tokens": (int, Field(description="tokens that the model read")),
            "windows": (int, Field(description="overlapping parts that a long text was read in")),
            "truncated": (bool, Field(description="whether the end of the text was cut off")),
        }
        self.Answer = create_model("Answer", __base__=Frozen, __doc__="The answers for one text.", **answers, **read)

    def heads(self, spec: Spec) -> dict[str, tuple[str, ...]]:
        """Returns the labels of each output."""
        return {
            key: own.labels or getattr(head.task, "OUTPUT_NAMES", ())
            for head, own in self._specs(spec)
            for key in head.prefixed(head.task.OUTPUTS)
        }

    def _specs(self, spec: Spec) -> Iterator[tuple[Head, Spec]]:
        for head in self.parts:
            yield head, spec.options.heads[head.name].spec

    def heads_of(self, spec: Spec) -> dict[str, tuple[Task, Spec]]:
        """Returns the task of each head with its labels and options."""
        return {head.name: (head.task, own) for head, own in self._specs(spec)}

    def reader(
        self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
    ) -> Callable[[Mapping[str, Any]], Example]:
        """Returns a function that reads a text, and the labels of those heads that a row has labels of."""
        rows, column, name = list(rows), columns.get("head"), str(columns["text"])
        reads = {head.name: head.task.reader(rows, {**columns, **head.columns}) for head in self.parts}

        def read(row: Mapping[str, Any]) -> Example:
            only = str(row.get(column) or "").strip() if column else ""
            chosen = [head for head in self.parts if (head.name == only if only else head.is_labelled(row))]
            if not chosen:
                known = ", ".join(head.describe() for head in self.parts)
                raise ValueError(
                    f"has labels of no head{f' called {only!r}' if only else ''}, expected those of {known}"
                )
            targets = {}
            for head in sorted(chosen, key=lambda head: "tokens" not in head.task.COLUMNS):
                example = head.read(row, reads[head.name])
                targets[head.name] = example.target
                row = {**row, name: example.input.text}  # words that a head has joined are the text of the others
            if example.input.text_pair and any("tokens" in head.task.COLUMNS for head in self.parts):
                raise ValueError("is a pair of texts, and a head that labels words reads single texts only")
            return Example(self.Input(**dict(example.input)), targets)

        return read

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Returns no labels: each head has its own, which `prepare` learns."""
        return ()

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns no labels."""
        return ()

    def label_counts(self, example: Example) -> tuple[str, ...]:
        """Returns the labels, each after the name of its head."""
        return tuple(
            f"{head.name}/{label}" for head, part in self._labelled(example) for label in head.task.label_counts(part)
        )

    def _labelled(self, example: Example) -> Iterator[tuple[Head, Example]]:
        """Yields the heads that an example has labels of, each with its own example."""
        for head in self.parts:
            if head.name in example.target:
                yield head, Example(example.input, example.target[head.name], example.slice)

    def prepare(self, examples: Sequence[Example], options: Options) -> Options:
        """Returns options with the labels of each head.

        Raises:
            DataError: no example has labels of a head.
        """
        heads = {}
        for head in self.parts:
            own = [part for row in examples for labelled, part in self._labelled(row) if labelled is head]
            if not own:
                raise DataError(f"no training row has labels of the head {head.describe()}. Name its columns.")
            old = options.heads[head.name]
            learned = head.task.prepare(own, old.spec.options) if hasattr(head.task, "prepare") else old.spec.options
            heads[head.name] = old.learned(head.task.label_names(own), learned)
        return Options(max_windows=options.max_windows, heads=heads)

    def tune(self, gold: Sequence[Any], predictions: Sequence[Any], spec: Spec) -> Options:
        """Returns options with what the heads tune on the validation split."""
        heads = dict(spec.options.heads)
        for head, own in self._specs(spec):
            rows = [row for row, true in enumerate(gold) if head.name in true]
            if rows and hasattr(head.task, "tune"):
                true, predicted = ([side[row][head.name] for row in rows] for side in (gold, predictions))
                heads[head.name] = heads[head.name].learned(own.labels, head.task.tune(true, predicted, own))
        return Options(max_windows=spec.options.max_windows, heads=heads)

    def targets(self, example: Example, features: Features, spec: Spec) -> dict[str, Array]:
        """Returns the targets of all heads; those of heads without labels are ignored by the losses."""
        labelled, targets = {head.name: part for head, part in self._labelled(example)}, dict[str, Array]()
        for head, own in self._specs(spec):
            part = labelled.get(head.name)
            arrays = head.task.targets(part, features, own) if part else head.no_targets(features, own)
            targets |= head.prefixed(arrays)
        return targets

    def decode(self, outputs: Sequence[Arrays], features: Sequence[Features], item: Any, spec: Spec) -> dict[str, Any]:
        """Returns the prediction of each head."""
        return {
            head.name: head.task.decode([head.own(arrays) for arrays in outputs], features, item, own)
            for head, own in self._specs(spec)
        }

    def gold(self, example: Example, spec: Spec) -> dict[str, Any]:
        """Returns the gold of each head that the example has labels of."""
        specs = self.heads_of(spec)
        return {head.name: head.task.gold(part, specs[head.name][1]) for head, part in self._labelled(example)}

    def decide(self, prediction: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
        """Returns the decision of each head."""
        return {head.name: head.task.decide(prediction[head.name], own) for head, own in self._specs(spec)}

    def changes(self, example: Example, before: Any, after: Any, spec: Spec) -> list[dict[str, str]]:
        """Returns the differences of the heads that the example has labels of, with the head's name before the text."""
        specs = self.heads_of(spec)
        return [
            {**change, "text": f"{head.name}: {change['text']}"}
            for head, part in self._labelled(example)
            for change in head.task.changes(part, before[head.name], after[head.name], specs[head.name][1])
        ]

    def distance(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
        """Returns the largest difference of any head."""
        return max(head.task.distance(first[head.name], second[head.name]) for head in self.parts)

    def observed_labels(self, spec: Spec) -> tuple[str, ...]:
        """Lists the labels of all heads, each after the name of its head."""
        return tuple(
            f"{head.name}/{label}" for head, own in self._specs(spec) for label in tasks.observed_labels(head.task, own)
        )

    def observe(self, predictions: Sequence[Mapping[str, Any]], spec: Spec) -> Observations:
        """Returns label, confidence and entropy of each unit of each head, prediction by prediction."""
        start, abstained, rows = 0, 0, [list[tuple[Any, ...]]() for _ in predictions]
        for head, own in self._specs(spec):
            for parts, prediction in zip(rows, predictions, strict=True):
                seen = head.task.observe([prediction[head.name]], own)
                abstained += seen.abstained
                parts.append((seen.labels + start, seen.confidences, seen.entropies))
            start += len(tasks.observed_labels(head.task, own))
        units = np.array([sum(len(part[0]) for part in parts) for parts in rows], dtype=np.int64)
        empty = (np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
        labels, confidences, entropies = (
            np.concatenate(column) for column in zip(empty, *(part for parts in rows for part in parts), strict=True)
        )
        return Observations(units, labels, confidences, entropies, abstained)

    def dump(self, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Returns the arrays of each head, with the head's name before theirs."""
        return {
            key: array
            for head in self.parts
            for key, array in head.prefixed(head.task.dump([row[head.name] for row in predictions])).items()
        }

    def load(self, arrays: Arrays) -> list[dict[str, Any]]:
        """Turns the arrays of `dump` into predictions."""
        columns = [head.task.load(head.own(arrays)) for head in self.parts]
        return [
            {head.name: row for head, row in zip(self.parts, rows, strict=True)} for rows in zip(*columns, strict=True)
        ]

    def answer(self, prediction: Mapping[str, Any], features: Sequence[Features], item: Any, spec: Spec) -> BaseModel:
        """Returns the answers of the heads that the input names, or of all of them."""
        wanted, encoding = getattr(item, "heads", ()), joined(features)
        answers = {
            head.name: head.task.answer(prediction[head.name], features, item, own)
            if not wanted or head.name in wanted
            else None
            for head, own in self._specs(spec)
        }
        read = {"tokens": len(encoding), "windows": encoding.windows, "truncated": encoding.truncated}
        return self.Answer(**answers, **read)

    def record(self, answer: Any) -> dict[str, Any]:
        """Returns the records of the heads that answered, as `answers`."""
        answers = {head: getattr(answer, head.name) for head in self.parts}
        return {"answers": {head.name: head.task.record(own) for head, own in answers.items() if own is not None}}


def bind(options: Options) -> Task:
    """Returns the task with its heads."""
    return cast(Task, MultiTask(options))


_default = MultiTask(Options())


def __getattr__(name: str) -> Any:
    """Returns what the task has with its default options."""
    return getattr(_default, name)
