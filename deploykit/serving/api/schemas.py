"""What goes over the wire: typed, frozen, unknown keys refused.

The answer's type is the task's own, and a request asks for pairs exactly when the model takes pairs, so
that the OpenAPI document describes this model and no other.
"""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import ErrorDetails

from deploykit.artifact import Manifest
from deploykit.tasks import Task

ERRORS_SHOWN = 10
CHARACTERS_SHOWN = 80  # of a key that the client has made up
EXAMPLE = "A film that I will watch again."


class Wire(BaseModel):
    """Base of what is sent and received."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Wire):
    """Which model answered; `version` begins the package's key."""

    name: str
    version: str


class Pairs(Wire):
    """The check that pairs are pairs."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        texts, pairs = (getattr(self, name) for name in ("texts", "text_pairs"))
        if len(texts) != len(pairs):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} text_pairs, expected as many of each")
        return self


class Pair(Wire):
    """Two texts that belong together."""

    text: str
    text_pair: str


def example(pair: bool) -> Any:
    """Returns an input to show."""
    return {"text": EXAMPLE, "text_pair": EXAMPLE} if pair else EXAMPLE


def request_model(manifest: Manifest) -> type[BaseModel]:
    """Makes the type of a request body: `texts`, and `text_pairs` for a model that reads pairs."""
    bounds: dict[str, Any] = {"min_length": 1, "max_length": manifest.serve.max_texts}
    fields: dict[str, Any] = {
        "texts": (list[str], Field(description="the texts to answer for", examples=[[EXAMPLE]], **bounds)),
    }
    if manifest.pair:
        description = "the second text of each pair, as many as texts"
        fields["text_pairs"] = (list[str], Field(description=description, examples=[[EXAMPLE]], **bounds))
    base = Pairs if manifest.pair else Wire
    return create_model("PredictRequest", __base__=base, __doc__="Texts to answer for.", **fields)


def response_model(task: Task) -> type[BaseModel]:
    """Makes the type of a response: one answer a text, in the order asked."""
    answer: Any = task.Answer
    fields: dict[str, Any] = {
        "predictions": (list[answer], Field(description="one answer a text, in the order asked")),
        "model": (Model, Field(description="which model answered")),
    }
    return create_model("PredictResponse", __base__=Wire, __doc__="Answers.", **fields)


def faults(errors: Sequence[ErrorDetails]) -> list[dict[str, str]]:
    """Says where a body does not fit and why, without quoting it; ten at most."""
    return [
        {
            "where": ".".join(map(str, error["loc"]))[:CHARACTERS_SHOWN] or "body",
            "message": error["msg"].removeprefix("Value error, "),
        }
        for error in errors[:ERRORS_SHOWN]
    ]
