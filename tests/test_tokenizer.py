import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from deploykit.errors import ModelError
from deploykit.tokenizer import MAX_CHARACTERS_PER_TOKEN, Tokenizer, join_windows


@pytest.fixture
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder, max_tokens=16)


@pytest.fixture
def folder(tokenizer_folder, tmp_path):
    return shutil.copytree(tokenizer_folder, tmp_path / "model")


def configure(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    message = (
        r"model has no fast tokenizer that can be read \(.*\)\. Expected tokenizer\.json and tokenizer_config\.json"
    )
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(folder, 16)


def test_a_damaged_file_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model has no fast tokenizer that can be read"):
        Tokenizer.load(folder, 16)


@pytest.mark.parametrize("token", [None, "[NOT THERE]"])
def test_a_tokenizer_without_padding_is_refused(folder, token):
    configure(folder, pad_token=token)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json names no padding token\. Add one"):
        Tokenizer.load(folder, 16)


def test_as_many_second_texts_as_first_ones(tokenizer):
    with pytest.raises(ValueError, match="shorter"):
        tokenizer.encode(["a", "b"], ["c"])


def test_the_same_ids_as_transformers(tokenizer, tokenizer_folder, sentences):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = [text for text, _ in sentences[:50]] + ["Ünknown ☃ things", ""]
    pairs = [*texts[1:], "the end"]
    wanted = reference(texts, pairs, truncation=True, max_length=16, padding="longest", return_tensors="np")
    found = tokenizer.collate(tokenizer.encode(texts, pairs))
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == np.int64
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_special_tokens_roles_may_be_objects_and_padding_may_be_left(folder):
    configure(folder, pad_token={"content": "[MASK]", "special": True}, padding_side="left", unk_token=None)
    found = Tokenizer.load(folder, 16)
    assert found.pad_id == found.backend.token_to_id("[MASK]") != 0
    assert (found.padding_side, found.unknown_id) == ("left", None)
    assert found.encode(["☃"])[0].unknown == 0


def test_offsets_are_those_of_the_text_and_nothing_for_special_tokens(tokenizer):
    text = "A Great film!"
    (found,) = tokenizer.encode([text])
    assert [text[start:end] for start, end in found.offsets] == ["", "A", "Great", "film", "!", ""]
    assert found.offsets.dtype == found.ids.dtype == np.int64
    assert len(found) == 6
    assert not found.truncated


def test_tokens_of_the_second_text_are_marked(tokenizer):
    (found,) = tokenizer.encode(["the film"], ["is great"])
    assert found.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_long_texts_are_cut_and_say_so(tokenizer):
    exact, long = tokenizer.encode(["film " * 14, "film " * 15])
    assert (len(exact), exact.truncated) == (16, False)
    assert (len(long), long.truncated) == (16, True)
    assert long.ids[-1] == tokenizer.backend.token_to_id("[SEP]")


def test_unknown_tokens_are_counted(tokenizer):
    assert [found.unknown for found in tokenizer.encode(["the film", "the ☃ and 日"])] == [0, 2]


def test_nothing_to_encode(tokenizer):
    assert tokenizer.encode([]) == []


@pytest.mark.parametrize(("side", "start"), [("right", 0), ("left", 3), (None, 0)])
def test_padding_on_either_side(tokenizer, side, start):
    encodings = tokenizer.encode(["film", "the film is great"])
    batch = tokenizer.collate(encodings, side)
    assert {array.shape for array in batch.values()} == {(2, 6)}
    short = slice(start, start + 3)
    assert tokenizer.token_slice(3, 6, side) == short
    assert batch["input_ids"][0, short].tolist() == encodings[0].ids.tolist()
    assert batch["attention_mask"][0, short].tolist() == [1, 1, 1]
    assert (batch["attention_mask"].sum(), batch["input_ids"][0].sum()) == (9, encodings[0].ids.sum())


def test_padding_is_the_padding_token(folder):
    configure(folder, pad_token="[MASK]")
    tokenizer = Tokenizer.load(folder, 16)
    batch = tokenizer.collate(tokenizer.encode(["film", "the film"]))
    assert batch["input_ids"][0, -1] == tokenizer.pad_id
    assert batch["attention_mask"][0, -1] == 0


# long texts


def long_text(words, seed=0):
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["the", "film", "great,", "plot", "moving", "unbelievably"], size=words))


@pytest.mark.parametrize("words", [1, 5, 12, 40, 200])
def test_windows_overlap_and_hold_all_of_a_text(tokenizer, words):
    text = long_text(words)
    (windows,) = tokenizer.windows([text], max_windows=1000)
    (expected,) = replace(tokenizer, max_tokens=10_000).encode([text])
    seen = set()
    for window in windows:
        assert len(window.encoding) <= 16
        assert not window.encoding.truncated
        assert text[window.start : window.start + len(window.text)] == window.text
        for start, end in window.encoding.offsets.tolist():
            if end > start:
                seen.add((window.start + start, window.start + end))
                assert window.text[start:end] == text[window.start + start : window.start + end]
    assert seen == {(start, end) for start, end in expected.offsets.tolist() if end > start}
    for before, after in itertools.pairwise(windows):
        assert before.start < after.start < before.start + len(before.text)
    read = join_windows(windows)
    assert (len(read), read.windows, read.truncated) == (sum(len(one.encoding) for one in windows), len(windows), False)
    assert {(start, end) for start, end in read.offsets.tolist() if end > start} == seen
    assert (len(windows) == 1) == (len(expected) <= 16)


def test_a_text_of_one_window_is_what_it_always_was(tokenizer):
    for text in ("", "a film", long_text(200)):
        ((window,),) = tokenizer.windows([text], max_windows=1)
        (encoding,) = tokenizer.encode([text])
        assert (window.text, window.start) == (text[: 16 * MAX_CHARACTERS_PER_TOKEN], 0)
        np.testing.assert_array_equal(window.encoding.ids, encoding.ids)
        np.testing.assert_array_equal(window.encoding.offsets, encoding.offsets)
        assert window.encoding.truncated == encoding.truncated == (len(text) > 100)


def test_what_the_windows_do_not_hold_is_cut_and_says_so(tokenizer):
    text = long_text(200)
    (windows,) = tokenizer.windows([text], max_windows=3)
    assert [window.encoding.truncated for window in windows] == [False, False, True]
    assert join_windows(windows).truncated
    (every,) = tokenizer.windows([text], max_windows=1000)
    (exactly,) = tokenizer.windows([text], max_windows=len(every))
    assert not join_windows(exactly).truncated


def test_no_more_of_a_text_is_tokenized_than_its_windows_may_hold(tokenizer):
    limit = 16 * 3 * MAX_CHARACTERS_PER_TOKEN
    spaces, rest = "film" + " " * (limit - 4), "great"
    ((short,),) = tokenizer.windows([spaces], max_windows=3)
    ((cut,),) = tokenizer.windows([spaces + rest], max_windows=3)
    assert (short.text, cut.text) == (spaces, spaces)
    assert (short.encoding.truncated, cut.encoding.truncated) == (False, True)
    np.testing.assert_array_equal(cut.encoding.ids, tokenizer.encode(["film"])[0].ids)


def test_a_model_that_reads_next_to_nothing_has_windows_too(tokenizer_folder):
    for most in (3, 4, 5):
        short = Tokenizer.load(tokenizer_folder, max_tokens=most)
        (windows,) = short.windows(["the film was great"], max_windows=100)
        assert len(windows) > 1
        assert max(len(window.encoding) for window in windows) <= most
