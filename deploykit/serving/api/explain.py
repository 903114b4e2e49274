"""Why this label: how much the model's certainty falls without each part of a text.

Occlusion (Zeiler and Fergus, 2014), on the graph that is served: every word is left out in turn, and its weight is
what the probability of the label loses. It knows nothing of gradients, so it is true of any engine and quantization.
A text of many words is left out in as many parts as are allowed, and a long one in fewer, so that the cost is bounded.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from deploykit.artifact import Manifest
from deploykit.serving.api.protocols import Protocol, Texts
from deploykit.serving.api.schemas import EXAMPLE, Model, Wire
from deploykit.tasks import Task

PATH = "/v1/explain"
WORD = re.compile(r"\S+")
LEAST, MOST = 8, 64  # parts of a text that has so many words
MOST_READ = 128_000  # characters, about, in all that is read for one answer
MAX_CHARACTERS = 20_000  # of each text, which is read once for each part
SINGLE = {"text": "texts", "text_pair": "text_pairs"}


class Part(Wire):
    """A part of the text; `weight` is what the probability of the label loses without it."""

    text: str
    start: int = Field(description="offset of its first character")
    end: int = Field(description="offset after its last character")
    weight: float = Field(description="from -1 to 1; positive speaks for the label")


class ExplainResponse(Wire):
    """Which parts of a text speak for a label, and which against it."""

    label: str = Field(description="the label that is explained")
    score: float = Field(description="its probability, 0 to 1")
    parts: list[Part]
    model: Model


def explain(manifest: Manifest, task: Task) -> tuple[Protocol, ...]:
    """Returns the way to ask why, where answers have a probability for each label; else none."""
    if "scores" not in task.Answer.model_fields:
        return ()
    model = Model(name=manifest.name, version=manifest.version)

    class ExplainRequest(Wire):
        """A text whose label is to be explained."""

        texts: list[Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]] = Field(
            min_length=1, max_length=1, examples=[[EXAMPLE]], description="one text, which is read once for each part"
        )
        text_pairs: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] | None = Field(
            default=None, min_length=1, max_length=1, description="the second text of a pair, which stays whole"
        )
        label: str | None = Field(default=None, description="what to explain; default: what is most probable")

        @model_validator(mode="before")
        @classmethod
        def _single(cls, body: Any) -> Any:
            """Takes `text` and `text_pair` for lists of one: clients of the first version send them."""
            if not isinstance(body, dict) or not body.keys() & SINGLE.keys():
                return body
            if body.keys() & set(SINGLE.values()):
                raise ValueError("send either texts or text")
            return {SINGLE.get(name, name): [value] if name in SINGLE else value for name, value in body.items()}

        @model_validator(mode="after")
        def _fits(self) -> "ExplainRequest":
            if (self.text_pairs is not None) != manifest.pair:
                raise ValueError("this model reads pairs: send text_pairs" if manifest.pair else "send no text_pairs")
            if self.label is not None and self.label not in manifest.labels:
                raise ValueError(f"the label must be one of the {len(manifest.labels)} of this model")
            return self

    def read(asked: ExplainRequest) -> Texts:
        (text,) = asked.texts
        texts = [text, *(text[:start] + text[end:] for start, end in parts(text))]
        return texts, None if asked.text_pairs is None else asked.text_pairs * len(texts)

    def write(asked: ExplainRequest, answers: Sequence[Any]) -> BaseModel:
        (text,), (whole, *without) = asked.texts, (answer.scores for answer in answers)
        label = asked.label or max(whole, key=whole.__getitem__)
        weights = [
            Part(text=text[start:end], start=start, end=end, weight=whole[label] - scores[label])
            for (start, end), scores in zip(parts(text), without, strict=True)
        ]
        return ExplainResponse(label=label, score=whole[label], parts=weights, model=model)

    return (Protocol("explain", PATH, ExplainRequest, ExplainResponse, read, write, scope="explain", counted=False),)


def parts(text: str, most: int | None = None) -> list[tuple[int, int]]:
    """Cuts a text into words, or runs of words of about equal number where there are more than `most`.

    Args:
        text: of any length.
        most: parts; default: what may be read for one answer, since the text is read once for each part.

    Example:
        >>> parts("not a good film", most=2)
        [(0, 5), (6, 15)]
    """
    most = most or min(max(MOST_READ // max(len(text), 1), LEAST), MOST)
    words = [match.span() for match in WORD.finditer(text)]
    count = min(most, len(words))
    edges = [round(index * len(words) / count) for index in range(count + 1)] if count else [0]
    return [(words[first][0], words[last - 1][1]) for first, last in pairwise(edges)]
