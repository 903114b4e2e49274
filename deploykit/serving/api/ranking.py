"""The route that ranks candidates for a query, for models that read pairs of texts."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.serving.api.protocols import EXAMPLE_TEXT, Model, Protocol, text_inputs
from deploykit.tasks import Input, Task, spec_of
from deploykit.tasks._ranking import Relevance

PATH = "/v1/rank"


class Ranked(Frozen):
    """A candidate of the request."""

    index: int = Field(description="its position among the candidates, from 0")
    score: float = Field(description="how relevant it is: the probability of the positive label, or the number")


class RankResponse(Frozen):
    """The candidates, sorted."""

    ranking: list[Ranked] = Field(description="the most relevant first; equal ones in the order of the request")
    model: Model = Field(description="the model that answered")


def rank_protocols(manifest: Manifest, task: Task) -> tuple[Protocol, ...]:
    """Returns the protocol of ranking; none if the model reads no pairs, or the task has no measure of relevance."""
    model = Model(name=manifest.name, version=manifest.version)
    relevance: Relevance | None = None
    if manifest.pair and hasattr(task, "relevance"):
        relevance = task.relevance(spec_of(manifest))
    if relevance is None:
        return ()

    def read(body: Any) -> list[Input]:
        """Returns the query paired with each candidate."""
        return text_inputs([body.query] * len(body.candidates), body.candidates)

    def write(body: Any, answers: Sequence[BaseModel]) -> BaseModel:
        """Sorts the candidates by relevance; `sort` keeps the order of equal ones."""
        ranked = [Ranked(index=index, score=relevance.of_answer(answer)) for index, answer in enumerate(answers)]
        ranked.sort(key=lambda candidate: -candidate.score)
        return RankResponse(ranking=ranked[: body.top_k], model=model)

    return (Protocol("rank", PATH, _request_model(manifest), RankResponse, read, write),)


def _request_model(manifest: Manifest) -> type[BaseModel]:
    """Returns the type of a request, with at most as many candidates as the service accepts texts."""
    candidates = Annotated[
        list[str], Field(min_length=1, max_length=manifest.serve.max_texts, examples=[[EXAMPLE_TEXT]])
    ]
    fields: dict[str, Any] = {
        "query": (str, Field(description="the first text of each pair", examples=[EXAMPLE_TEXT])),
        "candidates": (candidates, Field(description="the second texts of the pairs, which are ranked")),
        "top_k": (int | None, Field(default=None, ge=1, description="the most candidates of the answer; null: all")),
    }
    return create_model("RankRequest", __base__=Frozen, __doc__="A query, and candidates to rank for it.", **fields)
