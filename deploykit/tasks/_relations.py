"""Entities and the relations between them: how they are read from rows, trained, predicted and stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from deploykit.methods import Frozen
from deploykit.tasks import IGNORE_INDEX, Array, Arrays, Float32, Span
from deploykit.tasks import Input as BaseInput
from deploykit.tasks import _classification as classification
from deploykit.tasks._spans import read_spans
from deploykit.tasks._units import UNIT, units
from deploykit.tasks._windows import CERTAIN_LOGIT
from deploykit.tasks.token_classification import first_tokens
from deploykit.tokenizer import Features

MAX_ENTITIES = 256  # of a text, whose ordered pairs are scored (65,536); entities after these have no relations


class InputEntity(Frozen):
    """An entity that the client gives, so that only relations are predicted."""

    label: str = Field(min_length=1, max_length=100)
    start: int = Field(ge=0, description="offset of its first character")
    end: int = Field(description="offset after its last character")


class Input(BaseInput):
    """A text, and its entities if the client knows them."""

    text: str
    entities: tuple[InputEntity, ...] | None = Field(
        default=None, max_length=MAX_ENTITIES, description="the known entities; null: the model predicts them"
    )

    @model_validator(mode="after")
    def _entities_are_valid(self) -> Self:
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
        """Returns a copy with the text and the labels of the entities changed; both are written by the client."""
        entities = self.entities and tuple(
            entity.model_copy(update={"label": change(entity.label)}) for entity in self.entities
        )
        return super().with_texts(change).model_copy(update={"entities": entities})


class Relation(NamedTuple):
    """A relation that leads from one entity of a text, `head`, to another, `tail`; both are indices of entities."""

    label: str
    head: int
    tail: int


class RelationTarget(NamedTuple):
    """The true entities of a text, sorted by their start, and the true relations between them."""

    entities: tuple[Span, ...]
    relations: tuple[Relation, ...]


def read_target(text: Any, entities: Any, relations: Any) -> RelationTarget:
    """Reads the entities and relations of a row.

    Args:
        text: of the row.
        entities: list of objects with `start`, `end`, `label` and, if relations use it, `id`.
        relations: list of objects with `head`, `tail` and `label`. The first two are ids of entities, or indices in
            `entities` if those have no ids.

    Raises:
        ValueError: entities overlap, cut words, share an id, or only some have one; or a relation does not lead from
            one entity to another.
    """
    spans = read_spans(text, entities)
    order = sorted(range(len(entities)), key=lambda index: (entities[index]["start"], entities[index]["end"]))
    ids = _entity_ids(entities)
    index_by_id = {ids[index]: rank for rank, index in enumerate(order)}
    if not isinstance(relations, list) or not all(isinstance(relation, Mapping) for relation in relations):
        raise ValueError(f"relations is {relations!r}, expected a list of objects with head, tail and label")
    parsed = [_parse_relation(relation, index_by_id) for relation in relations]
    pairs = {(relation.head, relation.tail) for relation in parsed}
    if len(pairs) < len(parsed):
        raise ValueError("two relations have the same head and tail, expected at most one label per pair")
    return RelationTarget(spans, tuple(parsed))


def _entity_ids(entities: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns the ids of entities, or their indices if none has an id.

    Raises:
        ValueError: an id is neither a number nor a text, occurs twice, or only some entities have one.
    """
    ids = [entity.get("id") for entity in entities]
    if all(entity_id is None for entity_id in ids):
        return list(range(len(ids)))
    for index, entity_id in enumerate(ids):
        if isinstance(entity_id, bool) or not isinstance(entity_id, (int, str)):
            raise ValueError(
                f"an entity has the id {entity_id!r}, expected a number or a text for each entity, or no ids"
            )
        if entity_id in ids[:index]:
            raise ValueError(f"two entities have the id {entity_id!r}, expected different ones")
    return ids


def _parse_relation(row: Mapping[str, Any], index_by_id: Mapping[Any, int]) -> Relation:
    """Returns a relation of the data with the indices of its entities in place of their ids.

    Raises:
        ValueError: an id is unknown, both are the same entity, or the label is missing.
    """
    head, tail, label = row.get("head"), row.get("tail"), row.get("label")
    for entity_id in (head, tail):
        if not isinstance(entity_id, (int, str)) or entity_id not in index_by_id:
            ids = ", ".join(map(str, index_by_id)) or "none"
            raise ValueError(f"the relation {dict(row)!r} names the entity {entity_id!r}, expected one of {ids}")
    if index_by_id[head] == index_by_id[tail]:
        raise ValueError(f"the relation {dict(row)!r} leads from an entity to itself")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"the relation {dict(row)!r} has no label")
    return Relation(label.strip(), index_by_id[head], index_by_id[tail])


class Mention(NamedTuple):
    """An entity as the model sees it: its label, and the indices of its first and last unit of the text.

    A unit is a word, or one character in scripts without spaces (see `_units`).
    """

    label: str
    first_unit: int
    last_unit: int


@dataclass(frozen=True)
class Prediction:
    """The entities of a text, with the logits of its units and of the relations between the entities.

    Attributes:
        tag_logits: logits of the BIO label of each unit, `(units, labels)`.
        entities: those that the client gave, otherwise those that follow from `tag_logits`.
        relation_logits: `(n, n, 1 + relations)`, where `n` is the number of entities, at most `MAX_ENTITIES`. Entry
            `[head, tail]` has the logits of "no relation", at index 0 of the last axis, and of each label.
    """

    tag_logits: Float32
    entities: tuple[Mention, ...]
    relation_logits: Float32


class Decision(NamedTuple):
    """The predicted or true entities, and their relations, each as label, head and tail."""

    entities: tuple[Mention, ...]
    relations: tuple[tuple[str, Mention, Mention], ...]


def first_token_by_offset(features: Features) -> dict[int, int]:
    """Returns the index of the first token of each unit that the model reads, by the unit's offset in the text."""
    starts = (units(features.text)[:, 0] + features.start).tolist()
    tokens = first_tokens(features.text, features.encoding).tolist()
    return {start: token for start, token in zip(starts, tokens, strict=True) if token >= 0}


def pair_targets(target: RelationTarget, features: Features, names: Sequence[str]) -> Array:
    """Returns the label of each ordered pair of entities, at their first tokens `[head, tail]`, `(tokens, tokens)`.

    0 means no relation, `i + 1` the relation `names[i]`. All other pairs of tokens are `IGNORE_INDEX`.
    """
    relations = np.full((len(features), len(features)), IGNORE_INDEX, dtype=np.int16)  # 512 KiB for 512 tokens
    token_by_offset = first_token_by_offset(features)
    tokens = [token_by_offset.get(entity.start) for entity in target.entities]
    labels = {(relation.head, relation.tail): relation.label for relation in target.relations}
    for head, head_token in enumerate(tokens):
        for tail, tail_token in enumerate(tokens):
            if head_token is not None and tail_token is not None and head_token != tail_token:
                label = labels.get((head, tail))
                relations[head_token, tail_token] = 0 if label is None else names.index(label) + 1
    return relations


def pair_logits(
    outputs: Sequence[Arrays], features: Sequence[Features], starts: Sequence[int], label_count: int
) -> Float32:
    """Returns the logits of each ordered pair of entities, `[head, tail, label]`, `(entities, entities, labels)`.

    They come from the window that shows both entities with the largest margin: the smallest distance in characters
    between the beginning of an entity and an edge of the window. Two entities that no window shows together, or that
    begin in the same token, have no relation.

    Args:
        outputs: of each window, with `relation_logits`, `(tokens, tokens, labels)`.
        features: the windows of the text.
        starts: character offsets of the entities in the text.
        label_count: number of labels, of which the first is "no relation".
    """
    offsets, count = np.array(starts, dtype=np.int64), len(starts)
    logits = np.zeros((count, count, label_count), dtype=np.float32)
    logits[:, :, 0] = CERTAIN_LOGIT
    best_margins = np.full((count, count), -1)  # in characters, of the window that each pair's logits come from
    for arrays, window in zip(outputs, features, strict=True):
        token_by_offset, end = first_token_by_offset(window), window.start + len(window.text)
        visible = np.array([entity for entity, start in enumerate(starts) if start in token_by_offset], dtype=np.int64)
        tokens = np.array([token_by_offset[starts[entity]] for entity in visible], dtype=np.int64)
        entity_margins = np.minimum(offsets[visible] - window.start, end - offsets[visible])
        margins = np.minimum(entity_margins[:, np.newaxis], entity_margins)
        pairs = np.ix_(visible, visible)
        is_better = (tokens[:, np.newaxis] != tokens) & (margins > best_margins[pairs])
        best_margins[pairs] = np.where(is_better, margins, best_margins[pairs])
        window_logits = arrays["relation_logits"][np.ix_(tokens, tokens)]
        logits[pairs] = np.where(is_better[:, :, np.newaxis], window_logits, logits[pairs])
    return logits


def dump(predictions: Sequence[Prediction]) -> dict[str, Array]:
    """Returns the arrays of all predictions, concatenated.

    `scores` and `lengths` hold the logits of units, as in `_classification.dump`. `entities` has the first and last
    unit of each entity, `(entities, 2)`, `entity_labels` its label, and `counts` the number of entities of each
    prediction. `relations` has the logits of the ordered pairs of entities, `(pairs, 1 + relations)`.
    """
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
    """Returns the predictions that `dump` turned into arrays."""
    counts, labels = arrays["counts"], arrays["entity_labels"].tolist()
    rows = zip(labels, arrays["entities"].tolist(), strict=True)
    entities = [Mention(str(label), first, last) for label, (first, last) in rows]
    ends, label_count = np.cumsum(counts), arrays["relations"].shape[-1]
    sizes = np.minimum(counts, MAX_ENTITIES)  # entities of each prediction whose pairs were scored
    pairs = np.split(arrays["relations"], np.cumsum(sizes**2)[:-1])
    columns = zip(classification.load(arrays), counts, sizes, ends, pairs, strict=True)
    return [
        Prediction(tag_logits, tuple(entities[end - count : end]), logits.reshape(size, size, label_count))
        for tag_logits, count, size, end, logits in columns
    ]
