"""Any text, any pair: our cutting is the library's own, windows hold all of a text, and offsets lead back to it.

Three kinds of tokenizers: WordPiece as BERT has it, byte-level BPE as RoBERTa (which drops spaces from offsets) and
Unigram as T5.
"""

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, file_of, loader, reference
from tokenizers import Tokenizer as Backend

from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, OVERLAP_DIVISOR, Features, join_windows, lengthen

PIECES = [
    "the ",
    "film",
    "great, ",
    "boring",
    " ",
    "  ",
    "\n",
    "é",
    "e\u0301",
    "😀",
    "我住",
    "мир",
    "unbelievably ",
    "[SEP]",
    "</s>",
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.text(max_size=60))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """`load(kind, max_tokens) -> Tokenizer`, read from the files of a model."""
    return loader(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), max_tokens=st.integers(8, 40))
def test_pairs_are_cut_as_the_library_cuts_them(load, kind, texts, max_tokens):
    assume(max(len(text) for pair in texts for text in pair) <= MAX_CHARACTERS_PER_TOKEN * max_tokens)
    library = Backend.from_str(file_of(kind))
    library.enable_truncation(max_tokens, strategy="longest_first")
    first, second = map(list, zip(*texts, strict=True))
    for encoding, pair in zip(load(kind, max_tokens).encode(first, second), texts, strict=True):
        expected = library.encode(*pair)
        assert encoding.ids.tolist() == expected.ids
        assert encoding.type_ids.tolist() == expected.type_ids
        assert [tuple(offset) for offset in encoding.offsets.tolist()] == expected.offsets
        assert encoding.truncated == bool(expected.overflowing)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(text=TEXTS, max_tokens=st.integers(8, 40), most=st.integers(1, 12))
def test_windows_are_those_of_the_library(load, kind, text, max_tokens, most):
    assume(len(text) <= MAX_CHARACTERS_PER_TOKEN * max_tokens * most)
    library = Backend.from_str(file_of(kind))
    room = max_tokens - library.num_special_tokens_to_add(is_pair=False)
    library.enable_truncation(max_tokens, stride=room // OVERLAP_DIVISOR)
    expected = library.encode(text)
    every = [expected, *expected.overflowing]
    (windows,) = load(kind, max_tokens).windows([text], most)
    assert [window.encoding.ids.tolist() for window in windows] == [part.ids for part in every[:most]]
    assert join_windows(windows).truncated == (len(every) > most)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(text=TEXTS, max_tokens=st.integers(8, 40))
def test_windows_cover_the_text_and_their_offsets_map_back(load, kind, text, max_tokens):
    (windows,) = load(kind, max_tokens).windows([text], max_windows=1000)
    whole = reference(kind).encode(text)
    wanted = {offset for offset in whole.offsets if offset[1] > offset[0]}
    seen = set()
    for window in windows:
        assert len(window.encoding) <= max_tokens
        assert text[window.start : window.start + len(window.text)] == window.text
        for start, end in window.encoding.offsets.tolist():
            assert 0 <= start <= end <= len(window.text)
            if end > start:
                seen.add((window.start + start, window.start + end))
                assert window.text[start:end] == text[window.start + start : window.start + end]
    assert seen == wanted
    read = join_windows(windows)
    assert {(start, end) for start, end in read.offsets.tolist() if end > start} == wanted
    assert not read.truncated


def seconds(call):
    times = []
    for _ in range(3):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def test_a_pair_of_long_texts_costs_little_more_than_its_two_texts(load):
    tokenizer, text = load("wordpiece", 512), "the film was great and " * 800
    sides = seconds(lambda: tokenizer.encode([text, text]))
    assert seconds(lambda: tokenizer.encode([text], [text])) < 5 * sides


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["film", "the film was great " * 2000, "x" * 9000, "", "   ", "我住在北京" * 3000])
@pytest.mark.parametrize("tokens", [0, 1, 3, 512])
def test_repeated_tokens_fill_the_model_between_the_first_and_the_last(load, kind, text, tokens):
    (encoding,) = load(kind, 512).encode([text])
    tokens = max(tokens, len(encoding))
    features = Features(text, 0, encoding, {"more": np.ones(3)}, "part")
    longest = lengthen(features, tokens)
    found = longest.encoding
    assert len(longest) == len(found) == len(found.type_ids) == len(found.offsets) == tokens
    assert (found.ids[0], found.ids[-1]) == (encoding.ids[0], encoding.ids[-1])
    if len(encoding) > 2:
        assert set(found.ids[1:-1].tolist()) == set(encoding.ids[1:-1].tolist())
    assert not found.offsets.any()
    assert (longest.text, longest.arrays, longest.part) == ("", features.arrays, "part")
    if tokens == len(encoding):
        np.testing.assert_array_equal(found.ids, encoding.ids)


def test_a_pair_whose_text_is_not_read_to_its_end_says_so(load):
    tokenizer = load("wordpiece", 8)
    (encoding,) = tokenizer.encode(["film" + " " * 500 + "great"], ["film"])
    assert encoding.truncated
    np.testing.assert_array_equal(encoding.ids, tokenizer.encode(["film"], ["film"])[0].ids)


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_are_what_each_is_alone(load, kind, monkeypatch):
    tokenizer, texts = load(kind, 64), ["the film was great " * 30, "anna", "", "我住在北京" * 100, "мир"]
    alone = [tokenizer.encode([text])[0] for text in texts]
    monkeypatch.setattr("deploykit.tokenizer.PORTION_CHARACTERS", 100)
    for one, together in zip(alone, tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(one.ids, together.ids)
        np.testing.assert_array_equal(one.offsets, together.offsets)
