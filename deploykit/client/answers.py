"""What a service answers, as types; fields of newer services are kept."""

from pydantic import BaseModel, ConfigDict


class Received(BaseModel):
    """Base of what comes back; fields of newer services are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Entity(Received):
    """A labelled stretch of a text, with character offsets into it."""

    label: str
    text: str
    start: int
    end: int
    score: float


class Prediction(Received):
    """The answer for one text: `label` and `scores` of a classifier of texts, `entities` of one of words.

    `request` is the id of the request that it is of, `index` its place in there.
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
    """A part of a text, and what the probability of the label loses without it."""

    text: str
    start: int
    end: int
    weight: float


class Explanation(Received):
    """Which parts of a text speak for a label."""

    label: str
    score: float
    parts: list[Part]
