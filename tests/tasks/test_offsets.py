"""Offsets in answers, whatever the script and the tokenizer: each part of an answer is that part of the text."""

import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, loader

from deploykit.tasks import Spec, TextInput, question_answering, relation_extraction, token_classification
from deploykit.tasks._units import trim_to_graphemes, units

WRITTEN = [  # as people write them: each piece is trim_to_graphemes grapheme clusters
    *("👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "1️⃣", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"),
    *("cafe\u0301", "\u1e9b\u0323", "Å", "İ", "ﬁ", "½", "①", "x²", "𝒳", "ｈｅｌｌｏ", "ｶﾞ"),
    *("שלום", "مرحبا", "\u200f", "می\u200cخواهم", "\u06dd١٢", "हिन्दी", "क्षत्रिय", "กำ", "ខ្មែរ", "한국어"),
    *("我住在北京", "東京タワー", "。", "\t", "\n", "\r\n", " ", "  ", "\u00a0", "\u3000", "\x00", "\u00ad", "\ufeff"),
    *("7kg", "d'Anna", "the ", "film", "London", "unbelievably", ".", "</s>"),
]
TEXTS = st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=25).map("".join)
ANY = TEXTS | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
SEEDS, LENGTHS = st.integers(0, 999), st.sampled_from([8, 12, 24])
LABELS = ("O", "B-A", "I-A", "B-B", "I-B")
WINDOWS = 999
QUESTION = question_answering.Options(stride=3, no_answer_threshold=1e6, max_windows=WINDOWS)
ANSWERED = Spec((), QUESTION)
TAGGED = Spec(LABELS, token_classification.Options(max_windows=WINDOWS))
RELATED = Spec(LABELS, relation_extraction.Options(max_windows=WINDOWS, relations=("x", "y")))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`load(kind, max_tokens) -> Tokenizer`, read from the files of a model."""
    return loader(tmp_path_factory.mktemp("tokenizers"))


def answered(task, item, tokenizer, spec, seed):
    """The answer of a model that says anything, after its prediction was in a file."""
    (features,) = task.encode([item], tokenizer, spec)
    random, outputs = np.random.default_rng(seed), []
    for part in features:
        sizes = {"tokens": len(part), "labels": len(spec.labels)}
        shapes = {name: [sizes[axis] for axis in axes] for name, axes in task.OUTPUTS.items()}
        if task is relation_extraction:
            shapes["relation_logits"][-1] = 1 + len(spec.options.relations)
        outputs.append({name: 4 * random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    (prediction,) = task.load(task.dump([task.decode(outputs, features, item, spec)]))
    return task.answer(prediction, features, item, spec)


def edges(text):
    """Offsets between grapheme clusters, and before a letter or number to which only invisible signs are joined."""
    clusters = [match.span() for match in regex.finditer(r"\X", text)]
    prefixes = {end for start, end in (regex.match(r"\p{Cf}*", text, pos=start).span() for start, _ in clusters)}
    return {0, *prefixes, *(end for _, end in clusters)}


def assert_lie_in(text, spans, clusters):
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert span.text == text[span.start : span.end]
        assert span.text == span.text.strip()
        if clusters:
            assert {span.start, span.end} <= edges(text)


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, seed=SEEDS, max_tokens=LENGTHS)
@example(text="\x00\x00", seed=0, max_tokens=8)
def test_entities_are_whole_characters_of_the_text_in_order(load, kind, text, seed, max_tokens):
    answer = answered(token_classification, TextInput(text=text), load(kind, max_tokens), TAGGED, seed)
    assert_lie_in(text, answer.entities, clusters=True)
    places = [place for entity in answer.entities for place in (entity.start, entity.end)]
    assert places == sorted(places)


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY, seed=SEEDS, max_tokens=LENGTHS)
def test_entities_lie_in_any_text(load, kind, text, seed, max_tokens):
    answer = answered(token_classification, TextInput(text=text), load(kind, max_tokens), TAGGED, seed)
    assert_lie_in(text, answer.entities, clusters=False)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3), seed=SEEDS, max_tokens=LENGTHS)
@example(texts=["anna \x00\x00"], seed=0, max_tokens=8)
def test_an_answer_is_whole_characters_of_its_context(load, kind, texts, seed, max_tokens):
    item = question_answering.Input(question="where ?", contexts=tuple(texts))
    answer = answered(question_answering, item, load(kind, max_tokens), ANSWERED, seed)
    if answer.answer is None:
        assert not any(len(units(text)) for text in texts)
        return
    text = texts[answer.context]
    assert 0 <= answer.start < answer.end <= len(text)
    assert answer.answer == text[answer.start : answer.end]
    assert answer.answer == answer.answer.strip(" \t\r\n\u00a0\u3000\x00\ufeff")
    assert {answer.start, answer.end} <= edges(text)


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY, question=ANY, seed=SEEDS, max_tokens=LENGTHS)
def test_an_answer_lies_in_any_context(load, kind, text, question, seed, max_tokens):
    item = question_answering.Input(question=question, context=text)
    answer = answered(question_answering, item, load(kind, max_tokens), ANSWERED, seed)
    if answer.answer is not None:
        assert answer.answer == text[answer.start : answer.end] != ""


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, seed=SEEDS, max_tokens=LENGTHS)
def test_relations_lead_between_entities_that_are_whole_characters(load, kind, text, seed, max_tokens):
    answer = answered(relation_extraction, relation_extraction.Input(text=text), load(kind, max_tokens), RELATED, seed)
    assert_lie_in(text, answer.entities, clusters=True)
    for relation in answer.relations:
        assert relation.head != relation.tail
        assert {relation.head, relation.tail} <= set(range(len(answer.entities)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), text=TEXTS, seed=SEEDS, max_tokens=LENGTHS)
def test_entities_that_a_client_gives_become_the_words_that_they_touch(load, kind, data, text, seed, max_tokens):
    pieces = units(text).tolist()
    chosen = data.draw(st.lists(st.sampled_from(pieces), max_size=4, unique_by=tuple)) if pieces else []
    entities = [{"start": start, "end": data.draw(st.integers(start + 1, end)), "label": "A"} for start, end in chosen]
    item = relation_extraction.Input(text=text, entities=entities)
    answer = answered(relation_extraction, item, load(kind, max_tokens), RELATED, seed)
    assert [[entity.start, entity.end] for entity in answer.entities] == chosen
    assert_lie_in(text, answer.entities, clusters=True)


@given(text=ANY, choice=st.integers(0, 999))
@example(text="a \u0308b", choice=1)
def test_a_part_of_a_text_is_widened_to_whole_characters_and_no_further(text, choice):
    seen = [place for place, sign in enumerate(text) if not sign.isspace() and unicodedata.category(sign)[0] != "C"]
    if not seen:
        return
    place = seen[choice % len(seen)]
    (cluster,) = (match.span() for match in regex.finditer(r"\X", text) if match.start() <= place < match.end())
    assert trim_to_graphemes(text, place, place + 1) == cluster
