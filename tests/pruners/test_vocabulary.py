import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import TASKS
from pydantic import ValidationError

from deploykit.errors import DataError, ModelError
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.finetuning import inputs
from deploykit.pruners import vocabulary
from deploykit.pruners._vocabulary import necessary, reduced
from deploykit.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokens_of(tokenizer, text):
    return tokenizer.backend.encode(text).tokens


def logits_of(model, tokenizer, texts):
    batch = {name: torch.from_numpy(array) for name, array in tokenizer.collate(tokenizer.encode(texts)).items()}
    with torch.inference_mode():
        return model.eval()(**inputs(model, batch)).logits


def same_answers(whole, problem, made):
    texts = list(problem.texts)
    return torch.equal(logits_of(whole, problem.tokenizer, texts), logits_of(made.model, made.tokenizer, texts))


# refusals


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="corpsu"):
        vocabulary.Options(corpsu="a.txt")


def test_a_corpus_that_is_not_there_is_refused(tiny_encoder, problem_of, tmp_path):
    options = vocabulary.Options(corpus=tmp_path / "corpus.txt")
    with pytest.raises(DataError, match=r"there is no file .*corpus\.txt"):
        vocabulary.prune(tiny_encoder(), problem_of(), options, tmp_path)


def test_rows_of_a_corpus_that_cannot_be_read_are_refused(tiny_encoder, problem_of, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    options = vocabulary.Options(corpus=tmp_path / "corpus.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 2: no JSON"):
        vocabulary.prune(tiny_encoder(), problem_of(), options, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tiny_encoder, problem_of, tmp_path):
    few = surgery.with_tokens(tiny_encoder(), range(50))
    with pytest.raises(ModelError, match=r"the tokenizer has 11\d tokens and the model 50: they do not"):
        vocabulary.prune(few, problem_of(), vocabulary.Options(), tmp_path)


def test_a_text_that_would_be_cut_otherwise_is_refused_and_shown(problem_of):
    whole = problem_of().tokenizer.backend
    used = vocabulary.used(whole, ["the film"])
    small = reduced(whole, necessary(whole, used))
    vocabulary.verify(whole, small, ["the film"])
    message = (
        r"^with fewer tokens 'the story' is cut into \['\[CLS\]', 'the', 's', .*, not into \['\[CLS\]', 'the', 'story'"
    )
    with pytest.raises(ModelError, match=message):
        vocabulary.verify(whole, small, ["the film", "the story"])


# what comes of it


@pytest.mark.parametrize("task", TASKS)
def test_texts_of_the_training_split_get_the_same_answers(task, tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(task=task), problem_of(task, 3)
    made = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    for text in problem.texts:
        assert tokens_of(made.tokenizer, text) == tokens_of(problem.tokenizer, text)
    one, other = (
        logits_of(*found, list(problem.texts)) for found in ((whole, problem.tokenizer), (made.model, made.tokenizer))
    )
    assert torch.equal(one, other)
    assert made.layers is None


def test_what_was_saved_is_reported(tiny_encoder, problem_of, tmp_path):
    whole, problem = tiny_encoder(), problem_of(count=3)
    made = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    before, after = problem.tokenizer.backend.get_vocab_size(), made.tokenizer.backend.get_vocab_size()
    assert after < before
    saved = 4 * 32 * (before - after)  # rows of the embedding, 32 columns of 4 bytes
    assert saved == 4 * (checkpoint.parameters(whole) - checkpoint.parameters(made.model))
    same = [
        tokens_of(made.tokenizer, text) == tokens_of(problem.tokenizer, text)
        for text in ("".join(problem.tokenizer.backend.decode(row.encoding.ids)) for row in problem.validation)
    ]
    assert 0 < np.mean(same) < 1
    assert made.facts == {
        "tokens": after,
        "tokens_before": before,
        "bytes_saved": saved,
        "texts": 3,
        "validation_unchanged": pytest.approx(np.mean(same)),
    }
    assert list(made.tokens) == [
        problem.tokenizer.backend.token_to_id(made.tokenizer.backend.id_to_token(token)) for token in range(after)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.txt", "director\nnothing else"),
        ("corpus.jsonl", '{"text": "director", "other": 3}\n{"tags": ["nothing", "else"]}\n'),
        ("corpus.csv", "a,b\ndirector,nothing\nelse,1\n"),
    ],
)
def test_a_corpus_is_read_as_before_too(name, content, tiny_encoder, problem_of, tmp_path):
    (tmp_path / name).write_text(content)
    problem = problem_of(count=3)
    assert not any("director" in text for text in problem.texts)
    cut = []
    for options in ({}, {"corpus": tmp_path / name}):
        made = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(**options), tmp_path)
        cut.append(tokens_of(made.tokenizer, "director")[1:-1])
    assert cut == [["d", "##i", "##r", "##e", "##c", "##t", "##o", "##r"], ["director"]]


def test_unseen_words_are_still_read(tiny_encoder, problem_of, tmp_path):
    made = vocabulary.prune(tiny_encoder(), problem_of(count=3), vocabulary.Options(), tmp_path)
    (encoding,) = made.tokenizer.encode(["unheard of ☃"])
    assert encoding.unknown == 1
    assert len(encoding) > 10
    assert logits_of(made.model, made.tokenizer, ["unheard of ☃"]).isfinite().all()


def test_special_tokens_are_known_by_their_new_numbers(tiny_encoder, problem_of, tmp_path):
    """Where they stand last, all of them move."""
    problem = problem_of(count=3)
    content = json.loads(problem.tokenizer.backend.to_str())
    turned = sorted(content["model"]["vocab"], key=lambda token: (token in KNOWN, content["model"]["vocab"][token]))
    content["model"]["vocab"] = places = {token: index for index, token in enumerate(turned)}
    for token in content["added_tokens"]:
        token["id"] = places[token["content"]]
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [places[token["id"]]]
    backend = type(problem.tokenizer.backend).from_str(json.dumps(content))
    tokenizer = replace(problem.tokenizer, backend=backend, pad_id=places["[PAD]"], unknown_id=places["[UNK]"])
    problem = replace(problem, tokenizer=tokenizer, validation=problem.validation[:2])
    whole = tiny_encoder(pad_token_id=places["[PAD]"])
    made = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    new = made.tokenizer.backend
    assert new.token_to_id("[PAD]") < places["[PAD]"]
    assert made.tokenizer.pad_id == made.model.config.pad_token_id == new.token_to_id("[PAD]")
    assert made.tokenizer.unknown_id == new.token_to_id("[UNK]")
    assert same_answers(whole, problem, made)


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_positions_that_are_counted_from_the_padding_stay(kind, tiny_encoder, problem_of, tmp_path):
    problem = problem_of(count=3)
    whole = tiny_encoder(kind, pad_token_id=1)
    problem = replace(problem, tokenizer=replace(problem.tokenizer, pad_id=1))
    made = vocabulary.prune(whole, problem, vocabulary.Options(), tmp_path)
    assert made.tokenizer.pad_id == 1
    assert same_answers(whole, problem, made)


def test_long_texts_count_whole_and_are_cut_as_before(tiny_encoder, problem_of, tmp_path):
    problem = problem_of(count=3)
    long = " ".join(["the film is great"] * 30) + " director"
    problem = replace(problem, texts=(*problem.texts, long))
    made = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(), tmp_path)
    assert made.tokenizer.backend.token_to_id("director") is not None
    (encoding,) = made.tokenizer.encode([long])
    assert (len(encoding), encoding.truncated) == (64, True)


# on disk


def test_the_new_tokenizer_takes_the_place_of_the_old(tiny_encoder, problem_of, tokenizer_folder, tmp_path):
    import transformers

    old = transformers.BertTokenizerFast.from_pretrained(tokenizer_folder)
    old.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")  # as transformers 4.57 writes it
    problem = problem_of(count=3)
    made = vocabulary.prune(tiny_encoder(), problem, vocabulary.Options(), tmp_path)
    made.tokenizer.replace(tmp_path)
    again = Tokenizer.load(tmp_path, 64)
    assert again.backend.to_str() == made.tokenizer.backend.to_str()
    assert (again.pad_id, again.unknown_id) == (made.tokenizer.pad_id, made.tokenizer.unknown_id)
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert plain(problem.texts[0])["input_ids"] == again.encode([problem.texts[0]])[0].ids.tolist()
    assert len(plain) == made.tokenizer.backend.get_vocab_size()
    assert plain.added_tokens_decoder == {
        plain.convert_tokens_to_ids(token.content): token for token in old.added_tokens_decoder.values()
    }
    assert not (tmp_path / "vocab.txt").exists()
