"""Why a label: how much its probability falls without each part of a text.

Occlusion (Zeiler and Fergus, 2014) on the served graph: the text is predicted again without each word, and the weight
of the word is the probability that the label loses. This needs no gradients, so it holds for every engine and
quantization. Long texts are cut into fewer parts, so that the cost is bounded.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.serving.api.protocols import EXAMPLE, Model, Protocol, text_inputs
from deploykit.tasks import Input, Task

PATH = "/v1/explain"
WORD = re.compile(r"\S+")
MIN_PARTS, MAX_PARTS = 8, 64  # of a text with enough words
MAX_CHARACTERS_READ = 128_000  # about, for one answer: the length of the text times its parts
MAX_CHARACTERS = 20_000  # of each text
FIRST_VERSION = {"text": "texts", "text_pair": "text_pairs"}  # fields that hold one text instead of a list of one


class Part(Frozen):
    """A part of the text; `weight` is the probability that the label loses without it."""

    text: str
    start: int = Field(description="offset of its first character")
    end: int = Field(description="offset after its last character")
    weight: float = Field(description="from -1 to 1; positive speaks for the label")


class ExplainResponse(Frozen):
    """Which parts of a text speak for a label, and which against it."""

    label: str = Field(description="the label that is explained")
    score: float = Field(description="its probability, 0 to 1")
    parts: list[Part]
    model: Model


def explain(manifest: Manifest, task: Task) -> tuple[Protocol, ...]:
    """Returns the route of explanations, if the task supports them."""
    if "explain" not in task.CAPABILITIES:
        return ()
    model = Model(name=manifest.name, version=manifest.version)

    def read(body: Any) -> list[Input]:
        (text,) = body.texts
        texts = [text, *(text[:start] + text[end:] for start, end in parts(text))]
        return text_inputs(texts, None if body.text_pairs is None else body.text_pairs * len(texts))

    def write(body: Any, answers: Sequence[Any]) -> BaseModel:
        (text,), (whole, *without) = body.texts, (answer.scores for answer in answers)
        label = body.label or max(whole, key=whole.__getitem__)
        weighted = [
            Part(text=text[start:end], start=start, end=end, weight=whole[label] - scores[label])
            for (start, end), scores in zip(parts(text), without, strict=True)
        ]
        return ExplainResponse(label=label, score=whole[label], parts=weighted, model=model)

    request = _request_model(manifest)
    return (Protocol("explain", PATH, request, ExplainResponse, read, write, scope="explain", counted=False),)


def _request_model(manifest: Manifest) -> type[BaseModel]:
    class ExplainRequest(Frozen):
        """A text whose label is to be explained."""

        texts: list[Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]] = Field(
            min_length=1, max_length=1, examples=[[EXAMPLE]], description="one text, which is read once for each part"
        )
        text_pairs: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] | None = Field(
            default=None, min_length=1, max_length=1, description="the second text of a pair, which stays whole"
        )
        label: str | None = Field(default=None, description="the label to explain; default: the most probable one")

        @model_validator(mode="before")
        @classmethod
        def _accept_first_version(cls, body: Any) -> Any:
            if not isinstance(body, dict) or not body.keys() & FIRST_VERSION.keys():
                return body
            if body.keys() & set(FIRST_VERSION.values()):
                raise ValueError("send either texts or text")
            single = {FIRST_VERSION[name]: [body[name]] for name in FIRST_VERSION if name in body}
            return single | {name: value for name, value in body.items() if name not in FIRST_VERSION}

        @model_validator(mode="after")
        def _fits_model(self) -> "ExplainRequest":
            if (self.text_pairs is not None) != manifest.pair:
                raise ValueError("this model reads pairs: send text_pairs" if manifest.pair else "send no text_pairs")
            if self.label is not None and self.label not in manifest.labels:
                raise ValueError(f"the label must be one of the {len(manifest.labels)} of this model")
            return self

    return ExplainRequest


def parts(text: str, max_parts: int | None = None) -> list[tuple[int, int]]:
    """Cuts a text into words, or into runs of words of about equal number.

    Args:
        text: of any length.
        max_parts: default: as many as may be read for one answer, because the text is read once for each part.

    Example:
        >>> parts("not a good film", max_parts=2)
        [(0, 5), (6, 15)]
    """
    max_parts = max_parts or min(max(MAX_CHARACTERS_READ // max(len(text), 1), MIN_PARTS), MAX_PARTS)
    words = [match.span() for match in WORD.finditer(text)]
    count = min(max_parts, len(words))
    edges = [round(index * len(words) / count) for index in range(count + 1)] if count else [0]
    return [(words[first][0], words[last - 1][1]) for first, last in pairwise(edges)]
