"""What inputs and predictions mean. Each task is one file that needs only numpy and pydantic.

Training, evaluation and serving share these functions. A *unit* is what gets one label: the whole text in text
classification, a word in token classification. Scores have shape `(units, labels)`.
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
IGNORED = -100  # target that torch's cross-entropy ignores


@dataclass(frozen=True)
class Span:
    """A labelled part of a text; character offsets, the end exclusive."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """One labelled input of any task."""

    text: str
    pair: str | None = None
    label: str = ""
    spans: tuple[Span, ...] = ()


class Task(Protocol):
    """The module-level names that a file of this folder provides.

    `AUTO_CLASS` and `ORT_CLASS` name the classes of transformers and Optimum that open such a model, and `OPTIMUM_TASK`
    is the exporter's name for the task. `METRICS` are computed in `evaluation`; gates and searches use the first.
    `Answer` is the pydantic model of one served prediction. `PIPELINE_NESTED` says whether Hugging Face's inference API
    wraps the answer to a single input into a list.
    """

    AUTO_CLASS: str
    ORT_CLASS: str
    OPTIMUM_TASK: str
    METRICS: tuple[str, ...]
    Answer: type[BaseModel]
    PIPELINE_NESTED: bool

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
        """Turns a row of a file into an example; raises ValueError if it cannot."""

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """Lists the labels of a model trained on these examples, in the order of its outputs."""

    def label_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Returns labels in the order that the outputs must have, keeping the given order where possible."""

    def classes(self, example: Example) -> tuple[str, ...]:
        """Lists the labels of an example, as the data names them."""

    def units(self, text: str) -> Int64:
        """Returns the character offsets of the units of a text, `(units, 2)`."""

    def targets(self, example: Example, labels: Sequence[str]) -> Int64:
        """Returns the true label of each unit, shape `(units,)`."""

    def loss_targets(self, example: Example, encoding: Encoding, labels: Sequence[str]) -> Int64:
        """Returns the targets of the training loss, `()` or `(tokens,)`, some of which may be `IGNORED`."""

    def scores(self, logits: Float32, text: str, encoding: Encoding) -> Float32:
        """Turns the logits of one input, padding removed, into scores of its units, `(units, labels)`."""

    def merge(self, scores: Sequence[Float32], windows: Sequence[Window], text: str) -> Float32:
        """Turns the scores of overlapping windows of a text into scores of the text's units."""

    def answer(self, scores: Float32, text: str, encoding: Encoding, labels: Sequence[str]) -> BaseModel:
        """Turns scores into the answer for a client."""

    def pipeline(self, answer: Any, top_k: int | None) -> list[dict[str, Any]]:
        """Turns an answer into the format of transformers' pipeline for this task."""


def load(name: str) -> Task:
    """Imports a task by name, for example `"text-classification"`."""
    return cast(Task, methods.load("task", name))


def softmax(logits: Float32) -> Float32:
    """Returns probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return cast(Float32, shifted / shifted.sum(axis=-1, keepdims=True))
