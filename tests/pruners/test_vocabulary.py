import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError

from deploykit.errors import DataError, ModelError
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.problem import model_inputs
from deploykit.pruners import vocabulary
from deploykit.pruners._vocabulary import pruning
from deploykit.pruners._vocabulary.tokens import reduced_tokenizer, required_token_ids
from deploykit.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokens_of(tokenizer, text):
    return tokenizer.backend.encode(text).tokens


def logits_of(model, tokenizer, texts):
    batch = {name: torch.from_numpy(array) for name, array in tokenizer.collate(tokenizer.encode(texts)).items()}
    with torch.inference_mode():
        return model.eval()(**model_inputs(model, batch)).logits


def same_answers(whole, problem, pruned):
    texts = list(problem.texts)
    return torch.equal(logits_of(whole, problem.tokenizer, texts), logits_of(pruned.model, pruned.tokenizer, texts))


# refusals


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="corpsu"):
        vocabulary.Options(corpsu="a.txt")


def test_a_missing_corpus_is_refused(tiny_encoder, problem_of, tmp_path):
    options = vocabulary.Options(corpus=tmp_path / "corpus.txt")
    with pytest.raises(DataError, match=r"there is no file .*corpus\.txt"):
        vocabulary.prune(tiny_encoder(), problem_of(), options, tmp_path)


def test_rows_of_a_corpus_that_cannot_be_read_are_refused(tiny_encoder, problem_of, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    options = vocabulary.Options(corpus=tmp_path / "corpus.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 2: not JSON"):
        vocabulary.prune(tiny_encoder(), problem_of(), options, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tiny_encoder, problem_of, tmp_path):
    few = surgery.with_tokens(tiny_encoder(), range(50))
    with pytest.raises(ModelError, match=r"the tokenizer has 11\d tokens and the model 50: they do not"):
        vocabulary.prune(few, problem_of(), vocabulary.Options(), tmp_path)


def test_a_text_that_would_be_tokenized_differently_is_refused_and_named(problem_of):
    whole = problem_of().tokenizer.backend
    used = pruning.used_token_ids(whole, ["the film"])
    small = reduced_tokenizer(whole, required_token_ids(whole, used))
    pruning.require_same_tokens(whole, small, ["the film"])
    message = (
        r"^with the reduced vocabulary 'the story' is tokenized as \['\[CLS\]', 'the', 's', .*,"
        r" not as \['\[CLS\]', 'the', 'story'"
    )
    with pytest.raises(ModelError, match=message):
        pruning.require_same_tokens(whole, small, ["the film", "the story"])


# results


@pytest.mark.parametrize("task", TASKS)
def test_texts_of_the_training_split_get_the_same_answers(task, tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(task=task), problem_of(task, 3)
    pruned = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    for text in problem.texts:
        assert tokens_of(pruned.tokenizer, text) == tokens_of(problem.tokenizer, text)
    assert same_answers(whole, problem, pruned)
    assert pruned.layers is None


def test_what_was_saved_is_reported(tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(), problem_of(count=3)
    pruned = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    before, after = problem.tokenizer.backend.get_vocab_size(), pruned.tokenizer.backend.get_vocab_size()
    assert after < before
    saved = 4 * 32 * (before - after)  # rows of the embedding, 32 columns of 4 bytes
    assert saved == 4 * (checkpoint.count_parameters(whole) - checkpoint.count_parameters(pruned.model))
    same = [
        tokens_of(pruned.tokenizer, text) == tokens_of(problem.tokenizer, text)
        for text in (row.input.text for row in problem.validation)
    ]
    assert 0 < np.mean(same) < 1
    assert pruned.facts == {
        "tokens": after,
        "tokens_before": before,
        "bytes_saved": saved,
        "texts": 3,
        "validation_unchanged": pytest.approx(np.mean(same)),
    }
    assert list(pruned.tokens) == [
        problem.tokenizer.backend.token_to_id(pruned.tokenizer.backend.id_to_token(token)) for token in range(after)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.txt", "director\nnothing else"),
        ("corpus.jsonl", '{"text": "director", "other": 3}\n{"tags": ["nothing", "else"]}\n'),
        ("corpus.csv", "a,b\ndirector,nothing\nelse,1\n"),
    ],
)
def test_a_corpus_is_tokenized_as_before_too(name, content, tiny_encoder, problem_of, tmp_path):
    (tmp_path / name).write_text(content)
    problem = problem_of(count=3)
    assert not any("director" in text for text in problem.texts)
    cut = []
    for options in ({}, {"corpus": tmp_path / name}):
        pruned = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(**options), tmp_path)
        cut.append(tokens_of(pruned.tokenizer, "director")[1:-1])
    assert cut == [["d", "##i", "##r", "##e", "##c", "##t", "##o", "##r"], ["director"]]


def test_unseen_words_are_still_tokenized(tiny_encoder, problem_of, tmp_path):
    pruned = vocabulary.prune(tiny_encoder(), problem_of(count=3), vocabulary.Options(), tmp_path)
    (encoding,) = pruned.tokenizer.encode(["unheard of ☃"])
    assert encoding.unknown == 1
    assert len(encoding) > 10
    assert logits_of(pruned.model, pruned.tokenizer, ["unheard of ☃"]).isfinite().all()


def test_special_tokens_get_their_new_ids(tiny_encoder, problem_of, tmp_path):
    """If special tokens come last in the vocabulary, all of their ids change."""
    problem = problem_of(count=3)
    content = json.loads(problem.tokenizer.backend.to_str())
    reordered = sorted(content["model"]["vocab"], key=lambda token: (token in KNOWN, content["model"]["vocab"][token]))
    content["model"]["vocab"] = places = {token: index for index, token in enumerate(reordered)}
    for token in content["added_tokens"]:
        token["id"] = places[token["content"]]
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [places[token["id"]]]
    backend = type(problem.tokenizer.backend).from_str(json.dumps(content))
    tokenizer = replace(problem.tokenizer, backend=backend, pad_id=places["[PAD]"], unknown_id=places["[UNK]"])
    problem = replace(problem, tokenizer=tokenizer, validation=problem.validation[:2])
    whole = tiny_encoder(pad_token_id=places["[PAD]"])
    pruned = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    new = pruned.tokenizer.backend
    assert new.token_to_id("[PAD]") < places["[PAD]"]
    assert pruned.tokenizer.pad_id == pruned.model.config.pad_token_id == new.token_to_id("[PAD]")
    assert pruned.tokenizer.unknown_id == new.token_to_id("[UNK]")
    assert same_answers(whole, problem, pruned)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_ids_up_to_a_padding_id_from_which_positions_count_stay(kind, tiny_encoder, problem_of, tmp_path):
    problem = problem_of(count=3)
    whole = tiny_encoder(kind, pad_token_id=1)
    problem = replace(problem, tokenizer=replace(problem.tokenizer, pad_id=1))
    pruned = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    assert pruned.tokenizer.pad_id == 1
    assert same_answers(whole, problem, pruned)


def test_long_texts_count_in_full_and_are_truncated_as_before(tiny_encoder, problem_of, tmp_path):
    problem = problem_of(count=3)
    long = " ".join(["the film is great"] * 30) + " director"
    problem = replace(problem, texts=(*problem.texts, long))
    pruned = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(), tmp_path)
    assert pruned.tokenizer.backend.token_to_id("director") is not None
    (encoding,) = pruned.tokenizer.encode([long])
    assert (len(encoding), encoding.truncated) == (64, True)


# on disk


def test_the_new_tokenizer_takes_the_place_of_the_old(tiny_encoder, problem_of, tokenizer_folder, tmp_path):
    import transformers

    old = transformers.BertTokenizerFast.from_pretrained(tokenizer_folder)
    old.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")  # as transformers 4.57 writes it
    problem = problem_of(count=3)
    pruned = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(), tmp_path)
    pruned.tokenizer.overwrite(tmp_path)
    again = Tokenizer.load(tmp_path, 64)
    assert again.backend.to_str() == pruned.tokenizer.backend.to_str()
    assert (again.pad_id, again.unknown_id) == (pruned.tokenizer.pad_id, pruned.tokenizer.unknown_id)
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert plain(problem.texts[0])["input_ids"] == again.encode([problem.texts[0]])[0].ids.tolist()
    assert len(plain) == pruned.tokenizer.backend.get_vocab_size()
    assert plain.added_tokens_decoder == {
        plain.convert_tokens_to_ids(token.content): token for token in old.added_tokens_decoder.values()
    }
    assert not (tmp_path / "vocab.txt").exists()
