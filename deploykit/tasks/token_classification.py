"""Labelled stretches of a text: names, parts of speech, anything with a beginning and an end.

A unit is a word or a punctuation mark, found by one regular expression in training and in serving alike,
whatever the tokenizer does. A unit is labelled in BIO by the first token that overlaps it, so that
answers are spans with true character offsets. Data comes as tokens and tags (joined by single spaces) or
as a text with character spans.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deploykit.tasks import IGNORED, Example, Float32, Int64, Span, softmax
from deploykit.tokenizer import Encoding, Window

AUTO_CLASS = "AutoModelForTokenClassification"
ORT_CLASS = "ORTModelForTokenClassification"
OPTIMUM_TASK = "token-classification"
METRICS = ("entity_f1", "accuracy")
PIPELINE_NESTED = False

OUTSIDE = "O"
UNIT = re.compile(r"\w+|[^\w\s]")
UNSEEN_LOGIT = 30.0  # what a unit that was cut off gets for OUTSIDE: certain, and finite


class Entity(BaseModel):
    """A labelled stretch of the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    text: str
    start: int = Field(description="offset of its first character")
    end: int = Field(description="offset after its last character")
    score: float = Field(description="the lowest probability among its words, 0 to 1")


class Answer(BaseModel):
    """The prediction for one text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entities: list[Entity]
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def read(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
    """Takes `tokens` and `tags`, or, when the column `spans` is named, `text` and `spans`."""
    if columns.get("spans"):
        return _from_spans(row[str(columns["text"])], row[str(columns["spans"])])
    return _from_tags(row[str(columns["tokens"])], row[str(columns["tags"])])


def _from_spans(text: Any, spans: Any) -> Example:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text is {text!r}, expected one that is not empty")
    if not isinstance(spans, list) or not all(isinstance(span, Mapping) for span in spans):
        raise ValueError(f"spans is {spans!r}, expected a list of objects with start, end and label")
    found = []
    for span in spans:
        start, end, label = span.get("start"), span.get("end"), span.get("label")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise ValueError(f"the span {dict(span)!r} does not lie in a text of {len(text)} characters")
        if not UNIT.search(text, start, end):
            raise ValueError(f"the span {dict(span)!r} covers no word of the text, expected at least one")
        if not isinstance(label, str) or not label:
            raise ValueError(f"the span {dict(span)!r} has no label")
        found.append(Span(start, end, label))
    found.sort(key=lambda span: span.start)
    for before, after in pairwise(found):
        if after.start < before.end or re.fullmatch(r"\w+", text[before.end - 1 : after.start + 1]):
            raise ValueError(f"the spans {before} and {after} overlap or share a word, expected one label a word")
    return Example(text=text, spans=tuple(found))


def _from_tags(tokens: Any, tags: Any) -> Example:
    if not isinstance(tokens, list) or not isinstance(tags, list) or not tokens:
        raise ValueError("tokens and tags must be lists, and not empty")
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags, expected as many of each")
    if not all(isinstance(word, str) and word.strip() for word in tokens):
        raise ValueError("a token is empty or no text")
    if not all(isinstance(tag, str) and tag for tag in tags):
        raise ValueError("a tag is empty or no text")
    ends = np.cumsum([len(word) + 1 for word in tokens]) - 1
    spans: list[Span] = []
    before = OUTSIDE
    for word, tag, end in zip(tokens, tags, ends, strict=True):
        prefix, label = split_tag(tag)
        if tag != OUTSIDE:
            if prefix == "I" and before != OUTSIDE and split_tag(before)[1] == label:
                spans[-1] = Span(spans[-1].start, int(end), label)
            else:
                spans.append(Span(int(end) - len(word), int(end), label))
        before = tag
    return Example(text=" ".join(tokens), spans=tuple(spans))


def split_tag(tag: str) -> tuple[str, str]:
    """Splits `B-NAME` into ("B", "NAME"); a tag without a prefix begins a span of its own."""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and prefix in ("B", "I") else ("B", tag)


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns `O` and then B- and I- of each label, sorted."""
    names = sorted({span.label for example in examples for span in example.spans})
    return (OUTSIDE, *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns `O` and then B- and I- of each label, in the order in which the labels come."""
    names = dict.fromkeys(label.partition("-")[2] for label in labels if label != OUTSIDE)
    return (OUTSIDE, *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def classes(example: Example) -> tuple[str, ...]:
    """Returns the labels of the spans, each once; `O` where there is none."""
    return tuple(sorted({span.label for span in example.spans})) or (OUTSIDE,)


def units(text: str) -> Int64:
    """Finds the words and punctuation marks of a text, shape `(units, 2)`, character offsets."""
    return np.array([match.span() for match in UNIT.finditer(text)], dtype=np.int64).reshape(-1, 2)


def targets(example: Example, labels: Sequence[str]) -> Int64:
    """Returns the true BIO label of each unit, shape `(units,)`."""
    found = np.zeros(len(places := units(example.text)), dtype=np.int64)
    for span in example.spans:
        inside = np.flatnonzero((places[:, 0] < span.end) & (places[:, 1] > span.start))
        found[inside] = labels.index(f"I-{span.label}")
        found[inside[:1]] = labels.index(f"B-{span.label}")
    return found


def first_tokens(text: str, encoding: Encoding) -> Int64:
    """Returns, for each unit, the first token that overlaps it, or -1 where it was cut off."""
    places, real = units(text), np.flatnonzero(encoding.offsets[:, 1] > encoding.offsets[:, 0])
    starts, ends = encoding.offsets[real, 0], encoding.offsets[real, 1]
    first = np.searchsorted(ends, places[:, 0], side="right")  # the first token that ends after the unit begins
    found = np.full(len(places), -1, dtype=np.int64)
    inside = first < len(real)
    inside[inside] = starts[first[inside]] < places[inside, 1]
    found[inside] = real[first[inside]]
    return found


def loss_targets(example: Example, encoding: Encoding, labels: Sequence[str]) -> Int64:
    """Returns, for each token, its unit's label, or `IGNORED` where it begins no unit; shape `(tokens,)`."""
    found = np.full(len(encoding), IGNORED, dtype=np.int64)
    tokens = first_tokens(example.text, encoding)
    for token, label in zip(tokens[::-1], targets(example, labels)[::-1], strict=True):
        if token >= 0:  # backwards, so that the first of two units that share a token decides
            found[token] = label
    return found


def scores(logits: Float32, text: str, encoding: Encoding) -> Float32:
    """Takes from the logits `(tokens, labels)` those of each unit's first token, `(units, labels)`."""
    tokens = first_tokens(text, encoding)
    found = logits[np.maximum(tokens, 0)].astype(np.float32)
    found[tokens < 0] = 0.0
    found[tokens < 0, 0] = UNSEEN_LOGIT
    return found


def merge(scores: Sequence[Float32], windows: Sequence[Window], text: str) -> Float32:
    """Takes each unit's scores from the window that shows most of what stands around it.

    A word that a window's edge cuts in two is no unit of that window; one that is cut in all of them, because it is
    longer than what windows share, has the scores of its longest beginning.

    Returns:
        Scores of the units in all that was read, `(units, labels)`.
    """
    places = units(text[: windows[-1].start + len(windows[-1].text)])
    begins = {start: number for number, (start, _) in enumerate(places.tolist())}
    found = np.zeros((len(places), scores[0].shape[1]), dtype=np.float32)
    found[:, 0], shown = UNSEEN_LOGIT, np.full(len(places), -np.inf)
    for number, (window, rows) in enumerate(zip(windows, scores, strict=True)):
        first, last = number == 0, number == len(windows) - 1
        for (start, end), row in zip((units(window.text) + window.start).tolist(), rows, strict=True):
            before = np.inf if first else start - window.start
            after = np.inf if last else window.start + len(window.text) - end
            unit = begins.get(start, -1)
            whole = unit >= 0 and end == places[unit, 1]
            context = min(before, after) if whole else -1 / (end - start)
            if unit >= 0 and context > shown[unit]:
                found[unit], shown[unit] = row, context
    return found


def answer(scores: Float32, text: str, encoding: Encoding, labels: Sequence[str]) -> Answer:
    """Joins units into entities: an I- label continues an entity of the same name, or begins one."""
    entities: list[Entity] = []
    before = OUTSIDE
    read = units(text[: encoding.offsets[:, 1].max(initial=0)])  # what was cut off has no entity
    probabilities = softmax(scores[: len(read)]) if len(read) else scores[:0]
    for (start, end), row in zip(read.tolist(), probabilities, strict=True):
        tag = labels[int(row.argmax())]
        prefix, label = split_tag(tag)
        if tag != OUTSIDE:
            score = float(row.max())
            if prefix == "I" and before != OUTSIDE and split_tag(before)[1] == label:
                start, score = entities[-1].start, min(entities[-1].score, score)
                entities.pop()
            entities.append(Entity(label=label, text=text[start:end], start=start, end=end, score=score))
        before = tag
    return Answer(entities=entities, tokens=len(encoding), windows=encoding.windows, truncated=encoding.truncated)


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Lists entities with the names that transformers gives their parts."""
    return [
        {
            "entity_group": found.label,
            "score": found.score,
            "word": found.text,
            "start": found.start,
            "end": found.end,
        }
        for found in answer.entities
    ]
