"""Entities and the relations between them: rows of data, predictions, and the logits of pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from deploykit.methods import Frozen
from deploykit.tasks import IGNORED, Array, Arrays, Float32, Span
from deploykit.tasks import Input as BaseInput
from deploykit.tasks import _classification as classification
from deploykit.tasks._spans import read_spans
from deploykit.tasks._units import UNIT, units
from deploykit.tasks._windows import CUT_OFF_LOGIT
from deploykit.tasks.token_classification import first_tokens
from deploykit.tokenizer import Features

MAX_ENTITIES = 256  # of a text whose pairs are scored, since pairs grow with the square; later ones have no relations


class InputEntity(Frozen):
    """An entity that is known beforehand."""

    label: str = Field(min_length=1, max_length=100)
    start: int = Field(ge=0, description="offset of its first character")
    end: int = Field(description="offset after its last character")


class Input(BaseInput):
    """A text, and its entities if they are known."""

    text: str
    entities: tuple[InputEntity, ...] | None = Field(
        default=None, max_length=MAX_ENTITIES, description="the known entities; null: the model predicts them"
    )

    @model_validator(mode="after")
    def _lie_inside(self) -> Self:
        for entity in self.entities or ():
            if not entity.start < entity.end <= len(self.text):
                raise ValueError(f"the entity {entity.start}-{entity.end} does not lie in a text of {len(self.text)}")
            if not UNIT.search(self.text, entity.start, entity.end):
                raise ValueError(f"the entity {entity.start}-{entity.end} covers no word of the text")
        for before, after in pairwise(sorted((entity.start, entity.end) for entity in self.entities or ())):
            if after[0] < before[1]:
                raise ValueError(f"the entities {before[0]}-{before[1]} and {after[0]}-{after[1]} overlap")
        return self

    def with_texts(self, change: Callable[[str], str]) -> Self:
        """Returns the input with its text and the labels of its entities changed, which a client writes, too."""
        entities = self.entities and tuple(
            entity.model_copy(update={"label": change(entity.label)}) for entity in self.entities
        )
        return super().with_texts(change).model_copy(update={"entities": entities})


class Relation(NamedTuple):
    """A directed relation between two entities, by their indices among the entities of the text."""

    label: str
    head: int
    tail: int


class RelationTarget(NamedTuple):
    """What is true of a text: its entities, sorted by their start, and the relations between them."""

    entities: tuple[Span, ...]
    relations: tuple[Relation, ...]


def read_target(text: Any, entities: Any, relations: Any) -> RelationTarget:
    """Reads the entities and relations of a row.

    Args:
        text: the text.
        entities: a list of objects with `start`, `end`, `label` and, if relations use it, `id`.
        relations: a list of objects with `head` and `tail` (ids, or indices if entities have none) and `label`.

    Raises:
        ValueError: entities overlap or cut words, have the same id, or only some of them have one; or a relation does
            not lead from one of them to another.
    """
    spans = read_spans(text, entities)
    order = sorted(range(len(entities)), key=lambda index: (entities[index]["start"], entities[index]["end"]))
    ids = _ids(entities)
    index_by_id = {ids[index]: place for place, index in enumerate(order)}
    if not isinstance(relations, list) or not all(isinstance(relation, Mapping) for relation in relations):
        raise ValueError(f"relations is {relations!r}, expected a list of objects with head, tail and label")
    parsed = [_relation(relation, index_by_id) for relation in relations]
    pairs = {(relation.head, relation.tail) for relation in parsed}
    if len(pairs) < len(parsed):
        raise ValueError("two relations have the same head and tail, expected at most one label per pair")
    return RelationTarget(spans, tuple(parsed))


def _ids(entities: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns the ids of entities, or their indices if none has an id."""
    ids = [entity.get("id") for entity in entities]
    if all(name is None for name in ids):
        return list(range(len(ids)))
    for index, name in enumerate(ids):
        if isinstance(name, bool) or not isinstance(name, (int, str)):
            raise ValueError(f"an entity has the id {name!r}, expected a number or a text for each entity, or no ids")
        if name in ids[:index]:
            raise ValueError(f"two entities have the id {name!r}, expected different ones")
    return ids


def _relation(row: Mapping[str, Any], index_by_id: Mapping[Any, int]) -> Relation:
    head, tail, label = row.get("head"), row.get("tail"), row.get("label")
    for end in (head, tail):
        if not isinstance(end, (int, str)) or end not in index_by_id:
            ids = ", ".join(map(str, index_by_id)) or "none"
            raise ValueError(f"the relation {dict(row)!r} names the entity {end!r}, expected one of {ids}")
    if index_by_id[head] == index_by_id[tail]:
        raise ValueError(f"the relation {dict(row)!r} leads from an entity to itself")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the relation {dict(row)!r} has no label")
    return Relation(label.strip(), index_by_id[head], index_by_id[tail])


class Mention(NamedTuple):
    """A place where the text names an entity: its label, and the indices of its first and last unit."""

    label: str
    first: int
    last: int


@dataclass(frozen=True)
class Prediction:
    """The entities of a text, which are predicted or given, and logits.

    `tag_logits` is `(units, labels)`. `relation_logits` is `(n, n, 1 + relations)`, for the ordered pairs of the first
    `n` entities, at most `MAX_ENTITIES`; the first column means no relation.
    """

    tag_logits: Float32
    entities: tuple[Mention, ...]
    relation_logits: Float32


class Decision(NamedTuple):
    """The entities, and the relations with the entities that they join: label, head and tail."""

    entities: tuple[Mention, ...]
    relations: tuple[tuple[str, Mention, Mention], ...]


def first_token_by_offset(features: Features) -> dict[int, int]:
    """Returns the first token of each unit that the model reads, by the offset of the unit in the whole text."""
    starts = (units(features.text)[:, 0] + features.start).tolist()
    tokens = first_tokens(features.text, features.encoding).tolist()
    return {start: token for start, token in zip(starts, tokens, strict=True) if token >= 0}


def pair_targets(target: RelationTarget, features: Features, names: Sequence[str]) -> Array:
    """Returns the label of each ordered pair of entities at their first tokens, `(tokens, tokens)`.

    0 means no relation, other numbers count `names` from 1, and all other pairs of tokens are `IGNORED`.
    """
    relations = np.full((len(features), len(features)), IGNORED, dtype=np.int16)  # large: kept small
    token_by_offset = first_token_by_offset(features)
    tokens = [token_by_offset.get(entity.start) for entity in target.entities]
    labels = {(relation.head, relation.tail): relation.label for relation in target.relations}
    for head, first in enumerate(tokens):
        for tail, second in enumerate(tokens):
            if first is not None and second is not None and first != second:
                label = labels.get((head, tail))
                relations[first, second] = 0 if label is None else names.index(label) + 1
    return relations


def pair_logits(
    outputs: Sequence[Arrays], features: Sequence[Features], starts: Sequence[int], label_count: int
) -> Float32:
    """Returns the logits of each ordered pair of entities, `(entities, entities, labels)`.

    Of several windows that show both entities, the one decides whose edges are farthest from the beginnings of the two.
    Two entities that no window shows together have no relation, nor have two that begin in the same token.

    Args:
        outputs: with `relation_logits`, `(tokens, tokens, labels)`, for each of the features.
        features: of the text.
        starts: offsets of the entities in the text.
        label_count: number of labels, with "no relation" as the first.
    """
    offsets, count = np.array(starts, dtype=np.int64), len(starts)
    logits = np.zeros((count, count, label_count), dtype=np.float32)
    logits[:, :, 0] = CUT_OFF_LOGIT
    best_margin = np.full((count, count), -1)  # characters from the edge of the window that decides
    for arrays, window in zip(outputs, features, strict=True):
        token_by_offset, end = first_token_by_offset(window), window.start + len(window.text)
        shown = np.array([entity for entity, start in enumerate(starts) if start in token_by_offset], dtype=np.int64)
        tokens = np.array([token_by_offset[starts[entity]] for entity in shown], dtype=np.int64)
        margins = np.minimum(offsets[shown] - window.start, end - offsets[shown])
        margin = np.minimum(margins[:, np.newaxis], margins)
        pairs = np.ix_(shown, shown)
        better = (tokens[:, np.newaxis] != tokens) & (margin > best_margin[pairs])
        best_margin[pairs] = np.where(better, margin, best_margin[pairs])
        of_window = arrays["relation_logits"][np.ix_(tokens, tokens)]
        logits[pairs] = np.where(better[:, :, np.newaxis], of_window, logits[pairs])
    return logits


def dump(predictions: Sequence[Prediction]) -> dict[str, Array]:
    """Returns the logits of units, the entities and the logits of their pairs, and how many each prediction has."""
    entities = [entity for prediction in predictions for entity in prediction.entities]
    pairs = [prediction.relation_logits.reshape(-1, prediction.relation_logits.shape[-1]) for prediction in predictions]
    return {
        **classification.dump([prediction.tag_logits for prediction in predictions]),
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
        Prediction(tags, tuple(entities[end - count : end]), logits.reshape(size, size, width))
        for tags, count, size, end, logits in zip(classification.load(arrays), counts, sizes, ends, pairs, strict=True)
    ]
