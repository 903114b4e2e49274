"""Types of the answers of a service."""

from pydantic import BaseModel, ConfigDict


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


class Prediction(Received):
    """The answer for one text: `label`, `score` and `scores`, or `entities` in token classification.

    `request` is the id of its request, `index` its position there.
    """

    request: str = ""
    index: int = 0
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = {}
    entities: list[Entity] = []
    tokens: int
    truncated: bool


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
