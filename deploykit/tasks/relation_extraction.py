"""Entities of a text and the directed relations between them, with one pass of one encoder.

One head gives each token a BIO label, from which entities follow as in token classification. Another scores every
ordered pair of tokens; a pair of entities has the relation that is best for the first tokens of the two, or none. An
input may give its entities, and then only their relations are predicted. Events are the same: a trigger and its
arguments are entities, and the roles are relations from the trigger to the arguments.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from deploykit.methods import Frozen
from deploykit.tasks import (
    Arrays,
    Column,
    Example,
    Int64,
    Observations,
    Spec,
    Target,
    TextInput,
    TextOptions,
    softmax,
    token_classification,
)
from deploykit.tasks import Input as BaseInput
from deploykit.tasks import _classification as classification
from deploykit.tasks._relations import (  # noqa: F401  dump and load are functions of this task
    MAX_ENTITIES,
    Decision,
    Mention,
    Prediction,
    covered,
    dump,
    load,
    pair_logits,
    pair_targets,
    read_row,
    token_at,
)
from deploykit.tasks._tags import decode_entities
from deploykit.tasks._units import UNIT, units
from deploykit.tasks._windows import merge
from deploykit.tasks.token_classification import Entity, first_tokens, label_order  # noqa: F401  of this task
from deploykit.tokenizer import Features, Tokenizer, joined

AUTO_CLASS = "AutoModel"
ORT_CLASS = "ORTModelForCustomTasks"
OPTIMUM_TASK = "feature-extraction"
OUTPUTS = {"tag_logits": ("tokens", "labels"), "relation_logits": ("tokens", "tokens", "labels")}
TARGETS = {
    "tags": Target("tag_logits", "cross_entropy", ("tokens",)),
    "relations": Target("relation_logits", "cross_entropy", ("tokens", "tokens")),
}
COLUMNS = {
    "text": Column("text", "the text"),
    "spans": Column("spans", "the entities, a list of `start`, `end`, `label` and, if relations use it, `id`"),
    "relations": Column("relations", "a list of `head`, `tail` (ids, or places in `spans`) and `label`"),
}
EXAMPLES = (
    {
        "text": "anna lives in london .",
        "spans": [{"start": 0, "end": 4, "label": "PERSON"}, {"start": 14, "end": 20, "label": "PLACE"}],
        "relations": [{"head": 0, "tail": 1, "label": "lives_in"}],
    },
    {"text": "the end .", "spans": [], "relations": []},
)
METRICS = ("relation_f1", "span_f1")
FIGURES = frozenset({"changes", "labels"})
CAPABILITIES = frozenset[str]()
NO_RELATION = "no relation"


class Options(TextOptions):
    """How long texts are read, and which relations there are."""

    relations: tuple[str, ...] = ()
    """The labels of relations, in the order of the outputs; set by training."""


class GivenEntity(Frozen):
    """An entity that is known beforehand."""

    label: str
    start: int = Field(ge=0, description="offset of its first character")
    end: int = Field(description="offset after its last character")


class Input(BaseInput):
    """A text, and its entities if they are known."""

    text: str
    entities: tuple[GivenEntity, ...] | None = Field(
        default=None, max_length=MAX_ENTITIES, description="null: they are predicted"
    )

    @model_validator(mode="after")
    def _lie_inside(self) -> Self:
        for entity in self.entities or ():
            if not entity.start < entity.end <= len(self.text):
                raise ValueError(f"the entity {entity.start}-{entity.end} does not lie in a text of {len(self.text)}")
            if not UNIT.search(self.text, entity.start, entity.end):
                raise ValueError(f"the entity {entity.start}-{entity.end} covers no word of the text")
        return self


class PredictedRelation(Frozen):
    """A relation from one entity of the answer to another."""

    label: str
    head: int = Field(description="place of the entity that it starts from in `entities`, counted from 0")
    tail: int = Field(description="place of the entity that it leads to")
    score: float = Field(description="its probability, 0 to 1")


class Answer(Frozen):
    """The prediction for one text."""

    entities: list[Entity]
    relations: list[PredictedRelation]
    tokens: int = Field(description="tokens that the model read")
    windows: int = Field(description="overlapping parts that a long text was read in")
    truncated: bool = Field(description="whether the end of the text was cut off")


def reader(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str | None]
) -> Callable[[Mapping[str, Any]], Example]:
    """Returns a function that reads a text with its entities and relations."""

    def read(row: Mapping[str, Any]) -> Example:
        text, target = read_row(*(row[str(columns[role])] for role in ("text", "spans", "relations")))
        return Example(Input(text=text), target)

    return read


def _entities_only(example: Example) -> Example:
    """Returns the example as token classification has it."""
    return Example(TextInput(text=example.input.text), example.target.spans)


def oracle(example: Example) -> Input:
    """Returns the input with its true entities, for figures of the relations alone."""
    given = tuple(GivenEntity(label=span.label, start=span.start, end=span.end) for span in example.target.spans)
    return Input(text=example.input.text, entities=given)


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns `O`, and B- and I- of each label of entities, sorted by label."""
    return token_classification.label_names([_entities_only(example) for example in examples])


def label_counts(example: Example) -> tuple[str, ...]:
    """Returns the labels of the entities and of the relations."""
    return tuple(part.label for part in (*example.target.spans, *example.target.relations))


def prepare(examples: Sequence[Example], options: Options) -> Options:
    """Returns options with the labels of relations, sorted."""
    names = {relation.label for example in examples for relation in example.target.relations}
    return options.model_copy(update={"relations": tuple(sorted(names))})


def heads(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Returns the labels of each output."""
    return {"tag_logits": spec.labels, "relation_logits": (NO_RELATION, *spec.options.relations)}


def encode(inputs: Sequence[Input], tokenizer: Tokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes texts, long ones in windows."""
    return tokenizer.windows([item.text for item in inputs], spec.options.max_windows)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the labels of tokens `(tokens,)`, and of pairs of entities `(tokens, tokens)` at their first tokens."""
    tags = token_classification.targets(_entities_only(example), features, spec)["labels"]
    return {"tags": tags, "relations": pair_targets(example.target, features, spec.options.relations)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: Input, spec: Spec) -> Prediction:
    """Returns the entities and the logits of the relations between them.

    Two entities that no window shows together have no relation.
    """
    rows = [
        token_classification.scores(arrays["tag_logits"], window.text, window.encoding)
        for arrays, window in zip(outputs, features, strict=True)
    ]
    tags = rows[0] if len(rows) == 1 else merge(rows, features, item.text)
    spans = units(item.text)
    if item.entities is None:
        names = [spec.labels[index] for index in tags.argmax(axis=-1)]
        entities = tuple(Mention(*entity) for entity in decode_entities(names))
    else:
        entities = tuple(Mention(entity.label, *covered(entity.start, entity.end, spans)) for entity in item.entities)
    starts = [int(spans[entity.first, 0]) for entity in entities[:MAX_ENTITIES]]
    relations = pair_logits(outputs, features, starts, len(spec.options.relations) + 1)
    return Prediction(tags, entities, relations)


def gold(example: Example, spec: Spec) -> Decision:
    """Returns the true entities and relations."""
    tags = token_classification.gold(_entities_only(example), spec)
    entities = tuple(Mention(*entity) for entity in decode_entities([spec.labels[index] for index in tags]))
    relations = [(part.label, entities[part.head], entities[part.tail]) for part in example.target.relations]
    return Decision(entities, tuple(sorted(relations)))


def decide(prediction: Prediction, spec: Spec) -> Decision:
    """Returns the entities, and the best relation of each ordered pair of them if it has one."""
    best = prediction.relations.argmax(axis=-1)
    relations = [
        (spec.options.relations[best[head, tail] - 1], prediction.entities[head], prediction.entities[tail])
        for head, tail in np.argwhere(best > 0)
    ]
    return Decision(prediction.entities, tuple(sorted(relations)))


def spans(decision: Decision, spec: Spec) -> Sequence[tuple[Any, ...]]:
    """Lists the entities."""
    return decision.entities


def items(decision: Decision, spec: Spec) -> Sequence[tuple[Any, ...]]:
    """Lists the relations with both entities: a relation is right only if the ends and labels of both are."""
    return decision.relations


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Lists the labels of relations."""
    return tuple(spec.options.relations)


def changes(example: Example, before: Decision, after: Decision, spec: Spec) -> list[dict[str, str]]:
    """Returns the entities and the pairs of them whose label differs, with the true label and both predicted ones."""
    text, true, spans = example.input.text, gold(example, spec), units(example.input.text)

    def named(decision: Decision) -> dict[tuple[Any, ...], str]:
        entities = {(entity[1:],): entity.label for entity in decision.entities}
        return entities | {(head[1:], tail[1:]): label for label, head, tail in decision.relations}

    def shown(key: tuple[Any, ...]) -> str:
        return " → ".join(text[spans[first, 0] : spans[last, 1]] for first, last in key)

    sides = {"true": named(true), "before": named(before), "after": named(after)}
    keys = [key for key in {**sides["before"], **sides["after"]} if sides["before"].get(key) != sides["after"].get(key)]
    return [{"text": shown(key), **{side: labels.get(key, "-") for side, labels in sides.items()}} for key in keys]


def distance(first: Prediction, second: Prediction) -> float:
    """Returns the largest difference of a probability; of relations only where the entities are the same."""
    largest = classification.distance(first.tags, second.tags)
    if first.entities != second.entities or not len(first.entities):
        return largest
    return max(largest, classification.distance(first.relations, second.relations))


def observe(predictions: Sequence[Prediction], spec: Spec) -> Observations:
    """Returns label, confidence and entropy of each unit, as token classification does."""
    return classification.observe([prediction.tags for prediction in predictions], spec)


def answer(prediction: Prediction, features: Sequence[Features], item: Input, spec: Spec) -> Answer:
    """Returns the entities, and the relations between them by their places in the list."""
    encoding, spans = joined(features), units(item.text)
    certainty = softmax(prediction.tags).max(axis=-1) if len(prediction.tags) else np.zeros(0)
    entities = [
        Entity(
            label=entity.label,
            text=item.text[spans[entity.first, 0] : spans[entity.last, 1]],
            start=int(spans[entity.first, 0]),
            end=int(spans[entity.last, 1]),
            score=1.0 if item.entities is not None else float(certainty[entity.first : entity.last + 1].min()),
        )
        for entity in prediction.entities
    ]
    shares = softmax(prediction.relations) if entities else prediction.relations
    best = prediction.relations.argmax(axis=-1)
    relations = [
        PredictedRelation(
            label=spec.options.relations[best[pair] - 1],
            head=pair[0],
            tail=pair[1],
            score=float(shares[pair][best[pair]]),
        )
        for pair in map(tuple, np.argwhere(best > 0).tolist())
    ]
    read = {"tokens": len(encoding), "windows": encoding.windows, "truncated": encoding.truncated}
    return Answer(entities=entities, relations=relations, **read)


def record(answer: Answer) -> dict[str, Any]:
    """Returns the entities without their texts, and the relations."""
    entities = [entity.model_dump(exclude={"text"}) for entity in answer.entities]
    return {"entities": entities, "relations": [relation.model_dump() for relation in answer.relations]}
