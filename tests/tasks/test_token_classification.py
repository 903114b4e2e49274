from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import example_of, spec_of

from deploykit.tasks import IGNORE_INDEX, Span, softmax
from deploykit.tasks import token_classification as task
from deploykit.tasks._units import units
from deploykit.tokenizer import Encoding, Features, Tokenizer

TAGS = {"text": "text", "tokens": "tokens", "tags": "tags", "spans": None}
SPANS = {**TAGS, "spans": "spans"}
LABELS = ("O", "B-NAME", "I-NAME", "B-PLACE", "I-PLACE")
SPEC = spec_of(LABELS)
TEXT = "Anna Lee lives in London."
EXAMPLE = example_of(TEXT, spans=(Span(0, 8, "NAME"), Span(18, 24, "PLACE")))


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder, 32)


def read(row, columns):
    return task.reader([row], columns)(row)


def answer_of(scores, text, encoding, labels=LABELS):
    """Answers from the logits of the units of a text that is one window."""
    return task.answer(scores, [Features(text, 0, encoding)], example_of(text).input, spec_of(labels))


def targets_of(example, encoding):
    return task.targets(example, Features(example.input.text, 0, encoding), SPEC)["labels"]


def logits_for(targets, labels=LABELS, certainty=10.0):
    return (np.eye(len(labels), dtype=np.float32) * certainty)[targets]


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ("a b", ["O", "O"], "tokens and tags must be lists, and not empty"),
        (["a"], "O", "tokens and tags must be lists"),
        ([], [], "and not empty"),
        (["a", "b"], ["O"], r"^2 tokens and 1 tags, expected as many of each$"),
        (["a", ""], ["O", "O"], "a token is empty or not a string"),
        (["aa", " "], ["O", "O"], "a token is empty or not a string"),
        ([" ", "\t"], ["O", "O"], "all tokens are white space"),
        (["a", 1], ["O", "O"], "a token is empty or not a string"),
        (["a", "b"], ["O", ""], "a tag is empty or not a string"),
        (["a", "b"], ["O", 1], "a tag is empty or not a string"),
    ],
)
def test_broken_tokens_and_tags_are_refused(tokens, tags, message):
    with pytest.raises(ValueError, match=message):
        read({"tokens": tokens, "tags": tags}, TAGS)


@pytest.mark.parametrize(
    ("text", "spans", "message"),
    [
        ("", [], "the text is '', expected one that is not empty"),
        (None, [], "the text is None"),
        ("abc", "0-1", "spans is '0-1', expected a list of objects with start, end and label"),
        ("abc", [[0, 1, "X"]], "expected a list of objects"),
        ("abc", [{"start": 0, "end": 4, "label": "X"}], r"'end': 4, .* does not lie in a text of 3 characters"),
        ("abc", [{"start": 1, "end": 1, "label": "X"}], "does not lie in a text of 3"),
        ("abc", [{"start": -1, "end": 1, "label": "X"}], "does not lie in a text of 3"),
        ("abc", [{"start": "0", "end": 1, "label": "X"}], "does not lie in a text of 3"),
        ("abc", [{"start": 0, "end": 1}], "has no label"),
        ("abc", [{"start": 0, "end": 1, "label": " "}], "has no label"),
        (
            "a b c",
            [{"start": 2, "end": 5, "label": "X"}, {"start": 0, "end": 3, "label": "Y"}],
            "the spans .* overlap, expected one label per word",
        ),
        ("a b", [{"start": 0, "end": 1, "label": "X"}] * 2, "overlap"),
        ("a - \u200b", [{"start": 4, "end": 5, "label": "X"}], r"^the span 4-5 .* covers no word of the text"),
        (
            "Die Berlinreise",
            [{"start": 4, "end": 10, "label": "X"}],
            r"^the span 4-10 'Berlin' begins or ends inside the word 'Berlinreise', expected whole words$",
        ),
        ("a filmmaker", [{"start": 6, "end": 11, "label": "X"}], "inside the word 'filmmaker'"),
        ("cafe\u0301", [{"start": 0, "end": 4, "label": "X"}], "inside the word"),  # cuts the accent off
        ("हिन्दी", [{"start": 0, "end": 1, "label": "X"}], "inside the word 'हिन्दी'"),
    ],
)
def test_broken_spans_are_refused(text, spans, message):
    with pytest.raises(ValueError, match=message):
        read({"text": text, "spans": spans}, SPANS)


@pytest.mark.parametrize("column", ["tokens", "tags"])
def test_a_missing_column_is_a_key_error(column):
    with pytest.raises(KeyError, match=column):
        read({name: ["a"] for name in ("tokens", "tags") if name != column}, TAGS)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("我住在北京市1区", [(3, 5)]),
        ("张伟住在北京市0区", [(0, 2), (4, 6)]),
        ("buy 7kg of rice", [(4, 5)]),
        ("buy 7kg of rice", [(4, 7)]),
        ("東京タワーに行く", [(0, 5)]),
        ("ฉันอยู่กรุงเทพ", [(7, 14)]),
        ("삼성전자는 서울에 있다", [(0, 4), (6, 8)]),
        ("वह हिन्दी बोलता है", [(3, 9)]),
        ("un cafe\u0301 noir", [(3, 8)]),
        ("👩\u200d🚀Anna", [(3, 7)]),
    ],
)
def test_spans_keep_their_characters_from_data_to_answer(text, spans, tokenizer):
    rows = [{"start": start, "end": end, "label": "NAME"} for start, end in spans]
    example = read({"text": text, "spans": rows}, SPANS)
    assert [(span.start, span.end) for span in example.target] == spans
    (encoding,) = tokenizer.encode([text])
    answer = answer_of(logits_for(task.gold(example, SPEC)), text, encoding)
    assert [(found.start, found.end, found.text) for found in answer.entities] == [
        (start, end, text[start:end]) for start, end in spans
    ]


def test_white_space_at_the_ends_of_a_span_is_left_out():
    example = read({"text": "see Anna now", "spans": [{"start": 3, "end": 9, "label": "X"}]}, SPANS)
    assert example.target == (Span(4, 8, "X"),)


def test_characters_as_tokens_are_the_text_that_is_served():
    text, tags = "张伟用iPhone15，住北京", "B-X I-X O O O O O O O O O O O B-Y I-Y"
    example = read({"tokens": list(text), "tags": tags.split()}, TAGS)
    assert example == example_of(text, spans=(Span(0, 2, "X"), Span(13, 15, "Y")))
    korean = read({"tokens": list("서울 시에"), "tags": ["B-X", "I-X", "I-X", "I-X", "O"]}, TAGS)
    assert korean == example_of("서울 시에", spans=(Span(0, 4, "X"),))
    with pytest.raises(ValueError, match=r"^the span 1-2 'a' begins or ends inside the word 'ab'"):
        read({"tokens": list("我ab"), "tags": ["O", "B-X", "O"]}, TAGS)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O O O", []),
        ("B-X I-X O", [(0, 4, "X")]),
        ("B-X B-X O", [(0, 1, "X"), (2, 4, "X")]),
        ("B-X I-Y O", [(0, 1, "X"), (2, 4, "Y")]),
        ("O I-X I-X", [(2, 8, "X")]),
        ("NOUN NOUN VERB", [(0, 1, "NOUN"), (2, 4, "NOUN"), (5, 8, "VERB")]),
        ("B-X O I-X", [(0, 1, "X"), (5, 8, "X")]),
        ("B-X O I-O", [(0, 1, "X"), (5, 8, "O")]),
        ("O I-O I-O", [(2, 8, "O")]),
        ("X X O", [(0, 4, "X")]),
        ("S-X B-X E-X", [(0, 1, "X"), (2, 8, "X")]),
    ],
)
def test_tags_become_spans(tags, spans):
    found = read({"tokens": ["a", "bb", "ccc"], "tags": tags.split()}, TAGS)
    assert found == example_of("a bb ccc", spans=tuple(Span(*span) for span in spans))


def test_a_tag_on_what_cannot_be_seen_labels_nothing():
    tokens, tags = ["Anna", "\uf0b7", "Lee", "\u200b"], ["B-X", "I-X", "I-X", "B-Y"]
    assert read({"tokens": tokens, "tags": tags}, TAGS) == example_of(
        "Anna \uf0b7 Lee \u200b", spans=(Span(0, 10, "X"),)
    )


def test_spans_are_sorted():
    spans = [{"start": 18, "end": 24, "label": "PLACE"}, {"start": 0, "end": 8, "label": "NAME"}]
    assert read({"text": TEXT, "spans": spans}, SPANS) == EXAMPLE


def test_labels_are_outside_and_both_prefixes_of_each():
    assert task.label_names([EXAMPLE, example_of("a", spans=())]) == LABELS
    assert task.label_names([example_of("a", spans=())]) == ("O",)
    assert task.example_labels(EXAMPLE) == ("NAME", "PLACE")
    assert task.example_labels(example_of("a", spans=())) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [("", []), ("d'água, 3.5!", ["d", "'", "água", ",", "3", ".", "5", "!"]), (" a\u00a0b\n", ["a", "b"])],
)
def test_units_are_words_and_marks(text, words):
    assert [text[start:end] for start, end in units(text)] == words
    assert units(text).shape == (len(words), 2)


def test_targets_are_bio_of_each_unit():
    assert [LABELS[index] for index in task.gold(EXAMPLE, SPEC)] == ["B-NAME", "I-NAME", "O", "O", "B-PLACE", "O"]


def test_the_loss_sees_the_first_token_of_each_unit(tokenizer):
    (encoding,) = tokenizer.encode([TEXT])
    pieces = tokenizer.backend.encode(TEXT).tokens
    targets = targets_of(EXAMPLE, encoding)
    seen = {piece: LABELS[label] for piece, label in zip(pieces, targets, strict=True) if label != IGNORE_INDEX}
    assert seen == {"anna": "B-NAME", "l": "I-NAME", "lives": "O", "in": "O", "london": "B-PLACE", ".": "O"}
    assert pieces[2:5] == ["l", "##e", "##e"]
    assert targets.shape == (len(encoding),)
    assert targets[3:5].tolist() == [IGNORE_INDEX] * 2


def test_two_units_in_one_token_take_the_label_of_the_first(tokenizer):
    (encoding,) = tokenizer.encode(["a b"])
    merged = np.array([[0, 0], [0, 3], [0, 0]])
    encoding = type(encoding)(encoding.ids[:3], encoding.type_ids[:3], merged, 0, False)
    example = example_of("a b", spans=(Span(0, 1, "NAME"), Span(2, 3, "PLACE")))
    assert targets_of(example, encoding).tolist() == [IGNORE_INDEX, 1, IGNORE_INDEX]
    assert task.first_tokens("a b", encoding).tolist() == [1, 1]


def test_units_that_were_cut_off_are_certainly_outside(tokenizer_folder):
    text = "anna " * 20
    (encoding,) = Tokenizer.load(tokenizer_folder, 8).encode([text])
    logits = logits_for([1] * 8)
    scores = task.unit_logits(logits, text, encoding)
    assert scores.shape == (20, 5)
    np.testing.assert_array_equal(scores[:6], logits[1:7])
    np.testing.assert_array_equal(scores[6:], [[task.CERTAIN_LOGIT, 0, 0, 0, 0]] * 14)
    answer = answer_of(scores, text, encoding)
    assert (len(answer.entities), answer.tokens, answer.truncated) == (6, 8, True)


def test_answers_are_spans_with_true_offsets(tokenizer):
    (encoding,) = tokenizer.encode([TEXT])
    answer = answer_of(logits_for(task.gold(EXAMPLE, SPEC)), TEXT, encoding)
    assert [(found.label, found.text, found.start, found.end) for found in answer.entities] == [
        ("NAME", "Anna Lee", 0, 8),
        ("PLACE", "London", 18, 24),
    ]
    assert all(found.text == TEXT[found.start : found.end] for found in answer.entities)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("I-NAME I-NAME O", ["a b"]),
        ("B-NAME B-NAME O", ["a", "b"]),
        ("B-NAME I-PLACE I-PLACE", ["a", "b c"]),
        ("B-NAME O I-NAME", ["a", "c"]),
        ("O O O", []),
    ],
)
def test_an_inside_label_continues_or_begins(tokenizer, tags, entities):
    (encoding,) = tokenizer.encode(["a b c"])
    scores = logits_for([LABELS.index(tag) for tag in tags.split()])
    assert [found.text for found in answer_of(scores, "a b c", encoding).entities] == entities


@pytest.mark.parametrize(("first", "second"), [(0.6, 0.9), (0.9, 0.6)])
def test_the_score_of_an_entity_is_that_of_its_least_certain_word(tokenizer, first, second):
    (encoding,) = tokenizer.encode(["a b"])
    probabilities = np.array([[1 - first, first, 0, 0, 0], [1 - second, 0, second, 0, 0]], dtype=np.float32)
    (entity,) = answer_of(np.log(probabilities + 1e-9), "a b", encoding).entities
    assert entity.score == pytest.approx(0.6, abs=1e-4)


def test_a_text_without_units_has_no_entities(tokenizer):
    (encoding,) = tokenizer.encode(["  "])
    scores = task.unit_logits(logits_for([0, 0]), "  ", encoding)
    assert scores.shape == (0, 5)
    assert answer_of(scores, "  ", encoding).entities == []


def test_what_was_read_comes_back_from_perfect_scores(tokenizer, tagged_sentences):
    for tokens, tags in tagged_sentences:
        example = read({"tokens": tokens, "tags": tags}, TAGS)
        (encoding,) = tokenizer.encode([example.input.text])
        answer = answer_of(logits_for(task.gold(example, SPEC)), example.input.text, encoding)
        assert tuple(Span(found.start, found.end, found.label) for found in answer.entities) == example.target


PIECES = ["Anna", " ", "  ", "\n", "7kg", ",", "...", "e\u0301", "😀", "北京", "हिन्दी", "한국어", "don't", "\u200d"]


@given(data=st.data(), text=st.lists(st.sampled_from(PIECES), max_size=15).map("".join) | st.text(max_size=20))
def test_spans_come_back_from_the_targets_of_their_tokens_with_the_same_offsets(data, text):
    pieces = units(text).tolist()
    edges = sorted(data.draw(st.sets(st.integers(0, len(pieces)), max_size=6)))
    spans = tuple(
        Span(pieces[first][0], pieces[last - 1][1], data.draw(st.sampled_from(["NAME", "PLACE"])))
        for first, last in list(pairwise(edges))[:: data.draw(st.integers(1, 2))]
    )
    example, places = example_of(text, spans=spans), np.arange(len(text))
    characters = Encoding(places, places, np.stack([places, places + 1], axis=1), 0, False)  # one token each
    logits = logits_for(targets_of(example, characters).clip(0))
    answer = answer_of(task.unit_logits(logits, text, characters), text, characters)
    assert tuple(Span(entity.start, entity.end, entity.label) for entity in answer.entities) == spans
    assert all(entity.text == text[entity.start : entity.end] for entity in answer.entities)
    assert task.misaligned_spans(example, [Features(text, 0, characters)], SPEC) == []


def test_units_that_share_a_token_are_parts_of_one_entity(tokenizer):
    text = "在北京"
    (encoding,) = tokenizer.encode(["a b"])
    whole = type(encoding)(
        encoding.ids[:4], encoding.type_ids[:4], np.array([[0, 0], [0, 1], [1, 3], [0, 0]]), 0, False
    )
    example = example_of(text, spans=(Span(1, 3, "PLACE"),))
    targets = targets_of(example, whole)
    assert targets.tolist() == [IGNORE_INDEX, 0, LABELS.index("B-PLACE"), IGNORE_INDEX]
    scores = task.unit_logits(logits_for(targets.clip(0)), text, whole)
    assert scores.argmax(axis=-1).tolist() == task.gold(example, SPEC).tolist()
    probabilities = softmax(scores)
    np.testing.assert_allclose(probabilities[1:, 0], softmax(logits_for([3, 3]))[:, 0], rtol=1e-4)
    (entity,) = answer_of(scores, text, whole).entities
    assert (entity.label, entity.text) == ("PLACE", "北京")


def test_spans_that_the_tokens_cannot_express_are_listed(tokenizer):
    text = "在北京 Anna 7kg"
    (encoding,) = tokenizer.encode(["a b c d"])
    offsets = np.array([[0, 0], [0, 2], [2, 3], [4, 8], [9, 12]])  # Anna is a token, 7kg is one, and so is 在北
    coarse = type(encoding)(encoding.ids[:5], encoding.type_ids[:5], offsets, 0, False)
    spans = (Span(1, 3, "PLACE"), Span(4, 8, "NAME"), Span(9, 10, "NAME"))
    example = example_of(text, spans=spans)
    assert task.misaligned_spans(example, [Features(text, 0, coarse)], SPEC) == [spans[0], spans[2]]
    cut = type(encoding)(encoding.ids[:3], encoding.type_ids[:3], offsets[:3], 0, True)
    # those that were cut off are another matter
    assert task.misaligned_spans(example, [Features(text, 0, cut)], SPEC) == [spans[0]]


def test_a_word_of_which_only_the_beginning_was_read_is_answered_whole(tokenizer):
    (encoding,) = tokenizer.encode(["a b"])
    cut = type(encoding)(encoding.ids[:3], encoding.type_ids[:3], np.array([[0, 0], [3, 6], [0, 0]]), 0, True)
    (entity,) = answer_of(logits_for([0, 3, 0]), "in London now", cut).entities
    assert (entity.text, entity.start, entity.end) == ("London", 3, 9)


# long texts


def test_each_word_is_answered_by_the_window_that_shows_most_around_it():
    text = "alpha beta gamma delta epsilon"
    parts = [(0, 16), (6, 22), (11, 30)]  # two words and a bit in common
    windows = [Features(text[start:end], start, None) for start, end in parts]
    found = [np.full((len(units(window.text)), 3), number, dtype=np.float32) for number, window in enumerate(windows)]
    merged = task.merge_windows(found, windows, text)
    assert merged.shape == (5, 3)
    # beta stands 6 from the edge of the first and 0 from that of the second; gamma at an edge of all but the second
    assert merged[:, 1].tolist() == [0, 0, 1, 2, 2]


def test_a_word_that_an_edge_cuts_is_taken_from_where_it_is_whole():
    text = "alpha beta gamma"
    windows = [Features("alpha bet", 0, None), Features("eta gamma", 7, None), Features("beta gamma", 6, None)]
    found = [np.full((2, 3), number, dtype=np.float32) for number in range(3)]
    assert task.merge_windows(found, windows, text)[:, 1].tolist() == [0, 2, 2]
    windows = [Features("alpha be", 0, None), Features("bet", 6, None), Features("eta gamma", 7, None)]
    cut = task.merge_windows([found[0], found[1][:1], found[2]], windows, text)
    assert cut[:, 1].tolist() == [0, 1, 2]  # its longest beginning, where all cut it
    windows = [Features("alpha", 0, None), Features("eta gamma", 7, None)]
    lost = task.merge_windows([found[0][:1], found[1]], windows, text)
    assert lost[1].tolist() == [task.CERTAIN_LOGIT, 0, 0]  # no window has it: no entity


@pytest.mark.parametrize(
    ("sentence", "spans"),
    [("张伟住在北京。", [(0, 2), (4, 6)]), ("वह हिन्दी बोलता है। ", [(3, 9)]), ("7kg 在 café́ Lee ", [(0, 1), (6, 11)])],
)
def test_windows_over_a_long_text_of_any_script_lose_nothing(sentence, spans, tokenizer_folder):
    text, size = sentence * 12, len(sentence)
    found = [Span(start + size * n, end + size * n, "NAME") for n in range(12) for start, end in spans]
    example = example_of(text, spans=tuple(found))
    (windows,) = Tokenizer.load(tokenizer_folder, max_tokens=16).windows([text], 64)
    assert len(windows) > 3
    label_of = dict(zip(units(text)[:, 0].tolist(), task.gold(example, SPEC).tolist(), strict=True))
    parts = [[label_of.get(start + window.start, 0) for start, _ in units(window.text)] for window in windows]
    merged = task.merge_windows([logits_for(part) for part in parts], windows, text)
    answer = task.answer(merged, windows, example.input, SPEC)
    assert [Span(entity.start, entity.end, entity.label) for entity in answer.entities] == found


def perfect(example, windows):
    """Outputs of a model that learned the targets of these windows."""
    return [{"logits": logits_for(task.targets(example, window, SPEC)["labels"].clip(0))} for window in windows]


@pytest.mark.parametrize("max_tokens", [8, 9, 13])
@pytest.mark.parametrize(
    ("sentence", "spans"),
    [
        ("anna leeson lives in londonderry . ", [(0, 11, "NAME"), (21, 32, "PLACE")]),
        ("张伟住在北京。", [(0, 2, "NAME"), (4, 6, "PLACE")]),
        ("वह हिन्दी बोलता है। ", [(3, 9, "NAME")]),
        ("café́ d'Anna, (NATO) ", [(0, 5, "PLACE"), (8, 12, "NAME")]),
    ],
)
def test_targets_of_windows_are_those_of_words_that_begin_in_them(sentence, spans, max_tokens, tokenizer_folder):
    """The rest of a word at the beginning of a window has no label; predictions are of the units of the whole text."""
    moved = [
        Span(start + len(sentence) * n, end + len(sentence) * n, label) for n in range(6) for start, end, label in spans
    ]
    example = example_of(sentence * 6, spans=moved)
    (windows,) = task.encode(
        [example.input], Tokenizer.load(tokenizer_folder, max_tokens), spec_of(LABELS, max_windows=99)
    )
    assert len(windows) > 1
    label_at = dict(zip(units(example.input.text)[:, 0].tolist(), task.gold(example, SPEC).tolist(), strict=True))
    labelled, begun_inside = {}, 0
    for window in windows:
        targets = task.targets(example, window, SPEC)["labels"]
        assert (targets.shape, targets.dtype) == ((len(window),), np.int64)
        starts, ends = (window.encoding.offsets + window.start).T.tolist()
        seen = set()
        for start, end, target in zip(starts, ends, targets.tolist(), strict=True):
            if start == end or start in seen:  # a special token, or one that shares its character
                assert target == IGNORE_INDEX
                continue
            seen.add(start)
            assert target == label_at.get(start, IGNORE_INDEX)
            labelled |= {start: target} if start in label_at else {}
        begun_inside += min(seen) not in label_at
    assert labelled == label_at
    assert begun_inside or "anna leeson" not in sentence
    prediction = task.decode(perfect(example, windows), windows, example.input, SPEC)
    np.testing.assert_array_equal(task.decide(prediction, SPEC), task.gold(example, SPEC))
    assert task.misaligned_spans(example, windows, SPEC) == []
    answer = task.answer(prediction, windows, example.input, SPEC)
    assert [Span(entity.start, entity.end, entity.label) for entity in answer.entities] == moved


def test_the_rest_of_a_word_is_not_taken_for_a_word(tokenizer):
    text = "see londonderry now"  # the window begins inside the name
    window = Features(text[10:], 10, tokenizer.encode([text[10:]])[0])
    targets = task.targets(example_of(text, spans=[Span(4, 15, "PLACE")]), window, SPEC)["labels"]
    first, last = task.first_tokens(window.text, window.encoding).tolist()
    assert (targets[first], targets[last]) == (IGNORE_INDEX, LABELS.index("O"))
    assert (targets != IGNORE_INDEX).sum() == 1


def test_windows_give_the_units_of_the_whole_text_and_what_was_not_read_is_outside(tokenizer_folder):
    text = "Anna lives in London . " * 8
    spans = [
        span for n in range(8) for span in (Span(23 * n, 23 * n + 4, "NAME"), Span(23 * n + 14, 23 * n + 20, "PLACE"))
    ]
    example, tokenizer = example_of(text, spans=spans), Tokenizer.load(tokenizer_folder, 10)
    for most, read in ((1, 8), (2, 14), (3, 20), (16, 40)):  # windows of 8 words, of which they share 2
        spec = spec_of(LABELS, max_windows=most)
        (windows,) = task.encode([example.input], tokenizer, spec)
        assert windows[-1].encoding.truncated == (read < 40)
        prediction = task.decode(perfect(example, windows), windows, example.input, spec)
        assert (prediction.shape, prediction.dtype) == ((40, len(LABELS)), np.float32)
        assert task.decide(prediction, spec)[:read].tolist() == task.gold(example, spec)[:read].tolist()
        assert prediction[read:].tolist() == [[task.CERTAIN_LOGIT, 0, 0, 0, 0]] * (40 - read)
        answer = task.answer(prediction, windows, example.input, spec)
        end = units(text)[read - 1, 1]
        assert [Span(found.start, found.end, found.label) for found in answer.entities] == [
            span for span in spans if span.end <= end
        ]
        assert (answer.windows, answer.truncated) == (len(windows), read < 40)
        assert task.misaligned_spans(example, windows, spec) == []


def test_changes_name_the_words_with_their_labels():
    before = task.gold(EXAMPLE, SPEC)
    assert task.changes(EXAMPLE, before, before, SPEC) == []
    after = before.copy()
    after[[1, 4]] = 0, LABELS.index("B-NAME")
    assert task.changes(EXAMPLE, before, after, SPEC) == [
        {"text": "Lee", "true": "I-NAME", "before": "I-NAME", "after": "O"},
        {"text": "London", "true": "B-PLACE", "before": "B-PLACE", "after": "B-NAME"},
    ]


def test_predictions_come_back_from_their_arrays():
    random = np.random.default_rng(0)
    for counts in ((2, 0, 5, 1, 0), (0, 3), (4,), (0,), (0, 0)):  # units of each text
        predictions = [random.normal(size=(count, 5)).astype(np.float32) for count in counts]
        loaded = task.load(task.dump(predictions))
        assert [row.shape for row in loaded] == [(count, 5) for count in counts]
        for one, other in zip(loaded, predictions, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        observed = task.observe(loaded, SPEC)
        assert observed.units.tolist() == list(counts)
        assert len(observed.labels) == len(observed.confidences) == len(observed.entropies) == sum(counts)


def test_units_that_no_window_has_are_outside():
    windows = [Features("alpha beta", 0, None), Features("beta gamma", 6, None)]
    found = [np.zeros((2, 3), dtype=np.float32)] * 2
    merged = task.merge_windows(found, windows, "alpha beta gamma delta")
    assert merged.tolist() == [[0, 0, 0]] * 3 + [[task.CERTAIN_LOGIT, 0, 0]]
