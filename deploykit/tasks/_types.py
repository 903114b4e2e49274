"""What tasks have in common: inputs, examples, targets, and arrays."""

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
Prediction = Any  # the task's own
IGNORED = -100  # target that torch's cross-entropy ignores
EMPTY_TEXT_WORK = 32  # characters that take as long to encode as an empty text


class Input(Frozen):
    """Base of what a task predicts for; `FILES` are the names of its fields that hold files, such as images."""

    FILES: ClassVar[tuple[str, ...]] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts among its fields, in order."""
        return tuple(value for _, value in self if isinstance(value, str))

    @property
    def parts(self) -> tuple[str | bytes | Path, ...]:
        """The texts and files among its fields, in order."""
        return tuple(value for _, value in self if isinstance(value, (str, bytes, Path)))

    @property
    def identity(self) -> tuple[str, ...]:
        """What copies have in common: the texts with single spaces."""
        return tuple(" ".join(text.split()) for text in self.texts)

    @property
    def title(self) -> str:
        """What it is called in messages and tables: its first text."""
        return self.texts[0]

    @property
    def work(self) -> int:
        """How long it takes to encode, as a number of characters."""
        return sum(len(text) + EMPTY_TEXT_WORK for text in self.texts)

    def without_files(self) -> Self:
        """Returns the input without the fields that hold files."""
        others = {name: value for name, value in self if name not in self.FILES}
        return cast(Self, type(self).model_construct(**others))

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Returns the input with each of its texts changed."""
        return self.model_copy(update={name: change(value) for name, value in self if isinstance(value, str)})


class TextInput(Input):
    """A text, or two that belong together."""

    text: str
    text_pair: str | None = None


class TextOptions(Options):
    """Options of tasks that read texts."""

    max_windows: int = Field(default=16, ge=1)
    """Maximum number of overlapping windows in which a long text is read; 1 cuts it instead."""


class Column(NamedTuple):
    """A column that a task reads: its name unless the recipe has another one (None: only if it names one)."""

    default: str | None
    description: str


class Target(NamedTuple):
    """What the training loss compares with an output of the model.

    `loss` is a name in `modeling.losses`. `axes` are those of the target after the batch: `("tokens",)` for one target
    per token, `("position",)` for the index of a token, and others, which are not padded.
    """

    output: str
    loss: str
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """A labelled part of a text; character offsets, the end exclusive."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """A labelled input; the target is the task's own, for example a label or spans.

    `slice` is the group of rows that it belongs to, for figures by group.
    """

    input: Any
    target: Any
    slice: str = ""


@dataclass(frozen=True)
class Spec:
    """What a task needs to know about a model: its labels in the order of the outputs, and the task's options."""

    labels: tuple[str, ...]
    options: Any


@dataclass(frozen=True)
class Observations:
    """What the metrics of a service count of some predictions.

    A *unit* is what gets one label: a text, or a word. `units` are the numbers of units of the predictions,
    `(predictions,)`; `labels` are the indices of their labels, `confidences` the probabilities of these, and
    `entropies` say how undecided the model was, from 0 to 1 (all labels alike), each `(units,)`.
    """

    units: Int64
    labels: Int64
    confidences: Float32
    entropies: Float32
    abstained: int = 0  # decisions on which the model abstained


def are_same(first: Any, second: Any) -> bool:
    """Says whether two decisions are the same: arrays, or dictionaries of them, or anything else that can be equal."""
    if isinstance(first, Mapping):
        return all(are_same(value, second[name]) for name, value in first.items())
    return np.array_equal(first, second) if isinstance(first, np.ndarray) else bool(first == second)


def softmax(logits: Float32) -> Float32:
    """Returns probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Float32, shifted / shifted.sum(axis=-1, keepdims=True))
