"""Labelled spans of a text, such as names or parts of speech.

A regular expression divides a text into units: words, or characters in scripts without spaces (see `_units`). A unit
gets the BIO label of the first token that overlaps it, so offsets in answers are exact with any tokenizer. Units that
share a token belong to one entity or to none. A prediction is an array of logits, `(units, labels)`, with `O` as the
first label. Data is either tokens with tags, or a text with spans that begin and end at the boundaries of units.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.methods import Frozen
from deploykit.tasks import (
    IGNORE_INDEX,
    Arrays,
    Column,
    Example,
    Float32,
    Int64,
    Span,
    Spec,
    Target,
    TextInput,
    TextOptions,
    softmax,
)
from deploykit.tasks._classification import (  # noqa: F401  functions of this task
    decide,
    distance,
    dump,
    encode,
    load,
    observe,
    probabilities,
)
from deploykit.tasks._spans import reader  # noqa: F401  a function of this task
from deploykit.tasks._tags import OUTSIDE_TAG, decode_entities
from deploykit.tasks._units import UNIT, overlapped_units, units
from deploykit.tasks._windows import CERTAIN_LOGIT, merge_windows, with_original_text
from deploykit.tokenizer import Encoding, Features, join_windows

AUTO_CLASS = "AutoModelForTokenClassification"
ORT_CLASS = "ORTModelForTokenClassification"
OPTIMUM_TASK = "token-classification"
OUTPUTS = {"logits": ("tokens", "labels")}
TARGETS = {"labels": Target("logits", "cross_entropy", ("tokens",))}
COLUMNS = {
    "tokens": Column("tokens", "the list of words"),
    "tags": Column("tags", "the list of tags, one per word"),
    "text": Column("text", "the text, if `spans` is named"),
    "spans": Column(None, "the spans, a list of `start`, `end`, `label` over `text`; read instead of tokens and tags"),
}
EXAMPLES = (
    {"tokens": ["Anna", "lives", "in", "London"], "tags": ["B-NAME", "O", "O", "B-PLACE"]},
    {"tokens": ["the", "end", "."], "tags": ["O", "O", "O"]},
)
METRICS = ("entity_f1", "accuracy")
FIGURES = frozenset({"changes", "labels", "confusion", "calibration"})
CAPABILITIES = frozenset({"pipeline"})
Input = TextInput


class Options(TextOptions):
    """How texts are read that are longer than the model's input."""


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


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns `O`, followed by B- and I- of each label of a span, sorted by label."""
    return _bio_labels(sorted({span.label for example in examples for span in example.target}))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns `O`, followed by B- and I- of each label, in the order in which the labels first occur."""
    return _bio_labels(dict.fromkeys(label.partition("-")[2] for label in labels if label != OUTSIDE_TAG))


def _bio_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Returns `O`, then B- and I- of each name: B- labels have odd indices, and each is followed by its I- label."""
    return (OUTSIDE_TAG, *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the label of each span."""
    return tuple(span.label for span in example.target)


def gold(example: Example, spec: Spec) -> Int64:
    """Returns the index of the true BIO label of each unit, `(units,)`."""
    spans, labels, unit_offsets = example.target, spec.labels, units(example.input.text)
    indices = np.zeros(len(unit_offsets), dtype=np.int64)  # index 0 is `O`
    starts, ends = overlapped_units(unit_offsets, [span.start for span in spans], [span.end for span in spans])
    for span, start, end in zip(spans, starts, ends, strict=True):
        if start < end:  # a span without a visible character overlaps no unit
            indices[start] = labels.index(f"B-{span.label}")
            indices[start + 1 : end] = labels.index(f"I-{span.label}")
    return indices


def first_tokens(text: str, encoding: Encoding) -> Int64:
    """Returns the index of the first token that overlaps each unit, `(units,)`; -1 if no token does.

    No token overlaps a unit that was cut off because the text is longer than the model reads.
    """
    unit_offsets = units(text)
    text_tokens = np.flatnonzero(encoding.offsets[:, 1] > encoding.offsets[:, 0])  # not the special tokens
    token_starts, token_ends = encoding.offsets[text_tokens].T
    # The first token that ends after the unit begins. For units after all tokens it is an appended one, which begins at
    # the end of the text and so overlaps no unit.
    candidates = np.searchsorted(token_ends, unit_offsets[:, 0], side="right")
    overlaps = np.append(token_starts, len(text))[candidates] < unit_offsets[:, 1]
    return np.where(overlaps, np.append(text_tokens, -1)[candidates], -1)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the label index of the unit that each token is the first token of, `(tokens,)`, or `IGNORE_INDEX`.

    A token that is the first of several units gets the label of the first unit.
    """
    by_token = np.full(len(features), IGNORE_INDEX, dtype=np.int64)
    text = example.input.text
    label_at = dict(zip(units(text)[:, 0].tolist(), gold(example, spec).tolist(), strict=True))
    starts = (units(features.text)[:, 0] + features.start).tolist()
    rows = list(zip(first_tokens(features.text, features.encoding).tolist(), starts, strict=True))
    for token, start in reversed(rows):  # the first of the units that share a token is written last
        if token >= 0 and start in label_at:  # a window that begins inside a word has a unit that the text lacks
            by_token[token] = label_at[start]
    return {"labels": by_token}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the logits of the units of the text, `(units, labels)`; units that the model did not read are `O`."""
    features = with_original_text(features, item.text)
    if len(features) == 1:
        return unit_logits(outputs[0]["logits"], item.text, features[0].encoding)
    pairs = zip(outputs, features, strict=True)
    logits = [unit_logits(arrays["logits"], window.text, window.encoding) for arrays, window in pairs]
    return merge_windows(logits, features, item.text)


def unit_logits(logits: Float32, text: str, encoding: Encoding) -> Float32:
    """Returns the logits of each unit's first token, `(units, labels)`, selected from `(tokens, labels)`.

    A token may hold several units, for example in a script without spaces. The units after the first must continue its
    entity: their I- label gets the probability of the token's B- and I- label together, and their B- label none.
    """
    tokens = first_tokens(text, encoding)
    selected = logits[np.maximum(tokens, 0)].astype(np.float32)
    selected[tokens < 0] = 0.0
    selected[tokens < 0, 0] = CERTAIN_LOGIT  # of `O`
    shared = np.flatnonzero((tokens[1:] == tokens[:-1]) & (tokens[1:] >= 0)) + 1  # units after the first of their token
    begin, inside = selected[shared, 1::2], selected[shared, 2::2]  # B- and I- of each label
    selected[shared, 2::2] = np.logaddexp(begin, inside)
    selected[shared, 1::2] = selected[shared].min(axis=-1, keepdims=True) - CERTAIN_LOGIT
    return selected


def misaligned_spans(example: Example, features: Sequence[Features], spec: Spec) -> list[Span]:
    """Lists the spans that begin or end inside a token, so that no model with this tokenizer can predict them.

    They are those that are lost when the targets themselves are decoded. Spans that were cut off are not listed.
    """
    logits_of = CERTAIN_LOGIT * np.eye(len(spec.labels), dtype=np.float32)  # by target; ignored tokens count as `O`
    outputs = [{"logits": logits_of[np.maximum(targets(example, window, spec)["labels"], 0)]} for window in features]
    decision = decide(decode(outputs, features, example.input, spec), spec)
    predictable, true = set(items(decision, spec)), items(gold(example, spec), spec)
    end_of_reading = features[-1].start + int(features[-1].encoding.offsets[:, 1].max(initial=0))
    pairs = zip(example.target, true, strict=True)
    return [span for span, entity in pairs if entity not in predictable and span.end <= end_of_reading]


def items(decision: Int64, spec: Spec) -> list[tuple[str, int, int]]:
    """Lists label, index of the first unit and index of the last unit of each entity."""
    return decode_entities([spec.labels[index] for index in decision])


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Lists the labels of entities, without B- and I-, sorted."""
    return tuple(sorted({label.partition("-")[2] for label in spec.labels if label != OUTSIDE_TAG}))


def changes(example: Example, before: Int64, after: Int64, spec: Spec) -> list[dict[str, str]]:
    """Returns each unit whose BIO label differs, with its true label and those before and after."""
    text, true = example.input.text, gold(example, spec)
    unit_offsets = units(text)
    return [
        {
            "text": text[unit_offsets[unit, 0] : unit_offsets[unit, 1]],
            "true": spec.labels[true[unit]],
            "before": spec.labels[before[unit]],
            "after": spec.labels[after[unit]],
        }
        for unit in np.flatnonzero(before != after)
    ]


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Returns the entities that the units form, in the part of the text that the model read."""
    text, encoding = item.text, join_windows(features)
    offsets = units(text[: encoding.offsets[:, 1].max(initial=0)])
    if len(offsets) and (last_unit := UNIT.match(text, int(offsets[-1, 0]))):
        offsets[-1, 1] = last_unit.end()  # the model may have read only a part of this unit
    shares = softmax(prediction[: len(offsets)])
    entities = [
        Entity(
            label=label,
            text=text[offsets[first, 0] : offsets[last, 1]],
            start=int(offsets[first, 0]),
            end=int(offsets[last, 1]),
            score=float(shares[first : last + 1].max(axis=-1).min()),
        )
        for label, first, last in items(shares.argmax(axis=-1), spec)
    ]
    return Answer(entities=entities, tokens=len(encoding), windows=encoding.windows, truncated=encoding.truncated)


def record(answer: Answer) -> dict[str, Any]:
    """Returns the entities without their texts."""
    return {"entities": [entity.model_dump(exclude={"text"}) for entity in answer.entities]}


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Lists the entities with the keys of transformers' pipeline."""
    return [
        {"entity_group": found.label, "score": found.score, "word": found.text, "start": found.start, "end": found.end}
        for found in answer.entities
    ]
