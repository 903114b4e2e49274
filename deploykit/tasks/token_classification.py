"""Labelled stretches of a text: names, parts of speech, anything with a beginning and an end.

Units (see `_units`) are found by one regular expression in training and in serving alike, whatever the tokenizer
does. A unit is labelled in BIO by the first token that overlaps it, so that answers are spans with true character
offsets; units that share a token are parts of one entity or of none. Data comes as tokens and tags or as a text
with character spans, which begin and end where units do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deploykit.tasks import IGNORED, Example, Float32, Int64, Span, softmax
from deploykit.tasks._tags import OUTSIDE, entities, scheme
from deploykit.tasks._units import UNIT, join, units
from deploykit.tokenizer import Encoding, Window

AUTO_CLASS = "AutoModelForTokenClassification"
ORT_CLASS = "ORTModelForTokenClassification"
OPTIMUM_TASK = "token-classification"
METRICS = ("entity_f1", "accuracy")
PIPELINE_NESTED = False

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
    return reader([row], columns)(row)


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns what reads a row of these: in which scheme tags are written, only all of them together can tell."""
    if columns.get("spans"):
        return lambda row: _from_spans(row[str(columns["text"])], row[str(columns["spans"])])
    tags = [row.get(str(columns["tags"])) for row in rows]
    names = {tag for row in tags if isinstance(row, list) for tag in row if isinstance(tag, str)}
    canonical = scheme(names)
    return lambda row: _from_tags(row[str(columns["tokens"])], row[str(columns["tags"])], canonical)


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
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"the span {dict(span)!r} has no label")
        found.append(Span(start, end, label.strip()))
    return _example(text, found)


def _from_tags(tokens: Any, tags: Any, canonical: Callable[[str], str]) -> Example:
    if not isinstance(tokens, list) or not isinstance(tags, list) or not tokens:
        raise ValueError("tokens and tags must be lists, and not empty")
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags, expected as many of each")
    if not all(isinstance(token, str) and token for token in tokens):
        raise ValueError("a token is empty or no text")
    if not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise ValueError("a tag is empty or no text")
    text, places = join(tokens)
    if not text.strip():
        raise ValueError("all tokens are white space")
    found = entities([*map(canonical, tags)])
    spans = [Span(places[first][0], places[last][1], label) for label, first, last in found]
    return _example(text, [span for span in spans if UNIT.search(text, span.start, span.end)])  # of what can be seen


def _example(text: str, spans: Sequence[Span]) -> Example:
    """Returns the spans in their order, less the white space at their ends.

    Raises:
        ValueError: a span covers no unit or cuts one, or two overlap.
    """
    starts, ends = units(text).T.tolist()
    whole: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end) - 1
        name = f"the span {span.start}-{span.end} {text[span.start : span.end]!r}"
        if last < first:
            raise ValueError(f"{name} covers no word of the text, expected at least one")
        for unit in (first, last):
            if starts[unit] < span.start or ends[unit] > span.end:
                word = text[starts[unit] : ends[unit]]
                raise ValueError(f"{name} begins or ends inside the word {word!r}, expected whole words")
        whole.append(Span(starts[first], ends[last], span.label))
    for before, after in pairwise(whole):
        if after.start < before.end:
            raise ValueError(f"the spans {before} and {after} overlap, expected one label a word")
    return Example(text=text, spans=tuple(whole))


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


def targets(example: Example, labels: Sequence[str]) -> Int64:
    """Returns the true BIO label of each unit, shape `(units,)`."""
    starts, ends = units(example.text).T
    found = np.zeros(len(starts), dtype=np.int64)
    first = np.searchsorted(ends, [span.start for span in example.spans], side="right")
    last = np.searchsorted(starts, [span.end for span in example.spans], side="left")
    for span, begin, end in zip(example.spans, first, last, strict=True):
        found[begin:end] = labels.index(f"I-{span.label}")
        found[begin : min(begin + 1, end)] = labels.index(f"B-{span.label}")
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
    """Takes from the logits `(tokens, labels)` those of each unit's first token, `(units, labels)`.

    A token may hold several units, as of a script without spaces. Then the second and all after it go on with what
    the first one is: to them, B- and I- of a label are both I-.
    """
    tokens = first_tokens(text, encoding)
    found = logits[np.maximum(tokens, 0)].astype(np.float32)
    found[tokens < 0] = 0.0
    found[tokens < 0, 0] = UNSEEN_LOGIT
    shared = np.flatnonzero((tokens[1:] == tokens[:-1]) & (tokens[1:] >= 0)) + 1
    begin, inside = found[shared, 1::2], found[shared, 2::2]
    found[shared, 2::2] = np.logaddexp(begin, inside)
    found[shared, 1::2] = found[shared].min(axis=-1, keepdims=True) - UNSEEN_LOGIT
    return found


def inexpressible(example: Example, encoding: Encoding, labels: Sequence[str]) -> list[Span]:
    """Lists the spans that begin or end inside a token, so that no model with this tokenizer can answer them."""
    targets_of_tokens = loss_targets(example, encoding, labels)
    certain = np.eye(len(labels), dtype=np.float32)[np.maximum(targets_of_tokens, 0)] * UNSEEN_LOGIT
    best = scores(certain, example.text, encoding).argmax(axis=-1)
    possible = set(entities([labels[index] for index in best]))
    true = entities([labels[index] for index in targets(example, labels)])
    read = first_tokens(example.text, encoding) >= 0
    pairs = zip(example.spans, true, strict=True)
    return [span for span, entity in pairs if entity not in possible and read[[*entity[1:]]].all()]


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
    places = units(text[: encoding.offsets[:, 1].max(initial=0)])  # what was cut off has no entity
    if len(places) and (last := UNIT.match(text, int(places[-1, 0]))):
        places[-1, 1] = last.end()  # also where only a part of the last word was read
    probabilities = softmax(scores[: len(places)]) if len(places) else scores[:0]
    found = [
        Entity(
            label=label,
            text=text[places[first, 0] : places[last, 1]],
            start=int(places[first, 0]),
            end=int(places[last, 1]),
            score=float(probabilities[first : last + 1].max(axis=-1).min()),
        )
        for label, first, last in entities([labels[index] for index in probabilities.argmax(axis=-1)])
    ]
    return Answer(entities=found, tokens=len(encoding), windows=encoding.windows, truncated=encoding.truncated)


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
