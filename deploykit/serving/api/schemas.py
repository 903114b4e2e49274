"""Types of requests and responses.

The type of an answer is the task's own, and a request has pairs if and only if the model reads pairs, so that the
OpenAPI document describes the served model.
"""

from typing import Any, Self

from pydantic import BaseModel, Field, create_model, model_validator

from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.tasks import Task

EXAMPLE = "A film that I will watch again."


class Model(Frozen):
    """The model that answered; `version` is the beginning of the package's content key."""

    name: str
    version: str


class Pairs(Frozen):
    """Base of a request with pairs."""

    @model_validator(mode="after")
    def _same_number(self) -> Self:
        texts, pairs = (getattr(self, name) for name in ("texts", "text_pairs"))
        if len(texts) != len(pairs):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} text_pairs, expected as many of each")
        return self


class Pair(Frozen):
    """Two texts that belong together."""

    text: str
    text_pair: str


def example(pair: bool) -> Any:
    """Returns an example of an input."""
    return {"text": EXAMPLE, "text_pair": EXAMPLE} if pair else EXAMPLE


def request_model(manifest: Manifest) -> type[BaseModel]:
    """Returns the type of a request: `texts`, and `text_pairs` if the model reads pairs."""
    bounds: dict[str, Any] = {"min_length": 1, "max_length": manifest.serve.max_texts}
    fields: dict[str, Any] = {
        "texts": (list[str], Field(description="the texts to predict for", examples=[[EXAMPLE]], **bounds)),
    }
    if manifest.pair:
        description = "the second text of each pair, as many as texts"
        fields["text_pairs"] = (list[str], Field(description=description, examples=[[EXAMPLE]], **bounds))
    base = Pairs if manifest.pair else Frozen
    return create_model("PredictRequest", __base__=base, __doc__="Texts to predict for.", **fields)


def response_model(task: Task) -> type[BaseModel]:
    """Returns the type of a response: one answer a text, in the order of the request."""
    answer: Any = task.Answer
    fields: dict[str, Any] = {
        "predictions": (list[answer], Field(description="one answer a text, in the order of the request")),
        "model": (Model, Field(description="the model that answered")),
    }
    return create_model("PredictResponse", __base__=Frozen, __doc__="Predictions.", **fields)
