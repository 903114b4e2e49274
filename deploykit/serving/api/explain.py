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
from deploykit.serving.api.protocols import EXAMPLE_TEXT, Model, Protocol, text_inputs
from deploykit.tasks import Input, Task

PATH = "/v1/explain"
WORD_PATTERN = re.compile(r"\S+")
MIN_PARTS, MAX_PARTS = 8, 64  # of a text with enough words
# For one answer the model reads about so many characters: the length of the text times the number of its parts. Of a
# long text with `MIN_PARTS` they are more.
TARGET_CHARACTERS_READ = 128_000
MAX_CHARACTERS = 20_000  # of each text
# from fields of the first version of this route, which hold one text, to those of today, which hold a list of one
FIRST_VERSION_FIELDS = {"text": "texts", "text_pair": "text_pairs"}


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


def explain_protocols(manifest: Manifest, task: Task) -> tuple[Protocol, ...]:
    """Returns the protocol of explanations; none if the task does not support them."""
    if "explain" not in task.CAPABILITIES:
        return ()
    model = Model(name=manifest.name, version=manifest.version)

    def read(body: Any) -> list[Input]:
        """Returns the text, and the text without each of its parts."""
        (text,) = body.texts
        texts = [text, *(text[:start] + text[end:] for start, end in split_parts(text))]
        return text_inputs(texts, None if body.text_pairs is None else body.text_pairs * len(texts))

    def write(body: Any, answers: Sequence[Any]) -> BaseModel:
        """Compares the answer to the text with those to the text without each part."""
        (text,) = body.texts
        whole_scores, *scores_without_part = (answer.scores for answer in answers)  # of the text, and without each part
        label = body.label or max(whole_scores, key=whole_scores.__getitem__)
        parts = [
            Part(text=text[start:end], start=start, end=end, weight=whole_scores[label] - scores[label])
            for (start, end), scores in zip(split_parts(text), scores_without_part, strict=True)
        ]
        return ExplainResponse(label=label, score=whole_scores[label], parts=parts, model=model)

    request = _request_model(manifest)
    return (Protocol("explain", PATH, request, ExplainResponse, read, write, scope="explain", counted=False),)


def _request_model(manifest: Manifest) -> type[BaseModel]:
    """Returns the type of a request, which accepts the labels of this model."""

    class ExplainRequest(Frozen):
        """A text whose label is to be explained."""

        texts: list[Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]] = Field(
            min_length=1,
            max_length=1,
            examples=[[EXAMPLE_TEXT]],
            description="one text, which is read once for each part",
        )
        text_pairs: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] | None = Field(
            default=None, min_length=1, max_length=1, description="the second text of a pair, which stays whole"
        )
        label: str | None = Field(default=None, description="the label to explain; default: the most probable one")

        @model_validator(mode="before")
        @classmethod
        def _accept_first_version(cls, body: Any) -> Any:
            """Turns the fields of the first version into those of today."""
            if not isinstance(body, dict) or not body.keys() & FIRST_VERSION_FIELDS.keys():
                return body
            if body.keys() & set(FIRST_VERSION_FIELDS.values()):
                raise ValueError("send either texts or text")
            lists = {today: [body[first]] for first, today in FIRST_VERSION_FIELDS.items() if first in body}
            return lists | {name: value for name, value in body.items() if name not in FIRST_VERSION_FIELDS}

        @model_validator(mode="after")
        def _fits_model(self) -> "ExplainRequest":
            """Checks whether there must be a second text, and that the label is one of the model."""
            if (self.text_pairs is not None) != manifest.pair:
                raise ValueError("this model reads pairs: send text_pairs" if manifest.pair else "send no text_pairs")
            if self.label is not None and self.label not in manifest.labels:
                raise ValueError(f"the label must be one of the {len(manifest.labels)} of this model")
            return self

    return ExplainRequest


def split_parts(text: str, max_parts: int | None = None) -> list[tuple[int, int]]:
    """Cuts a text into words; one with too many words into parts of about equally many.

    Args:
        text: of any length.
        max_parts: default: fewer for longer texts, because the model reads the text once for each part.

    Returns:
        Of each part the offsets of its first character, and after its last.

    Example:
        >>> split_parts("not a good film", max_parts=2)
        [(0, 5), (6, 15)]
    """
    max_parts = max_parts or min(max(TARGET_CHARACTERS_READ // max(len(text), 1), MIN_PARTS), MAX_PARTS)
    words = [match.span() for match in WORD_PATTERN.finditer(text)]
    count = min(max_parts, len(words))
    if not count:
        return []
    part_starts = [round(index * len(words) / count) for index in range(count + 1)]  # indices of words
    return [(words[start][0], words[stop - 1][1]) for start, stop in pairwise(part_starts)]
