"""Types of the answers of a service."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Received(BaseModel):
    """Base of answers; fields that a newer service adds are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Entity(Received):
    """A labelled span of a text, with its character offsets."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Relation(Received):
    """A relation between two of the `entities` of an answer: from that at the place `head` to that at `tail`."""

    label: str
    head: int
    tail: int
    score: float


class Prediction(Received):
    """The answer for one input.

    It has `label`, `score`, `scores` and `abstained` in text classification, `entities` in token classification,
    `labels` and `scores` for several labels, `score` in regression, `answer`, `score`, `start`, `end` and `context` for
    a question, and `entities` and `relations` in relation extraction. Of several heads each answer is a `Prediction`,
    too, and an attribute called as the head. Other fields of a task are attributes. `request` is the id of its request,
    and `index` its position there.
    """

    request: str = ""
    index: int = 0
    label: str | None = None
    abstained: bool = False
    score: float | None = None
    scores: dict[str, float] = {}
    labels: list[str] = []
    entities: list[Entity] = []
    relations: list[Relation] = []
    answer: str | None = None
    start: int | None = None
    end: int | None = None
    context: int | None = None
    tokens: int
    truncated: bool
    __pydantic_extra__: dict[str, Annotated["Prediction | Any", Field(union_mode="left_to_right")]]


class Ranked(Received):
    """A candidate of a ranking; `index` is its position in the request."""

    index: int
    score: float


class Part(Received):
    """A part of a text; `weight` is the probability that the label loses without it."""

    text: str
    start: int
    end: int
    weight: float


class Explanation(Received):
    """Which parts of a text speak for a label."""

    label: str
    score: float
    parts: list[Part]
