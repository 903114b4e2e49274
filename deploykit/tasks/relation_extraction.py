"""Entities of a text and the directed relations between them, with one pass of one encoder.

A relation leads from an entity, its `head`, to another, its `tail`. The model has two outputs. `tag_logits` give each
token a BIO label, from which entities follow as in token classification. `relation_logits` score every ordered pair of
tokens; the scores of a pair of entities are those of their first tokens. An input may give its entities, and then only
relations are predicted.

Events are the same: a trigger and its arguments are entities, and the roles are relations from the trigger to the
arguments.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

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
from deploykit.tasks import _classification as classification
from deploykit.tasks._relations import (  # noqa: F401  dump and load are functions of this task
    MAX_ENTITIES,
    Decision,
    Input,
    InputEntity,
    Mention,
    Prediction,
    Relation,
    dump,
    load,
    pair_logits,
    pair_targets,
    read_target,
)
from deploykit.tasks._units import overlapped_units, units
from deploykit.tasks._windows import with_original_text
from deploykit.tasks.token_classification import Entity, label_order  # noqa: F401  functions of this task
from deploykit.tokenizer import Features, Tokenizer, join_windows

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
    "relations": Column("relations", "a list of `head`, `tail` (ids, or indices in `spans`) and `label`"),
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
NO_RELATION = "no relation"  # the first label of `relation_logits`
UnitRanges = tuple[tuple[int, int], ...]  # first and last unit of an entity, or of the head and then of the tail


class Options(TextOptions):
    """How texts are read that are longer than the model's input, and which relations there are."""

    relations: tuple[str, ...] = ()
    """The labels of relations, in the order of the outputs; set by training."""


class PredictedRelation(Frozen):
    """A relation from one entity of the answer to another."""

    label: str
    head: int = Field(description="index in `entities` of the entity that it leads from, counted from 0")
    tail: int = Field(description="index in `entities` of the entity that it leads to")
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
        text, entities, relations = (row[str(columns[role])] for role in ("text", "spans", "relations"))
        target = read_target(text, entities, relations)
        return Example(Input(text=text), target)

    return read


def _token_example(example: Example) -> Example:
    """Returns the example in the form of token classification: a text and its entities as spans."""
    return Example(TextInput(text=example.input.text), example.target.entities)


def oracle(example: Example) -> Input:
    """Returns the input with its true entities, so that only relations are predicted and measured."""
    entities = [InputEntity(label=span.label, start=span.start, end=span.end) for span in example.target.entities]
    return Input(text=example.input.text, entities=tuple(entities))


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the labels of tokens: `O`, followed by B- and I- of each label of an entity, sorted by label."""
    return token_classification.label_names([_token_example(example) for example in examples])


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns the label of each entity and of each relation."""
    return tuple(labelled.label for labelled in (*example.target.entities, *example.target.relations))


def prepare(examples: Sequence[Example], options: Options) -> Options:
    """Returns options with the labels of the examples' relations, sorted."""
    names = {relation.label for example in examples for relation in example.target.relations}
    return options.model_copy(update={"relations": tuple(sorted(names))})


def output_labels(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Returns the labels of each output, by name."""
    return {"tag_logits": spec.labels, "relation_logits": (NO_RELATION, *spec.options.relations)}


def encode(inputs: Sequence[Input], tokenizer: Tokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes texts; a long one becomes several windows."""
    return tokenizer.windows([item.text for item in inputs], spec.options.max_windows)


def targets(example: Example, features: Features, spec: Spec) -> dict[str, Int64]:
    """Returns the labels of tokens, `(tokens,)`, and of pairs of entities at their first tokens, `(tokens, tokens)`."""
    tags = token_classification.targets(_token_example(example), features, spec)["labels"]
    return {"tags": tags, "relations": pair_targets(example.target, features, spec.options.relations)}


def decode(outputs: Sequence[Arrays], features: Sequence[Features], item: Input, spec: Spec) -> Prediction:
    """Returns the entities, given or predicted, and the logits of the relations between them.

    Two entities that no window shows together have no relation.
    """
    features = with_original_text(features, item.text)
    tag_outputs = [{"logits": arrays["tag_logits"]} for arrays in outputs]
    tag_logits = token_classification.decode(tag_outputs, features, TextInput(text=item.text), spec)
    unit_offsets = units(item.text)
    if item.entities is None:
        entities = _mentions(tag_logits.argmax(axis=-1), spec)
    else:
        starts, ends = [entity.start for entity in item.entities], [entity.end for entity in item.entities]
        rows = zip(item.entities, *overlapped_units(unit_offsets, starts, ends), strict=True)
        entities = tuple(Mention(entity.label, int(first), int(end) - 1) for entity, first, end in rows)
    starts = [int(unit_offsets[entity.first_unit, 0]) for entity in entities[:MAX_ENTITIES]]
    labels = output_labels(spec)["relation_logits"]
    return Prediction(tag_logits, entities, pair_logits(outputs, features, starts, len(labels)))


def _mentions(tags: Int64, spec: Spec) -> tuple[Mention, ...]:
    """Returns the entities that the BIO labels of the units mean; `tags` are their indices, `(units,)`."""
    return tuple(Mention(*entity) for entity in token_classification.items(tags, spec))


def gold(example: Example, spec: Spec) -> Decision:
    """Returns the true entities, and the true relations, sorted."""
    entities = _mentions(token_classification.gold(_token_example(example), spec), spec)
    relations = [(label, entities[head], entities[tail]) for label, head, tail in example.target.relations]
    return Decision(entities, tuple(sorted(relations)))


def _predicted_relations(prediction: Prediction, spec: Spec) -> list[Relation]:
    """Returns the best relation of each ordered pair of entities for which "no relation" is not best."""
    labels, best = output_labels(spec)["relation_logits"], prediction.relation_logits.argmax(axis=-1)
    return [Relation(labels[best[head, tail]], head, tail) for head, tail in np.argwhere(best > 0).tolist()]


def decide(prediction: Prediction, spec: Spec) -> Decision:
    """Returns the entities, and the predicted relations, sorted."""
    entities, found = prediction.entities, _predicted_relations(prediction, spec)
    relations = [(label, entities[head], entities[tail]) for label, head, tail in found]
    return Decision(entities, tuple(sorted(relations)))


def spans(decision: Decision, spec: Spec) -> Sequence[tuple[Any, ...]]:
    """Lists the entities, which have the metric `span_f1` of their own."""
    return decision.entities


def items(decision: Decision, spec: Spec) -> Sequence[tuple[Any, ...]]:
    """Lists the relations, each with both entities: one is right only if offsets and labels of both are right, too."""
    return decision.relations


def item_labels(spec: Spec) -> tuple[str, ...]:
    """Lists the labels of relations, which are the labels of `items`."""
    return tuple(spec.options.relations)


def changes(example: Example, before: Decision, after: Decision, spec: Spec) -> list[dict[str, str]]:
    """Returns each entity, and each pair of entities, whose label differs, with its true label and both others.

    A missing label is written as `-`, and a pair as `HEAD → TAIL`.
    """
    text, unit_offsets = example.input.text, units(example.input.text)
    decisions = {"true": gold(example, spec), "before": before, "after": after}
    labels = {name: _labels_by_units(decision) for name, decision in decisions.items()}

    def text_of(ranges: UnitRanges) -> str:
        return " → ".join(text[unit_offsets[first, 0] : unit_offsets[last, 1]] for first, last in ranges)

    predicted = {**labels["before"], **labels["after"]}
    return [
        {"text": text_of(ranges), **{name: by_units.get(ranges, "-") for name, by_units in labels.items()}}
        for ranges in predicted
        if labels["before"].get(ranges) != labels["after"].get(ranges)
    ]


def _labels_by_units(decision: Decision) -> dict[UnitRanges, str]:
    """Returns the label of each entity by its units, and of each relation by the units of its head and tail."""
    entities: dict[UnitRanges, str] = {(entity[1:],): entity.label for entity in decision.entities}
    return entities | {(head[1:], tail[1:]): label for label, head, tail in decision.relations}


def distance(first: Prediction, second: Prediction) -> float:
    """Returns the largest absolute difference of a probability.

    Those of relations count only if the entities are the same: otherwise their pairs do not correspond.
    """
    of_tags = classification.distance(first.tag_logits, second.tag_logits)
    if first.entities != second.entities:
        return of_tags
    of_relations = classification.distance(first.relation_logits, second.relation_logits)
    return float(np.maximum(of_tags, of_relations))  # unlike `max`, it is NaN if either is


def observe(predictions: Sequence[Prediction], spec: Spec) -> Observations:
    """Returns BIO label, confidence and entropy of each unit, as token classification does; no relations."""
    return classification.observe([prediction.tag_logits for prediction in predictions], spec)


def answer(prediction: Prediction, features: Sequence[Features], item: Input, spec: Spec) -> Answer:
    """Returns the entities, and the relations between them by indices of `entities`; given entities have score 1."""
    encoding, unit_offsets = join_windows(features), units(item.text)
    confidences = softmax(prediction.tag_logits).max(axis=-1)
    entities = [
        Entity(
            label=label,
            text=item.text[unit_offsets[first, 0] : unit_offsets[last, 1]],
            start=int(unit_offsets[first, 0]),
            end=int(unit_offsets[last, 1]),
            score=1.0 if item.entities is not None else float(confidences[first : last + 1].min()),
        )
        for label, first, last in prediction.entities
    ]
    probabilities = softmax(prediction.relation_logits).max(axis=-1)
    relations = [
        PredictedRelation(label=label, head=head, tail=tail, score=float(probabilities[head, tail]))
        for label, head, tail in _predicted_relations(prediction, spec)
    ]
    counts = {"tokens": len(encoding), "windows": encoding.windows, "truncated": encoding.truncated}
    return Answer(entities=entities, relations=relations, **counts)


def record(answer: Answer) -> dict[str, Any]:
    """Returns the entities without their texts, and the relations."""
    entities = [entity.model_dump(exclude={"text"}) for entity in answer.entities]
    return {"entities": entities, "relations": [relation.model_dump() for relation in answer.relations]}
