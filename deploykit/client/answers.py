"""Types of what `Client` returns: the answers of a service."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of answers; fields that it does not declare, such as those of newer services, are attributes, too."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Entity(Answer):
    """A labelled span of a text, with its character offsets."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Relation(Answer):
    """A relation between two of the `entities` of a prediction; `head` and `tail` are their indices in that list."""

    label: str
    head: int
    tail: int
    score: float


class Prediction(Answer):
    """The answer for one input. The task decides which of the fields are set.

    Text classification sets `label`, `score`, `scores` and `abstained`; with several labels per text, `labels` and
    `scores`. Regression sets `score`. Token classification sets `entities`, and relation extraction `entities` and
    `relations`. Question answering sets `answer`, `score`, `start`, `end` and `context`. A model with several heads has
    an attribute for each head, called as the head, which is a `Prediction`, too.

    `request` is the id of the request, and `index` the position of the input in the request.
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


class Ranked(Answer):
    """A candidate of a ranking; `index` is its position in the request."""

    index: int
    score: float


class Part(Answer):
    """A part of a text; `weight` is by how much the probability of the label falls without the part."""

    text: str
    start: int
    end: int
    weight: float


class Explanation(Answer):
    """Which parts of a text speak for a label."""

    label: str
    score: float
    parts: list[Part]
