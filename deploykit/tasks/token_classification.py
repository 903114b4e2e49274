"""Labelled spans of a text, such as names or parts of speech.

A text is divided into units (see `_units`) by a regular expression, independently of the tokenizer. The first token
that overlaps a unit gives the unit a BIO label, so answers have exact character offsets. Units that share a token
belong to one entity or to none. Data is either tokens with tags, or a text with character spans that begin and end at
the boundaries of units.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from deploykit.methods import Frozen
from deploykit.tasks import (
    IGNORED,
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
from deploykit.tasks._tags import OUTSIDE, decode_entities
from deploykit.tasks._units import UNIT, overlapping, units
from deploykit.tasks._windows import CUT_OFF_LOGIT, merge, unmasked
from deploykit.tokenizer import Encoding, Features, joined

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
    """Returns `O`, and B- and I- of each label, sorted by label."""
    return _bio(sorted({span.label for example in examples for span in example.target}))


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns `O`, and B- and I- of each label, in the order of the labels' first occurrence."""
    return _bio(dict.fromkeys(label.partition("-")[2] for label in labels if label != OUTSIDE))


def _bio(names: Iterable[str]) -> tuple[str, ...]:
    return (OUTSIDE, *(f"{prefix}-{name}" for name in names for prefix in "BI"))


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the labels of the spans."""
    return tuple(span.label for span in example.target)


def gold(example: Example, spec: Spec) -> Int64:
    """Returns the true BIO label of each unit, shape `(units,)`."""
    return _unit_labels(example.input.text, example.target, spec.labels)


def _unit_labels(text: str, spans: Sequence[Span], labels: Sequence[str]) -> Int64:
    unit_offsets = units(text)
    indices = np.zeros(len(unit_offsets), dtype=np.int64)
    first, end = overlapping(unit_offsets, [span.start for span in spans], [span.end for span in spans])
    for span, begin, stop in zip(spans, first, end, strict=True):
        indices[begin:stop] = labels.index(f"I-{span.label}")
        indices[begin : min(begin + 1, stop)] = labels.index(f"B-{span.label}")
    return indices


def first_tokens(text: str, encoding: Encoding) -> Int64:
    """Returns the index of the first token that overlaps each unit, `(units,)`; -1 if the unit was cut off."""
    spans, real = units(text), np.flatnonzero(encoding.offsets[:, 1] > encoding.offsets[:, 0])
    starts, ends = encoding.offsets[real].T
    first = np.searchsorted(ends, spans[:, 0], side="right")  # the first token that ends after the unit begins
    overlaps = np.append(starts, len(text))[first] < spans[:, 1]  # no unit ends beyond the text
    return np.where(overlaps, np.append(real, -1)[first], -1)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the label of the unit that each token begins, `(tokens,)`; `IGNORED` if it begins none."""
    by_token = np.full(len(features), IGNORED, dtype=np.int64)
    text = example.input.text
    label_at = dict(zip(units(text)[:, 0].tolist(), gold(example, spec).tolist(), strict=True))
    starts = (units(features.text)[:, 0] + features.start).tolist()
    rows = list(zip(first_tokens(features.text, features.encoding).tolist(), starts, strict=True))
    for token, start in reversed(rows):  # backwards, so that the first of two units that share a token decides
        if token >= 0 and start in label_at:  # not where a window begins inside a word
            by_token[token] = label_at[start]
    return {"labels": by_token}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: TextInput, spec: Spec) -> Float32:
    """Returns the logits of the units of the text, `(units, labels)`; units that were not read are outside."""
    features = unmasked(features, item.text)
    if len(features) == 1:
        return scores(outputs[0]["logits"], item.text, features[0].encoding)
    rows = [
        scores(arrays["logits"], window.text, window.encoding) for arrays, window in zip(outputs, features, strict=True)
    ]
    return merge(rows, features, item.text)


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


def inexpressible(example: Example, features: Sequence[Features], spec: Spec) -> list[Span]:
    """Lists the spans that begin or end inside a token, so that no model with this tokenizer can predict them."""
    perfect = CUT_OFF_LOGIT * np.eye(len(spec.labels), dtype=np.float32)
    outputs = [{"logits": perfect[np.maximum(targets(example, window, spec)["labels"], 0)]} for window in features]
    best = decide(decode(outputs, features, example.input, spec), spec)
    possible = set(decode_entities([spec.labels[index] for index in best]))
    true = decode_entities([spec.labels[index] for index in gold(example, spec)])
    end = features[-1].start + int(features[-1].encoding.offsets[:, 1].max(initial=0))  # of what was read
    pairs = zip(example.target, true, strict=True)
    return [span for span, entity in pairs if entity not in possible and span.end <= end]


def items(decision: Int64, spec: Spec) -> list[tuple[str, int, int]]:
    """Lists label, first and last unit of each entity."""
    return decode_entities([spec.labels[index] for index in decision])


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Lists the labels of entities, which have no prefix."""
    return tuple(sorted({label.partition("-")[2] for label in spec.labels if label != OUTSIDE}))


def changes(example: Example, before: Int64, after: Int64, spec: Spec) -> list[dict[str, str]]:
    """Returns the units whose label differs, with the true label and those before and after."""
    text, true = example.input.text, gold(example, spec)
    spans = units(text)
    return [
        {
            "text": text[spans[unit, 0] : spans[unit, 1]],
            "true": spec.labels[true[unit]],
            "before": spec.labels[before[unit]],
            "after": spec.labels[after[unit]],
        }
        for unit in np.flatnonzero(before != after)
    ]


def answer(prediction: Float32, features: Sequence[Features], item: TextInput, spec: Spec) -> Answer:
    """Joins units into entities; an I- label continues an entity of the same label, or begins one."""
    text, encoding = item.text, joined(features)
    spans = units(text[: encoding.offsets[:, 1].max(initial=0)])  # only what was read
    if len(spans) and (unit := UNIT.match(text, int(spans[-1, 0]))):
        spans[-1, 1] = unit.end()  # to the end of the word if only a part of it was read
    shares = softmax(prediction[: len(spans)])
    predicted = [
        Entity(
            label=label,
            text=text[spans[first, 0] : spans[last, 1]],
            start=int(spans[first, 0]),
            end=int(spans[last, 1]),
            score=float(shares[first : last + 1].max(axis=-1).min()),
        )
        for label, first, last in decode_entities([spec.labels[index] for index in shares.argmax(axis=-1)])
    ]
    return Answer(entities=predicted, tokens=len(encoding), windows=encoding.windows, truncated=encoding.truncated)


def record(answer: Answer) -> dict[str, Any]:
    """Returns the entities without their texts."""
    return {"entities": [entity.model_dump(exclude={"text"}) for entity in answer.entities]}


def pipeline(answer: Answer, top_k: int | None) -> list[dict[str, Any]]:
    """Lists entities with the keys that transformers' pipeline uses."""
    return [
        {"entity_group": span.label, "score": span.score, "word": span.text, "start": span.start, "end": span.end}
        for span in answer.entities
    ]
