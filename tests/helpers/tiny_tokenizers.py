"""Small tokenizers of three kinds, trained on a few sentences: WordPiece, byte-level BPE and Unigram."""

import json
from functools import cache

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from deploykit.tokenizer import Tokenizer

CORPUS = [
    "the film was great and i loved it",
    "an awful boring story",
    "anna lives in london",
    "привет мир",
    "我住在北京",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
KINDS = ("wordpiece", "byte-level", "unigram")


def wordpiece():
    backend = Backend(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


def byte_level():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    return backend


def unigram():
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    return backend


@cache
def file_of(kind):
    return {"wordpiece": wordpiece, "byte-level": byte_level, "unigram": unigram}[kind]().to_str()


@cache
def reference(kind):
    return Backend.from_str(file_of(kind))


def loader(folder):
    """Writes the tokenizers; `loader(folder)(kind, max_tokens)` reads one from the files of a model."""
    for kind in KINDS:
        (folder / kind).mkdir()
        (folder / kind / "tokenizer.json").write_text(file_of(kind), encoding="utf-8")
        roles = {"pad_token": "<pad>", "unk_token": "<unk>"}
        (folder / kind / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
    return lambda kind, max_tokens: Tokenizer.load(folder / kind, max_tokens)
