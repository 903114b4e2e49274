"""The types that all tasks share: inputs, examples, targets, labels with options, and arrays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from deploykit.methods import Frozen, Options

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Prediction = Any  # of a type that each task chooses, for example logits
IGNORE_INDEX = -100  # target that the loss skips; the default `ignore_index` of torch's cross-entropy
EMPTY_TEXT_COST = 32  # tokenizing an empty text takes as long as this many characters of a longer one


class Input(Frozen):
    """Base of the inputs of all tasks; `FILES` names the fields that hold files, such as images."""

    FILES: ClassVar[tuple[str, ...]] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Its texts, in the order of the fields."""
        return tuple(value for _, value in self if isinstance(value, str))

    @property
    def parts(self) -> tuple[str | bytes | Path, ...]:
        """Its texts and files, in the order of the fields."""
        return tuple(value for _, value in self if isinstance(value, (str, bytes, Path)))

    @property
    def identity(self) -> tuple[str, ...]:
        """A key that duplicates share: the texts, with white space collapsed to single spaces."""
        return tuple(" ".join(text.split()) for text in self.texts)

    @property
    def title(self) -> str:
        """Its first text, which stands for the input in messages and tables."""
        return self.texts[0]

    @property
    def encoding_cost(self) -> int:
        """Estimated time to encode it, in characters of text that take as long."""
        return sum(len(text) + EMPTY_TEXT_COST for text in self.texts)

    def without_files(self) -> Self:
        """Returns the input without the fields that hold files."""
        fields = {name: value for name, value in self if name not in self.FILES}
        return cast(Self, type(self).model_construct(**fields))

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Returns a copy in which `change` has replaced each text, for example by a masked one."""
        return self.model_copy(update={name: change(value) for name, value in self if isinstance(value, str)})


class TextInput(Input):
    """A text, or a pair of texts."""

    text: str
    text_pair: str | None = None


class TextOptions(Options):
    """Options of tasks that read texts."""

    max_windows: int = Field(default=16, ge=1)
    """Maximum number of overlapping windows in which a long text is read; 1 cuts it instead."""


class Column(NamedTuple):
    """A column of the data that a task reads."""

    default: str | None  # its name if the recipe names none; None: then it is not read
    description: str


class Target(NamedTuple):
    """What the training loss compares with an output of the model.

    Attributes:
        output: name of the output.
        loss: key of `LOSSES` in `modeling.losses`.
        axes: of the target, after the batch. An axis `"tokens"` has one target per token, and is padded with
            `IGNORE_INDEX` as the tokens are. `("position",)` means a single token index, of shape `()`, which moves
            with padding on the left. Other axes, such as `"labels"`, have a fixed length.
    """

    output: str
    loss: str
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """A labelled part of a text, by character offsets; `end` is exclusive."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """A labelled input.

    Attributes:
        input: of the task's type `Input`.
        target: what is true of it, in a type that the task chooses, for example a label or spans.
        slice: name of the group of rows that it belongs to; metrics are also computed for each group.
    """

    input: Any
    target: Any
    slice: str = ""


@dataclass(frozen=True)
class Spec:
    """What a task needs to know of a model: its labels, in the order of the outputs, and the options of the task."""

    labels: tuple[str, ...]
    options: Any


@dataclass(frozen=True)
class Observations:
    """What the metrics of a service count, for a list of predictions.

    A *unit* is what gets one label: a text, or a word.

    Attributes:
        units: number of units of each prediction, `(predictions,)`.
        labels: label index of each unit, `(units,)`: the units of the first prediction, then those of the next.
        confidences: probability of that label, `(units,)`.
        entropies: of the probabilities of all labels, `(units,)`, from 0 (certain) to 1 (all equally likely).
        abstained: number of decisions on which the model abstained.
    """

    units: Int64
    labels: Int64
    confidences: Float32
    entropies: Float32
    abstained: int = 0


def are_same(first: Any, second: Any) -> bool:
    """Says whether two decisions are equal; they may be arrays, dictionaries of arrays, or anything with `==`."""
    if isinstance(first, Mapping):
        return all(are_same(value, second[name]) for name, value in first.items())
    return np.array_equal(first, second) if isinstance(first, np.ndarray) else bool(first == second)


def softmax(logits: Float32) -> Float32:
    """Returns probabilities over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))  # shifted, so that none overflows
    return cast(Float32, exponentials / exponentials.sum(axis=-1, keepdims=True))
