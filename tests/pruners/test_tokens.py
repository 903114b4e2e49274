"""Small tokenizers of each algorithm, trained on two corpora and reduced to one of them."""

import json
from dataclasses import dataclass

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deploykit.errors import ModelError
from deploykit.pruners._vocabulary.tokens import reduced_tokenizer, required_token_ids

WORDS = ("wonderful", "story", "stories", "storytelling", "told", "teller", "untold", "wonder", "wondering", "full")
ELSEWHERE = ("quantum", "mechanics", "mechanical", "quarks", "quartz", "quarters", "equations", "equals", "measures")
CORPUS = [f"the {a} {b} was  {c}!" for a in WORDS for b in WORDS[:4] for c in WORDS[2:6]]
OTHERS = [f"{a} {b}, {c} in 1926?" for a in ELSEWHERE for b in ELSEWHERE[:4] for c in ELSEWHERE[3:7]]
STRANGE = ["naïve ☃ story", "ßtories\tand\nlines", "  ", "", "日本 wonder", "<extra> told </s>"]


def wordpiece(texts):
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def byte_level(texts):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<s>", "</s>"])  # after the others, so that their ids change
    ends = [(token, backend.token_to_id(token)) for token in ("</s>", "<s>")]
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.RobertaProcessing(*ends)]
    )
    return backend


def with_byte_tokens(texts):
    """BPE over characters without pre-tokenization, where unknown characters become byte tokens, as in LLaMA."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, special_tokens=pieces))
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are ordinary tokens
    backend = Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens(["<end>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 1), ("<end>", backend.token_to_id("<end>"))]
    )
    return backend


def unigram(texts):
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


BUILDERS = {
    **{"WordPiece": wordpiece, "Unigram": unigram},
    **{"byte-level BPE": byte_level, "BPE with bytes": with_byte_tokens},
}


@dataclass(frozen=True)
class Pair:
    kind: str
    whole: Tokenizer
    small: Tokenizer
    ids: list


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request):
    """A tokenizer trained on both corpora, and the same reduced to the first corpus."""
    whole = BUILDERS[request.param]([*CORPUS, *OTHERS])
    whole.add_tokens([AddedToken("<extra>", normalized=False)])
    used = {token for encoding in whole.encode_batch(CORPUS) for token in encoding.ids}
    ids = required_token_ids(whole, used)
    return Pair(request.param, whole, reduced_tokenizer(whole, ids), ids)


# refusals


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.WordLevel({"a": 0}, unk_token="a"), "WordLevel tokenizer"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), "BPE tokenizer with affixes"),
        (models.BPE({"a": 0}, [], continuing_subword_prefix="##"), "BPE tokenizer with affixes"),
    ],
)
def test_other_kinds_of_tokenizers_are_refused(model, kind):
    message = (
        f"^the vocabulary of a {kind} cannot be pruned, only those of WordPiece, BPE, Unigram\\."
        " Leave out the vocabulary step\\.$"
    )
    with pytest.raises(ModelError, match=message):
        required_token_ids(Tokenizer(model), {0})


def test_added_tokens_that_would_get_other_numbers_are_refused():
    """The library numbers added tokens after all others, so they cannot be in another order."""
    whole = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    whole.add_special_tokens(["[X]", "[Y]"])
    with pytest.raises(ModelError, match=r"^the added tokens of this tokenizer cannot be renumbered\."):
        reduced_tokenizer(whole, [0, 1, 4, 3])


# kept tokens


def test_texts_of_the_corpus_are_tokenized_as_before(pair):
    assert len(pair.ids) < 0.9 * pair.whole.get_vocab_size()
    for before, after in zip(pair.whole.encode_batch(CORPUS), pair.small.encode_batch(CORPUS), strict=True):
        assert before.tokens == after.tokens
        assert before.offsets == after.offsets
        assert before.ids == [pair.ids[token] for token in after.ids]
        assert before.type_ids == after.type_ids


def test_pairs_of_texts_get_their_special_tokens(pair):
    for texts in ((CORPUS[0], CORPUS[1]), (CORPUS[2],))[pair.kind == "BPE with bytes" :]:
        before, after = (backend.encode(*texts) for backend in (pair.whole, pair.small))
        assert before.tokens == after.tokens
        assert before.special_tokens_mask == after.special_tokens_mask
        assert before.ids == [pair.ids[token] for token in after.ids]


@pytest.mark.parametrize("text", [*OTHERS[:5], *STRANGE])
def test_other_texts_become_at_least_as_many_tokens_and_decode_as_before(pair, text):
    before, after = (backend.encode(text) for backend in (pair.whole, pair.small))
    assert len(after.tokens) >= len(before.tokens)
    unknown = [encoding.tokens.count(token) for encoding in (before, after) for token in ("[UNK]", "<unk>")]
    assert unknown[:2] == unknown[2:]
    assert pair.small.decode(after.ids) == pair.whole.decode(before.ids)


def test_special_added_single_and_byte_tokens_stay(pair):
    kept = pair.small.get_vocab(with_added_tokens=True)
    added = {token.content for token in pair.whole.get_added_tokens_decoder().values()}
    single = {token for token in pair.whole.get_vocab() if len(token.removeprefix("##")) == 1}
    assert "<extra>" in added <= set(kept)
    assert len(single) > 25
    assert single <= set(kept)
    assert {token for token in pair.whole.get_vocab() if token.startswith("<0x")} <= set(kept)


def test_tokens_keep_their_order_and_leave_no_gap(pair):
    kept = sorted(pair.small.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    assert [number for _, number in kept] == list(range(len(pair.ids)))
    assert [pair.whole.token_to_id(token) for token, _ in kept] == pair.ids


def test_a_reduced_tokenizer_can_be_reduced_again(pair):
    used = {token for encoding in pair.small.encode_batch(CORPUS[:3]) for token in encoding.ids}
    few = required_token_ids(pair.small, used)
    again = reduced_tokenizer(pair.small, few)
    assert len(few) <= len(pair.ids)
    assert [encoding.tokens for encoding in again.encode_batch(CORPUS[:3])] == [
        encoding.tokens for encoding in pair.whole.encode_batch(CORPUS[:3])
    ]


def test_keeping_everything_gives_the_same_tokenizer(pair):
    same = reduced_tokenizer(pair.whole, range(pair.whole.get_vocab_size()))
    contents = [
        json.loads(backend.to_str(), parse_float=lambda digits: round(float(digits), 9))
        for backend in (pair.whole, same)
    ]
    assert contents[0] == contents[1]


# tokens that each algorithm needs


def test_bpe_keeps_intermediate_tokens():
    """`told` is merged from `to` and `ld`, so they stay although no text of the corpus contains them as tokens."""
    whole = byte_level(CORPUS)
    small = reduced_tokenizer(whole, required_token_ids(whole, {whole.token_to_id("told")}))
    assert json.loads(small.to_str())["model"]["merges"] == [["t", "o"], ["l", "d"], ["to", "ld"]]
    assert len(json.loads(whole.to_str())["model"]["merges"]) > 30
    assert small.encode("told", add_special_tokens=False).tokens == ["told"]


def test_the_score_of_the_unknown_token_stays():
    """Unigram derives it from the lowest score, so the token with that score stays although no text uses it."""
    pieces = [("cc", -4.0), ("▁", -1.0), ("a", -2.0), ("▁a", -3.5), ("bb", -9.0), ("<unk>", 0.0)]
    whole = Tokenizer(models.Unigram(pieces, unk_id=5))
    assert required_token_ids(whole, {2}) == [1, 2, 4, 5]
    small = reduced_tokenizer(whole, required_token_ids(whole, {2}))
    assert json.loads(small.to_str())["model"]["unk_id"] == 3
    for text in ("a", "▁aé▁a", "éa", "a☃☃a"):  # with the same score, the unknown token is chosen as before
        assert small.encode(text).tokens == whole.encode(text).tokens
