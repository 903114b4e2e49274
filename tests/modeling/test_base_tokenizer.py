"""The tokenizer of a base model is taken over as it is, whatever the version of transformers makes of it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import normalizers, pre_tokenizers, processors

from deploykit.errors import ModelError
from deploykit.modeling import base_model, base_tokenizer

TEXTS = ("The Film is GREAT!", "élan  vital", "a b-c d_e", "anna lives in london", "")
KEYS = {"tokenizer_class", "model_max_length", "padding_side", "model_input_names", "clean_up_tokenization_spaces"}


@pytest.fixture
def base(tmp_path, tiny_model):
    return base_model.resolve(str(tiny_model(tmp_path / "base")))


def edit(base, file="tokenizer_config.json", gone=(), **values):
    content = json.loads((base.folder / file).read_text())
    content = {key: value for key, value in content.items() if key not in gone}
    (base.folder / file).write_text(json.dumps({**content, **values}))


def written(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


def ids(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [backend.encode(text).ids for text in TEXTS]


# refusals


@pytest.mark.parametrize("files", [[], ["special_tokens_map.json"], ["added_tokens.json"]])
def test_a_tokenizer_is_not_invented_where_there_is_none(files, base, tmp_path):
    """transformers 5 makes an empty one instead of refusing."""
    for file in base.folder.glob("tokenizer*.json"):
        file.unlink()
    for file in files:
        (base.folder / file).write_text("{}")
    with pytest.raises(
        ModelError, match=r"has no tokenizer: expected tokenizer\.json, or a vocabulary such as vocab\.txt"
    ):
        base_tokenizer.save(base, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("change", ["next", "cut", "empty"])
def test_a_tokenizer_of_a_newer_format_or_a_damaged_one_is_refused(change, base, tmp_path):
    file = base.folder / "tokenizer.json"
    content = file.read_text()
    changed = {"next": content.replace('"WordPiece"', '"WordPieceNext"'), "cut": content[:500], "empty": ""}[change]
    file.write_text(changed)
    message = (
        r"base has a tokenizer\.json that tokenizers \d\S+ cannot read: .* or install a newer version of tokenizers"
    )
    with pytest.raises(ModelError, match=message) as caught:
        base_tokenizer.save(base, tmp_path / "out")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", "{", r"has a tokenizer_config\.json that is not JSON"),
        ("tokenizer_config.json", "[]", r"has a tokenizer_config\.json that holds no JSON object"),
        ("special_tokens_map.json", "no", r"has a special_tokens_map\.json that is not JSON"),
        (
            "tokenizer_config.json",
            '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}',
            r"needs code of its own \(auto_map in",
        ),
        ("tokenizer_config.json", '{"pad_token": "no such"}', r"has no padding token that is in its tokenizer\.json"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(file, content, message, base, tmp_path):
    config = json.loads((base.folder / "config.json").read_text())
    (base.folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    (base.folder / file).write_text(content)
    with pytest.raises(ModelError, match=message):
        base_tokenizer.save(base, tmp_path / "out")


def test_templates_of_chats_write_no_file_elsewhere(base, tmp_path):
    """Their names are file names: transformers 4.57 writes them where these lead."""
    templates = [{"name": "default", "template": "x"}, {"name": "../../../outside", "template": "x"}]
    before = sorted(tmp_path.rglob("*"))
    edit(base, chat_template=templates)
    base_tokenizer.save(base, tmp_path / "one" / "two" / "out")
    made = [path.name for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()]
    assert made == ["tokenizer.json", "tokenizer_config.json"]
    assert "chat_template" not in written(tmp_path / "one" / "two" / "out")


def test_a_vocabulary_elsewhere_is_not_read(base, tmp_path, tokenizer_folder):
    (tmp_path / "elsewhere.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nsecret\n")
    (base.folder / "tokenizer.json").unlink()
    (base.folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfilm\n")
    edit(base, vocab_file="../elsewhere.txt", tokenizer_file="../elsewhere.json", name_or_path="../elsewhere")
    tokenizer = base_tokenizer.save(base, tmp_path / "out")
    assert tokenizer.backend.token_to_id("film") == 5
    assert tokenizer.backend.token_to_id("secret") is None


# what is taken over


def test_the_bytes_are_the_same_and_the_settings_are_few(base, tmp_path):
    edit(base, extra_special_tokens=["<X>"], chat_template="{{ x }}", processor_class="P", name_or_path="/home/me")
    base_tokenizer.save(base, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base.folder / "tokenizer.json").read_bytes()
    roles = {"unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}
    assert set(written(tmp_path / "out")) == KEYS | roles
    assert written(tmp_path / "out")["pad_token"] == "[PAD]"


ALTERED = {
    "normalizer": lambda backend: setattr(backend, "normalizer", normalizers.NFKC()),
    "splitter": lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
    "template": lambda backend: setattr(
        backend, "post_processor", processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    ),
}


@pytest.mark.parametrize("part", ALTERED)
@pytest.mark.parametrize("named", ["BertTokenizer", "RobertaTokenizer", "TokenizersBackend", "NoSuchTokenizer"])
def test_what_differs_from_the_class_that_is_named_is_kept_by_both(part, named, base, tmp_path):
    """transformers 5 builds normalizer, splitter and template anew from the class."""
    backend = tokenizers.Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    before = ids(base.folder)
    ALTERED[part](backend)
    backend.save(str(base.folder / "tokenizer.json"))
    edit(base, tokenizer_class=named)
    tokenizer = base_tokenizer.save(base, tmp_path / "out")
    shutil.copy(base.folder / "config.json", tmp_path / "out")
    expected = ids(base.folder)
    assert expected != before
    assert [found.ids.tolist() for found in tokenizer.encode(TEXTS)] == expected
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [again(text)["input_ids"] for text in TEXTS] == expected


def test_special_tokens_come_from_wherever_a_model_names_them(base, tmp_path):
    roles = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    expected = {role: written(base.folder)[role] for role in roles}
    edit(base, gone=roles)  # as of bert-base-uncased, whose class knows them
    assert base_tokenizer.save(base, tmp_path / "one").pad_id == 0
    assert {role: written(tmp_path / "one")[role] for role in roles} == expected
    edit(base, gone=("tokenizer_class",))  # and which class it is follows from the type of the model
    assert base_tokenizer.save(base, tmp_path / "two").pad_id == 0
    (base.folder / "tokenizer_config.json").unlink()
    (base.folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[SEP]"}}))
    assert base_tokenizer.save(base, tmp_path / "three").pad_id == 3


def test_a_padding_token_may_be_named_by_the_model_alone(base, tmp_path):
    edit(base, pad_token=None)
    edit(base, "config.json", pad_token_id=4)
    assert base_tokenizer.save(base, tmp_path / "out").pad_id == 4
    assert written(tmp_path / "out")["pad_token"] == "[MASK]"


@pytest.mark.parametrize(("types", "expected"), [(2, [0, 0, 0, 1, 1]), (1, [0] * 5), (0, [0] * 5)])
def test_types_of_tokens_are_only_told_to_a_model_that_tells_them_apart(types, expected, base, tmp_path):
    edit(base, "config.json", type_vocab_size=types)
    tokenizer = base_tokenizer.save(base, tmp_path / "out")
    (encoding,) = tokenizer.encode(["film"], ["film"])
    np.testing.assert_array_equal(encoding.type_ids, expected)
    shutil.copy(base.folder / "config.json", tmp_path / "out")
    plain = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ("token_type_ids" in plain("film")) == (types > 1)


# vocabularies that transformers converts


def test_a_vocabulary_of_words_is_converted(base, tmp_path):
    before = ids(base.folder)
    vocabulary = json.loads((base.folder / "tokenizer.json").read_text())["model"]["vocab"]
    (base.folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    (base.folder / "tokenizer.json").unlink()
    edit(base, extra_special_tokens=["[MASK]"])
    tokenizer = base_tokenizer.save(base, tmp_path / "out")
    assert [found.ids.tolist() for found in tokenizer.encode(TEXTS)] == before
    assert (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.max_tokens) == (0, 1, 64)


SENTENCES = ["the film was great and i loved it", "an awful boring story", "anna lives in london"] * 20
PIECES = {
    "deberta-v2": ("spm.model", ("[PAD]", "[CLS]", "[SEP]", "[UNK]")),
    "camembert": ("sentencepiece.bpe.model", ("<s>", "<pad>", "</s>", "<unk>")),
    "xlm-roberta": ("sentencepiece.bpe.model", ("<s>", "<pad>", "</s>", "<unk>")),
    "albert": ("spiece.model", ("<pad>", "<unk>", "[CLS]", "[SEP]")),
}


def only_pieces(kind, base):
    """Leaves of a tokenizer what Google's library writes; no model of this type on the hub has more."""
    sentencepiece = pytest.importorskip("sentencepiece")
    name, special = PIECES[kind]
    ordinary = {"deberta-v2": special, "albert": special}.get(kind)
    ids_of = (
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": special[0], "bos_piece": special[1]}
        | {"eos_piece": special[2], "unk_piece": special[3]}
        if kind == "deberta-v2"
        else {
            "pad_id": 0,
            "unk_id": 1,
            "bos_id": -1,
            "eos_id": -1,
            "user_defined_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        }
        if ordinary
        else {}
    )
    with (base.folder / name).open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=stream,
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
            **ids_of,
        )
    for file in base.folder.glob("tokenizer*.json"):
        file.unlink()
    edit(base, "config.json", model_type=kind, vocab_size=70)
    return base.folder / name


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the conversion, about pieces of bytes
@pytest.mark.parametrize("kind", PIECES)
def test_a_model_of_sentencepiece_alone_is_converted(kind, base, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(only_pieces(kind, base)))
    tokenizer = base_tokenizer.save(base, tmp_path / "out")
    for text in SENTENCES[:3]:
        (encoding,) = tokenizer.encode([text])
        tokens = [tokenizer.backend.id_to_token(place) for place in encoding.ids]
        assert tokens[1:-1] == pieces.encode(text, out_type=str)
        assert encoding.unknown == 0
        assert tokens[0] in ("[CLS]", "<s>")
        assert tokens[-1] in ("[SEP]", "</s>")
    assert written(tmp_path / "out")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_without_the_library_of_sentencepiece_the_command_that_adds_it_is_named(base, tmp_path):
    (base.folder / "spm.model").write_bytes(b"\n")
    for file in base.folder.glob("tokenizer*.json"):
        file.unlink()
    edit(base, "config.json", model_type="deberta-v2")
    program = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from pathlib import Path\nfrom deploykit.modeling import base_model, base_tokenizer\n"
        "base_tokenizer.save(base_model.resolve(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(base.folder), str(tmp_path / "out")], capture_output=True, text=True
    )
    message = "has its tokenizer as a SentencePiece model only (spm.model), and reading it needs packages that"
    assert (
        f"deploykit.errors.ModelError: {base.name} {message} are not installed: pip install sentencepiece protobuf"
        in found.stderr
    )


def test_a_damaged_model_of_sentencepiece_is_refused(base, tmp_path):
    pytest.importorskip("sentencepiece")
    only_pieces("deberta-v2", base).write_bytes(b"\nno pieces")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, and its spm\.model cannot be read as a Sentence"):
        base_tokenizer.save(base, tmp_path / "out")
