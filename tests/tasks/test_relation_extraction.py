from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.tasks import IGNORE_INDEX, Spec
from deploykit.tasks import relation_extraction as task
from deploykit.tasks._relations import first_token_by_offset

COLUMNS = {role: column.default for role, column in task.COLUMNS.items()}
TEXT = "anna and peter live in london , not in paris ."
PEOPLE, PLACES = ("anna", "peter"), ("london", "paris")


def entity(text, name, label, **more):
    return {"start": text.index(name), "end": text.index(name) + len(name), "label": label, **more}


def row(text=TEXT, relations=((0, 2), (1, 2)), label="lives_in"):
    entities = [entity(text, name, "PERSON") for name in PEOPLE] + [entity(text, name, "PLACE") for name in PLACES]
    return {
        "text": text,
        "spans": entities,
        "relations": [{"head": head, "tail": tail, "label": label} for head, tail in relations],
    }


def read(content):
    return task.reader([content], COLUMNS)(content)


def spec_of(example, **options):
    return Spec(task.label_names([example]), task.prepare([example], task.Options(**options)))


def perfect(example, features, spec):
    """Outputs of a model that is certain of the targets; where there are none, it is certain of something wrong."""
    outputs = []
    for part in features:
        wanted = task.targets(example, part, spec)
        sizes = {"tag_logits": len(spec.labels), "relation_logits": len(spec.options.relations) + 1}
        named = {"tag_logits": wanted["tags"], "relation_logits": wanted["relations"]}
        outputs.append(
            {
                name: 9 * np.eye(sizes[name], dtype=np.float32)[np.where(array == IGNORE_INDEX, -1, array)]
                for name, array in named.items()
            }
        )
    return outputs


def predicted(example, tokenizer, spec, item=None):
    item = item or example.input
    ((*features,),) = task.encode([item], tokenizer, spec)
    return task.decode(perfect(example, features, spec), features, item, spec), features


def test_relations_name_entities_by_place_or_by_id():
    content = row()
    named = row()
    for name, part in zip("wxyz", named["spans"], strict=True):
        part["id"] = f"T{name}"
    named["relations"] = [
        {"head": "Tw", "tail": "Ty", "label": "lives_in"},
        {"head": "Tx", "tail": "Ty", "label": "lives_in"},
    ]
    assert read(content) == read(named)
    numbered = row(relations=[(4, 2), (3, 2)])  # numbers that are ids, and not places
    for number, part in zip((4, 3, 2, 1), numbered["spans"], strict=True):
        part["id"] = number
    assert read(content) == read(numbered)
    shuffled = {**content, "spans": [content["spans"][place] for place in (2, 0, 3, 1)]}
    shuffled["relations"] = [{"head": head, "tail": 0, "label": "lives_in"} for head in (1, 3)]
    assert read(shuffled) == read(content)  # entities are sorted by place, and relations follow them


def spans_with(first, second):
    """Two entities with ids."""
    return [{"id": first, "start": 0, "end": 4, "label": "X"}, {"id": second, "start": 5, "end": 8, "label": "X"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relations": None}, r"relations is None, expected a list of objects with head, tail and label"),
        ({"relations": [{"head": 0, "tail": 9, "label": "r"}]}, r"names the entity 9, expected one of 0, 1, 2, 3$"),
        ({"relations": [{"head": 0, "tail": "T1", "label": "r"}]}, r"names the entity 'T1'"),
        ({"relations": [{"head": 0, "tail": 0, "label": "r"}]}, "leads from an entity to itself"),
        ({"spans": spans_with("a", "a")}, "two entities have the id 'a', expected different ones"),
        ({"spans": spans_with("a", None)}, r"an entity has the id None, expected a number or a text for each entity"),
        ({"spans": spans_with("a", ["b"])}, r"an entity has the id \['b'\], expected a number or a text"),
        ({"spans": spans_with(1, True)}, "an entity has the id True, expected a number or a text"),
        ({"relations": [{"head": 0, "tail": 1}]}, "has no label"),
        ({"relations": [{"head": [], "tail": 1, "label": "r"}]}, r"names the entity \[\]"),
        ({"relations": [{"head": 0, "tail": 1, "label": label} for label in "rs"]}, "the same head and tail"),
        ({"spans": [{"start": 2, "end": 4, "label": "X"}], "relations": []}, "begins or ends inside the word"),
        ({"spans": [{"start": 0, "end": 99, "label": "X"}], "relations": []}, "does not lie in a text"),
        ({"text": " "}, "expected one that is not empty"),
    ],
)
def test_what_is_no_graph_of_entities_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read({**row(), **change})


def test_a_model_that_is_right_gives_the_gold(tokenizer):
    example = read(row())
    spec = spec_of(example)
    assert spec.options.relations == ("lives_in",)
    prediction, _ = predicted(example, tokenizer, spec)
    gold = task.gold(example, spec)
    assert task.decide(prediction, spec) == gold
    assert task.items(gold, spec) == tuple(
        ("lives_in", ("PERSON", *units), ("PLACE", 5, 5)) for units in ((0, 0), (2, 2))
    )
    assert [mention.label for mention in task.spans(gold, spec)] == ["PERSON", "PERSON", "PLACE", "PLACE"]


def test_direction_is_kept(tokenizer):
    example, other = read(row(relations=[(0, 2)])), read(row(relations=[(2, 0)]))
    spec = spec_of(example)
    (head, tail), (first, second) = (task.gold(part, spec).relations[0][1:] for part in (example, other))
    assert (head, tail) == (second, first)
    assert task.decide(predicted(other, tokenizer, spec)[0], spec) == task.gold(other, spec)


def test_entities_that_are_given_are_not_predicted(tokenizer):
    example = read(row())
    spec = spec_of(example)
    item = task.oracle(example)
    ((*features,),) = task.encode([item], tokenizer, spec)
    outputs = perfect(example, features, spec)
    for output in outputs:
        output["tag_logits"] = np.zeros_like(output["tag_logits"])
    prediction = task.decode(outputs, features, item, spec)
    assert task.decide(prediction, spec) == task.gold(example, spec)
    answer = task.answer(prediction, features, item, spec)
    assert [(part.text, part.score) for part in answer.entities] == [(name, 1.0) for name in (*PEOPLE, *PLACES)]
    fewer = task.Input(text=TEXT, entities=item.entities[:1])
    assert task.decide(task.decode(outputs, features, fewer, spec), spec).relations == ()


@pytest.mark.parametrize(("start", "end"), [(4, 4), (5, 2), (0, 99)])
def test_a_given_entity_lies_inside_the_text(start, end):
    with pytest.raises(ValueError, match="does not lie in a text of 46"):
        task.Input(text=TEXT, entities=[{"start": start, "end": end, "label": "X"}])


@pytest.mark.parametrize("text", [" ", "\u200f", "a  b"])
def test_a_given_entity_covers_a_word(text):
    with pytest.raises(ValueError, match=r"the entity .* covers no word of the text"):
        task.Input(text=text, entities=[{"start": len(text) // 2, "end": len(text) // 2 + 1, "label": "X"}])


def test_the_number_of_entities_with_relations_is_bounded(tokenizer):
    count, spec = task.MAX_ENTITIES + 44, Spec(("O", "B-A", "I-A"), task.Options(relations=("of",), max_windows=64))
    item = task.Input(text="anna " * count)
    ((*features,),) = task.encode([item], tokenizer, spec)
    outputs = [
        {
            "tag_logits": np.tile(np.array([0, 9, 0], np.float32), (len(part), 1)),
            "relation_logits": np.tile(np.array([0, 9], np.float32), (len(part), len(part), 1)),
        }
        for part in features
    ]
    prediction = task.decode(outputs, features, item, spec)
    assert len(prediction.entities) == count
    assert prediction.relation_logits.shape[0] == task.MAX_ENTITIES
    again = task.load(task.dump([prediction, prediction]))
    assert task.decide(again[1], spec) == task.decide(prediction, spec)
    assert task.distance(prediction, again[0]) == 0
    assert max(part.head for part in task.answer(prediction, features, item, spec).relations) < task.MAX_ENTITIES
    with pytest.raises(ValueError, match="at most 256 items"):
        task.Input(text=item.text, entities=[{"start": 0, "end": 4, "label": "A"}] * count)


def test_an_answer_names_entities_by_their_places(tokenizer):
    example = read(row())
    spec = spec_of(example)
    prediction, features = predicted(example, tokenizer, spec)
    answer = task.answer(prediction, features, example.input, spec)
    assert [(part.text, part.label) for part in answer.entities] == [
        *((name, "PERSON") for name in PEOPLE),
        *((name, "PLACE") for name in PLACES),
    ]
    assert [(part.head, part.tail, part.label) for part in answer.relations] == [(0, 2, "lives_in"), (1, 2, "lives_in")]
    assert all(TEXT[part.start : part.end] == part.text for part in answer.entities)
    assert min(part.score for part in answer.relations) > 0.99
    assert "anna" not in str(task.record(answer))


@given(
    fillers=st.lists(st.integers(0, 60), min_size=5, max_size=5),
    relations=st.sets(st.sampled_from([(head, tail) for head in range(4) for tail in range(4) if head != tail])),
)
def test_long_texts_give_the_gold_as_far_as_windows_show_both_entities(tokenizer, fillers, relations):
    names = [*PEOPLE, *PLACES]
    text = " ".join(f"{'the ' * filler}{name}" for filler, name in zip(fillers, [*names, "."], strict=True))
    example = read(row(text, sorted(relations)))
    spec = spec_of(example, max_windows=64)
    if not relations:
        spec = Spec(spec.labels, task.Options(relations=("lives_in",), max_windows=64))
    prediction, features = predicted(example, tokenizer, spec)
    decision, gold = task.decide(prediction, spec), task.gold(example, spec)
    assert decision.entities == gold.entities
    together = {
        (head, tail)
        for part in features
        for head in range(4)
        for tail in range(4)
        if {text.index(names[place]) for place in (head, tail)} <= set(first_token_by_offset(part))
    }
    places = {mention: place for place, mention in enumerate(gold.entities)}
    assert {(places[head], places[tail]) for _, head, tail in decision.relations} == relations & together


def test_predictions_survive_a_file_also_without_entities(tokenizer, tmp_path):
    examples = [read(row()), read({"text": "the end .", "spans": [], "relations": []})]
    spec = spec_of(examples[0])
    predictions = [predicted(example, tokenizer, spec)[0] for example in examples]
    np.savez(tmp_path / "p.npz", **task.dump(predictions))
    with np.load(tmp_path / "p.npz") as arrays:
        again = task.load(arrays)
    assert [task.decide(part, spec) for part in again] == [task.decide(part, spec) for part in predictions]
    assert max(task.distance(*pair) for pair in zip(predictions, again, strict=True)) == 0
    nothing = task.load(task.dump(predictions[1:]))
    assert task.decide(nothing[0], spec) == task.Decision((), ())


def test_changes_name_both_ends():
    example = read(row())
    spec = spec_of(example)
    gold = task.gold(example, spec)
    after = task.Decision(gold.entities[:3], gold.relations[:1])
    assert task.changes(example, gold, gold, spec) == []
    assert task.changes(example, gold, after, spec) == [
        {"text": "paris", "true": "PLACE", "before": "PLACE", "after": "-"},
        {"text": "peter → london", "true": "lives_in", "before": "lives_in", "after": "-"},
    ]


def test_entities_of_a_request_do_not_overlap():
    with pytest.raises(ValueError, match=r"the entities 0-4 and 0-8 overlap"):
        task.Input(text=TEXT, entities=[{"start": 0, "end": end, "label": "X"} for end in (8, 4)])


def test_labels_that_a_client_writes_are_masked_and_short():
    item = task.Input(text=TEXT, entities=[{"start": 0, "end": 4, "label": "me@example.com"}])
    masked = item.with_texts(lambda text: "x" * len(text))
    assert masked.entities[0].label == "x" * 14
    assert item.entities[0].label == "me@example.com"
    with pytest.raises(ValueError, match="at most 100 characters"):
        task.Input(text=TEXT, entities=[{"start": 0, "end": 4, "label": "x" * 101}])


def test_nan_in_the_relations_is_no_small_difference(tokenizer):
    example = read(row())
    prediction, _ = predicted(example, tokenizer, spec_of(example))
    assert np.isnan(task.distance(prediction, replace(prediction, relation_logits=prediction.relation_logits * np.nan)))


def test_masked_characters_divide_a_text_as_it_was(tokenizer):
    text = "\u8bf7\u5199\u4fe1\u7ed9 anna and peter live in london , not in paris ."
    example = read(row(text))
    spec = spec_of(example)
    ((*features,),) = task.encode([example.input], tokenizer, spec)
    outputs = perfect(example, features, spec)
    masked = [replace(part, text="xxxx" + part.text[4:]) for part in features]
    assert task.decide(task.decode(outputs, masked, example.input, spec), spec) == task.gold(example, spec)
