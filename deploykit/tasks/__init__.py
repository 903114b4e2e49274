"""What inputs and predictions mean. One file a task, numpy and pydantic only.

Training, evaluation and serving share these functions and so cannot drift apart; the metrics that a task
names are computed in `evaluation`. The word used throughout is *unit*: the thing that gets one label. A
text has one unit, a sequence of words has one unit a word. Scores have shape `(units, labels)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from deploykit import methods
from deploykit.tokenizer import Encoding, Window

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
IGNORED = -100  # the target that torch's cross-entropy leaves out


@dataclass(frozen=True)
class Span:
    """A labelled piece of text: character offsets, end exclusive."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """One labelled input, whatever the task."""

    text: str
    pair: str | None = None
    label: str = ""
    spans: tuple[Span, ...] = ()


class Task(Protocol):
    """What a file of this folder provides, as module-level names.

    `AUTO_CLASS` and `ORT_CLASS` name the classes of transformers and Optimum that open such a model,
    `OPTIMUM_TASK` is the exporter's name for it, `METRICS` are computed in `evaluation`, the first of
    them decides, and `Answer` is the pydantic model of one served prediction. `PIPELINE_NESTED` says whether
    Hugging Face's inference API wraps the answer to a single input into a list.
    """

    AUTO_CLASS: str
    ORT_CLASS: str
    OPTIMUM_TASK: str
    METRICS: tuple[str, ...]
    Answer: type[BaseModel]
    PIPELINE_NESTED: bool

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
        """Turns a row of a file into an example; raises ValueError with what is wrong in it."""

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Lists the labels of a model trained on these examples, in the order of its outputs."""

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns labels in the order that outputs must have, which is the given one as far as it may be."""

    def classes(self, example: Example) -> tuple[str, ...]:
        """Lists the labels, as the data names them, that stand in an example."""

    def units(self, text: str) -> Int64:
        """Returns the character offsets of the units of a text, `(units, 2)`."""

    def targets(self, example: Example, labels: Sequence[str]) -> Int64:
        """Returns the true label of each unit, shape `(units,)`."""

    def loss_targets(self, example: Example, encoding: Encoding, labels: Sequence[str]) -> Int64:
        """Returns what the training loss compares: shape `()` or `(tokens,)`, `IGNORED` where nothing."""

    def scores(self, logits: Float32, text: str, encoding: Encoding) -> Float32:
        """Turns the logits of one input, padding removed, into scores of its units, `(units, labels)`."""

    def merge(self, scores: Sequence[Float32], windows: Sequence[Window], text: str) -> Float32:
        """Turns the scores of overlapping windows of a text into scores of the text's units."""

    def answer(self, scores: Float32, text: str, encoding: Encoding, labels: Sequence[str]) -> BaseModel:
        """Turns scores into what a client gets."""

    def pipeline(self, answer: Any, top_k: int | None) -> list[dict[str, Any]]:
        """Turns an answer into what transformers' pipeline for this task returns."""


def load(name: str) -> Task:
    """Imports a task by name, for example `"text-classification"`."""
    return cast(Task, methods.load("task", name))


def softmax(logits: Float32) -> Float32:
    """Returns probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Float32, shifted / shifted.sum(axis=-1, keepdims=True))
