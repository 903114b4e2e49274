"""Labelled spans of a text, such as names or parts of speech.

A text is divided into units (see `_units`) by a regular expression, independently of the tokenizer. The first token
that overlaps a unit gives the unit a BIO label, so answers have exact character offsets. Units that share a token
belong to one entity or to none. Data is either tokens with tags, or a text with character spans that begin and end at
the boundaries of units.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.methods import Frozen
from deploykit.tasks import IGNORED, Example, Float32, Int64, Span, softmax
from deploykit.tasks._tags import OUTSIDE, decode_entities, recognize_scheme
from deploykit.tasks._units import UNIT, join, units
from deploykit.tokenizer import Encoding, Window

AUTO_CLASS = "AutoModelForTokenClassification"
ORT_CLASS = "ORTModelForTokenClassification"
OPTIMUM_TASK = "token-classification"
METRICS = ("entity_f1", "accuracy")
PIPELINE_NESTED = False

CUT_OFF_LOGIT = 30.0  # of OUTSIDE for units that the model did not read: certain, but finite


class Entity(Frozen):
    """A labelled span of the text."""

    label: str
    text: str
    start: int = Field(description="offset of its first character")
    end: int = Field(description="offset after its last character")
    score: float = Field(description="the lowest probability among its words, 0 to 1")


class Answer(Frozen):
    """The prediction for one text."""

    entities: list[Entity]
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def read(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> Example:
    """Reads the columns `tokens` and `tags`, or, if `spans` is named, `text` and `spans`."""
    return reader([row], columns)(row)


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads one of these rows; all of them together show in which scheme tags are written."""
    if columns.get("spans"):
        return lambda row: _from_spans(row[str(columns["text"])], row[str(columns["spans"])])
    lists = [row.get(str(columns["tags"])) for row in rows]
    tags = {tag for row_tags in lists if isinstance(row_tags, list) for tag in row_tags if isinstance(tag, str)}
    canonical = recognize_scheme(tags)
    return lambda row: _from_tags(row[str(columns["tokens"])], row[str(columns["tags"])], canonical)


def _from_spans(text: Any, spans: Any) -> Example:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the text is {text!r}, expected one that is not empty")
    if not isinstance(spans, list) or not all(isinstance(span, Mapping) for span in spans):
        raise ValueError(f"spans is {spans!r}, expected a list of objects with start, end and label")
    return _example(text, [_span(span, text) for span in spans])


def _span(span: Mapping[str, Any], text: str) -> Span:
    start, end, label = span.get("start"), span.get("end"), span.get("label")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
        raise ValueError(f"the span {dict(span)!r} does not lie in a text of {len(text)} characters")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the span {dict(span)!r} has no label")
    return Span(start, end, label.strip())


def _from_tags(tokens: Any, tags: Any, canonical: Callable[[str], str]) -> Example:
    if not isinstance(tokens, list) or not isinstance(tags, list) or not tokens:
        raise ValueError("tokens and tags must be lists, and not empty")
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags, expected as many of each")
    if not all(isinstance(token, str) and token for token in tokens):
        raise ValueError("a token is empty or not a string")
    if not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise ValueError("a tag is empty or not a string")
    text, offsets = join(tokens)
    if not text.strip():
        raise ValueError("all tokens are white space")
    named = decode_entities([*map(canonical, tags)])
    spans = [Span(offsets[first][0], offsets[last][1], label) for label, first, last in named]
    return _example(
        text, [span for span in spans if UNIT.search(text, span.start, span.end)]
    )  # not of white space only


def _example(text: str, spans: Sequence[Span]) -> Example:
    """Sorts the spans and removes the white space at their ends.

    Raises:
        ValueError: a span covers no unit or cuts one, or two overlap.
    """
    starts, ends = units(text).T.tolist()
    trimmed: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end) - 1
        name = f"the span {span.start}-{span.end} {text[span.start : span.end]!r}"
        if last < first:
            raise ValueError(f"{name} covers no word of the text, expected at least one")
        for unit in (first, last):
            if starts[unit] < span.start or ends[unit] > span.end:
                word = text[starts[unit] : ends[unit]]
                raise ValueError(f"{name} begins or ends inside the word {word!r}, expected whole words")
        trimmed.append(Span(starts[first], ends[last], span.label))
    for before, after in pairwise(trimmed):
        if after.start < before.end:
            raise ValueError(f"the spans {before} and {after} overlap, expected one label per word")
    return Example(text=text, spans=tuple(trimmed))


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns `O`, and B- and I- of each label, sorted by label."""
    return _bio(sorted({span.label for example in examples for span in example.spans}))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns `O`, and B- and I- of each label, in the order of the labels' first occurrence."""
    return _bio(dict.fromkeys(label.partition("-")[2] for label in labels if label != OUTSIDE))


def _bio(names: Iterable[str]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def classes(example: Example) -> tuple[str, ...]:
    """Returns the distinct labels of the spans; `O` if there are none."""
    return tuple(sorted({span.label for span in example.spans})) or (OUTSIDE,)


def targets(example: Example, labels: Sequence[str]) -> Int64:
    """Returns the true BIO label of each unit, shape `(units,)`."""
    starts, ends = units(example.text).T
    indices = np.zeros(len(starts), dtype=np.int64)
    first = np.searchsorted(ends, [span.start for span in example.spans], side="right")
    last = np.searchsorted(starts, [span.end for span in example.spans], side="left")
    for span, begin, end in zip(example.spans, first, last, strict=True):
        indices[begin:end] = labels.index(f"I-{span.label}")
        indices[begin : min(begin + 1, end)] = labels.index(f"B-{span.label}")
    return indices


def first_tokens(text: str, encoding: Encoding) -> Int64:
    """Returns the index of the first token that overlaps each unit, `(units,)`; -1 if the unit was cut off."""
    spans, real = units(text), np.flatnonzero(encoding.offsets[:, 1] > encoding.offsets[:, 0])
    starts, ends = encoding.offsets[real].T
    first = np.searchsorted(ends, spans[:, 0], side="right")  # the first token that ends after the unit begins
    overlaps = np.append(starts, len(text))[first] < spans[:, 1]  # no unit ends beyond the text
    return np.where(overlaps, np.append(real, -1)[first], -1)


def loss_targets(example: Example, encoding: Encoding, labels: Sequence[str]) -> Int64:
    """Returns the label of the unit that each token begins, `(tokens,)`; `IGNORED` if it begins none."""
    by_token = np.full(len(encoding), IGNORED, dtype=np.int64)
    tokens = first_tokens(example.text, encoding)
    for token, label in zip(tokens[::-1], targets(example, labels)[::-1], strict=True):
        if token >= 0:  # backwards, so that the first of two units that share a token decides
            by_token[token] = label
    return by_token


def scores(logits: Float32, text: str, encoding: Encoding) -> Float32:
    """Selects from the logits `(tokens, labels)` those of each unit's first token, `(units, labels)`.

    A token may hold several units, for example in a script without spaces. All but the first of them continue the
    entity of the first: for them, B- and I- of a label both count as I-.
    """
    tokens = first_tokens(text, encoding)
    of_units = logits[np.maximum(tokens, 0)].astype(np.float32)
    of_units[tokens < 0] = 0.0
    of_units[tokens < 0, 0] = CUT_OFF_LOGIT
    shared = np.flatnonzero((tokens[1:] == tokens[:-1]) & (tokens[1:] >= 0)) + 1
    begin, inside = of_units[shared, 1::2], of_units[shared, 2::2]
    of_units[shared, 2::2] = np.logaddexp(begin, inside)
    of_units[shared, 1::2] = of_units[shared].min(axis=-1, keepdims=True) - CUT_OFF_LOGIT
    return of_units


def inexpressible(example: Example, encoding: Encoding, labels: Sequence[str]) -> list[Span]:
    """Lists the spans that begin or end inside a token, so that no model with this tokenizer can predict them."""
    perfect = np.eye(len(labels), dtype=np.float32)[np.maximum(loss_targets(example, encoding, labels), 0)]
    best = scores(perfect * CUT_OFF_LOGIT, example.text, encoding).argmax(axis=-1)
    possible = set(decode_entities([labels[index] for index in best]))
    true = decode_entities([labels[index] for index in targets(example, labels)])
    was_read = first_tokens(example.text, encoding) >= 0
    pairs = zip(example.spans, true, strict=True)
    return [span for span, entity in pairs if entity not in possible and was_read[[*entity[1:]]].all()]


def merge(scores: Sequence[Float32], windows: Sequence[Window], text: str) -> Float32:
    """Chooses for each unit the scores of the window that shows most of the text around it.

    A word that the edge of a window cuts is not a unit of that window. A word that is cut in every window, because it
    is longer than their overlap, has the scores of its longest visible beginning.

    Returns:
        Scores of the units in the part of the text that was read, `(units, labels)`.
    """
    spans = units(text[: windows[-1].start + len(windows[-1].text)])
    unit_at = {start: unit for unit, (start, _) in enumerate(spans.tolist())}
    merged = np.zeros((len(spans), scores[0].shape[1]), dtype=np.float32)
    merged[:, 0], context = CUT_OFF_LOGIT, np.full(len(spans), -np.inf)  # characters shown on the shorter side
    for index, (window, rows) in enumerate(zip(windows, scores, strict=True)):
        for (start, end), row in zip((units(window.text) + window.start).tolist(), rows, strict=True):
            unit = unit_at.get(start)
            if unit is None:  # the end of a word that the window cuts
                continue
            before = np.inf if index == 0 else start - window.start
            after = np.inf if index == len(windows) - 1 else window.start + len(window.text) - end
            shown = min(before, after) if end == spans[unit, 1] else -1 / (end - start)
            if shown > context[unit]:
                merged[unit], context[unit] = row, shown
    return merged


def answer(scores: Float32, text: str, encoding: Encoding, labels: Sequence[str]) -> Answer:
    """Joins units into entities; an I- label continues an entity of the same label, or begins one."""
    spans = units(text[: encoding.offsets[:, 1].max(initial=0)])  # only what was read
    if len(spans) and (whole := UNIT.match(text, int(spans[-1, 0]))):
        spans[-1, 1] = whole.end()  # to the end of the word if only a part of it was read
    probabilities = softmax(scores[: len(spans)]) if len(spans) else scores[:0]
    predicted = [
        Entity(
            label=label,
            text=text[spans[first, 0] : spans[last, 1]],
            start=int(spans[first, 0]),
            end=int(spans[last, 1]),
            score=float(probabilities[first : last + 1].max(axis=-1).min()),
        )
        for label, first, last in decode_entities([labels[index] for index in probabilities.argmax(axis=-1)])
    ]
    return Answer(entities=predicted, tokens=len(encoding), windows=encoding.windows, truncated=encoding.truncated)


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Lists entities with the keys that transformers' pipeline uses."""
    return [
        {"entity_group": span.label, "score": span.score, "word": span.text, "start": span.start, "end": span.end}
        for span in answer.entities
    ]
