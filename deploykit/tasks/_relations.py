"""Entities and the relations between them: rows of data, predictions, and the logits of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deploykit.tasks import IGNORED, Array, Arrays, Float32, Int64, Span
from deploykit.tasks import _classification as classification
from deploykit.tasks._spans import read_spans
from deploykit.tasks._units import units
from deploykit.tasks._windows import CUT_OFF_LOGIT
from deploykit.tasks.token_classification import first_tokens
from deploykit.tokenizer import Features

MAX_ENTITIES = 256  # of a text; entities after them have no relations, whose number grows with the square


class Relation(NamedTuple):
    """A directed relation between two entities, which are given by their places among the spans."""

    head: int
    tail: int
    label: str


class Annotated(NamedTuple):
    """The entities of a text in their order, and their relations."""

    spans: tuple[Span, ...]
    relations: tuple[Relation, ...]


def read_row(text: Any, entities: Any, relations: Any) -> tuple[str, Annotated]:
    """Reads the values of a row.

    Args:
        text: the text.
        entities: a list of objects with `start`, `end`, `label` and, if relations use it, `id`.
        relations: a list of objects with `head` and `tail` (ids, or places if entities have none) and `label`.

    Raises:
        ValueError: entities overlap or cut words, or a relation does not lead from one of them to another.
    """
    spans = read_spans(text, entities)
    order = sorted(range(len(entities)), key=lambda place: (entities[place]["start"], entities[place]["end"]))
    named = entities and all("id" in entity for entity in entities)
    names = {(entities[place]["id"] if named else place): new for new, place in enumerate(order)}
    if not isinstance(relations, list) or not all(isinstance(part, Mapping) for part in relations):
        raise ValueError(f"relations is {relations!r}, expected a list of objects with head, tail and label")
    read = [_relation(part, names) for part in relations]
    pairs = {(part.head, part.tail) for part in read}
    if len(pairs) < len(read):
        raise ValueError("two relations have the same head and tail, expected at most one label per pair")
    return text, Annotated(spans, tuple(read))


def _relation(part: Mapping[str, Any], names: Mapping[Any, int]) -> Relation:
    head, tail, label = part.get("head"), part.get("tail"), part.get("label")
    for end in (head, tail):
        if not isinstance(end, (int, str)) or end not in names:
            known = ", ".join(map(str, names)) or "none"
            raise ValueError(f"the relation {dict(part)!r} names the entity {end!r}, expected one of {known}")
    if names[head] == names[tail]:
        raise ValueError(f"the relation {dict(part)!r} leads from an entity to itself")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the relation {dict(part)!r} has no label")
    return Relation(names[head], names[tail], label.strip())


class Mention(NamedTuple):
    """A place where the text names an entity: its label, and its first and last unit."""

    label: str
    first: int
    last: int


@dataclass(frozen=True)
class Prediction:
    """The logits of units `(units, labels)`, the entities, and the logits of the pairs of the first `n` of them.

    `relations` is `(n, n, relations)`, with `n` at most `MAX_ENTITIES`.
    """

    tags: Float32
    entities: tuple[Mention, ...]
    relations: Float32


class Decision(NamedTuple):
    """The entities, and the relations: label, head and tail."""

    entities: tuple[Mention, ...]
    relations: tuple[tuple[str, Mention, Mention], ...]


def token_at(features: Features) -> dict[int, int]:
    """Returns the first token of each unit that the model reads, by the place of the unit in the whole text."""
    starts = (units(features.text)[:, 0] + features.start).tolist()
    tokens = first_tokens(features.text, features.encoding).tolist()
    return {start: token for start, token in zip(starts, tokens, strict=True) if token >= 0}


def pair_targets(target: Annotated, features: Features, names: Sequence[str]) -> Int64:
    """Returns the label of each ordered pair of entities at their first tokens, `(tokens, tokens)`.

    0 means no relation, other numbers count `names` from 1, and all other pairs of tokens are `IGNORED`.
    """
    relations = np.full((len(features), len(features)), IGNORED, dtype=np.int64)
    places = token_at(features)
    tokens = [places.get(span.start) for span in target.spans]
    labels = {(relation.head, relation.tail): relation.label for relation in target.relations}
    for head, first in enumerate(tokens):
        for tail, second in enumerate(tokens):
            if first is not None and second is not None and first != second:
                label = labels.get((head, tail))
                relations[first, second] = 0 if label is None else names.index(label) + 1
    return relations


def covered(start: int, end: int, spans: Int64) -> tuple[int, int]:
    """Returns the first and last of the units at `spans`, `(units, 2)`, that a part of the text overlaps."""
    first = min(int(np.searchsorted(spans[:, 1], start, side="right")), len(spans) - 1)
    return first, max(first, int(np.searchsorted(spans[:, 0], end, side="left")) - 1)


def pair_logits(outputs: Sequence[Arrays], features: Sequence[Features], starts: Sequence[int], labels: int) -> Float32:
    """Returns the logits of each ordered pair of entities, `(entities, entities, labels)`.

    Of several windows that show both entities, the one with most text around them decides. Two entities that no window
    shows together have no relation, nor have two that begin in the same token.

    Args:
        outputs: with `relation_logits`, `(tokens, tokens, labels)`, for each of the features.
        features: of the text.
        starts: where the entities begin in the text.
        labels: how many there are, no relation included.
    """
    count = len(starts)
    relations = np.zeros((count, count, labels), dtype=np.float32)
    relations[:, :, 0], context = CUT_OFF_LOGIT, np.full((count, count), -1)
    for arrays, window in zip(outputs, features, strict=True):
        places, end = token_at(window), window.start + len(window.text)
        shown = [entity for entity, start in enumerate(starts) if start in places]
        for head in shown:
            for tail in shown:
                room = min(min(starts[head], starts[tail]) - window.start, end - max(starts[head], starts[tail]))
                first, second = places[starts[head]], places[starts[tail]]
                if first != second and room > context[head, tail]:
                    context[head, tail] = room
                    relations[head, tail] = arrays["relation_logits"][first, second]
    return relations


def dump(predictions: Sequence[Prediction]) -> dict[str, Array]:
    """Returns the logits of units, the entities and the logits of their pairs, and how many each prediction has."""
    entities = [entity for prediction in predictions for entity in prediction.entities]
    pairs = [prediction.relations.reshape(-1, prediction.relations.shape[-1]) for prediction in predictions]
    return {
        **classification.dump([prediction.tags for prediction in predictions]),
        "entities": np.array([entity[1:] for entity in entities], dtype=np.int64).reshape(-1, 2),
        "entity_labels": np.array([entity.label for entity in entities], dtype=np.str_),
        "counts": np.array([len(prediction.entities) for prediction in predictions], dtype=np.int64),
        "relations": np.concatenate(pairs).astype(np.float32),
    }


def load(arrays: Arrays) -> list[Prediction]:
    """Turns the arrays of `dump` into predictions."""
    counts, labels = arrays["counts"], arrays["entity_labels"].tolist()
    rows = zip(labels, arrays["entities"].tolist(), strict=True)
    entities = [Mention(str(label), first, last) for label, (first, last) in rows]
    ends, width = np.cumsum(counts), arrays["relations"].shape[-1]
    sizes = np.minimum(counts, MAX_ENTITIES)
    pairs = np.split(arrays["relations"], np.cumsum(sizes**2)[:-1])
    return [
        Prediction(tags, tuple(entities[end - count : end]), part.reshape(size, size, width))
        for tags, count, size, end, part in zip(classification.load(arrays), counts, sizes, ends, pairs, strict=True)
    ]
