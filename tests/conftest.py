"""Everything small that tests share: sentences, a tokenizer, models of two layers, graphs known in closed form.

All of it is made in code from seeds. What needs torch imports it inside the fixture, so that the tests of
the folders that need only numpy stay quick.
"""

import json
import os
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from deploykit import artifact
from deploykit.artifact.execution import Execution

# the same cases on every machine, however busy it is
settings.register_profile("steady", deadline=None, derandomize=True, database=None)
settings.load_profile("steady")
pytest_plugins = ("models", "graph_models", "pages")  # fixtures that need torch or a browser

# Before anything imports BentoML or a hub client: no network, and nothing of the user is read or written. Importing
# deploykit has switched telemetry off.
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="deploykit-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
for variable in [name for name in os.environ if name.startswith("DEPLOYKIT_")]:
    del os.environ[variable]
# Threads of OpenMP that wait for each other spin, and so keep the core that another worker of the tests needs: beside
# another process a training of a few seconds took a minute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["DEPLOYKIT_CACHE"] = tempfile.mkdtemp(prefix="deploykit-measured-")

TIERS = {  # marks of whole folders and files; what has none is quick, and `make check` runs it
    "browser": ("serving/api/test_browser.py",),
    "process": (
        *("cli/test_cli.py", "test_no_telemetry.py", "test_readme.py"),
        *(f"serving/test_{name}.py" for name in ("build", "launch", "old_packages", "serve_from_python", "signed")),
        "serving/test_image_clients.py",
        *(f"serving/test_{name}.py" for name in ("task_clients", "trouble", "with_client")),
        *("serving/access/test_rotation.py", "serving/access/test_mounted_files.py", "serving/api/test_openapi.py"),
        *("serving/api/test_protocols.py", "serving/http/test_connections.py", "serving/http/test_hostile.py"),
        *("serving/telemetry/test_metrics_table.py", "serving/telemetry/test_traces.py"),
    ),
    "training": (
        *("engines", "graphs", "modeling", "pruners", "quantizers", "selection", "stages", "trainers"),
        *("test_contracts.py", "test_faults.py", "test_pipeline.py", "test_process_state.py"),
    ),
}
# Files that take longest come first, so that no worker is left alone with one of them at the end.
LONGEST = (
    *("test_readme.py", "test_pipeline.py", "stages/test_pruning.py", "serving/test_trouble.py", "cli/test_cli.py"),
    *("test_no_telemetry.py", "test_process_state.py", "serving/api/test_browser.py", "serving/test_task_clients.py"),
    "serving/test_launch.py",
)
TESTS = Path(__file__).parent
TIER_OF = {TESTS / name: tier for tier, names in TIERS.items() for name in names}
PLACE_OF = {TESTS / name: place for place, name in enumerate(LONGEST)}
assert all(path.exists() for path in (*TIER_OF, *PLACE_OF))


def pytest_ignore_collect(collection_path, config):
    """Saves the imports of a tier that is left out by `-m "not ..."`."""
    tier = TIER_OF.get(collection_path)
    return True if tier and f"not {tier}" in config.option.markexpr else None


def pytest_collection_modifyitems(items):
    for item in items:
        for path in (item.path, *item.path.parents):
            if tier := TIER_OF.get(path):
                item.add_marker(tier)
    items.sort(key=lambda item: PLACE_OF.get(item.path, len(PLACE_OF)))


NOUNS = ("film", "story", "plot", "cast", "script", "music", "ending", "director")
GOOD = ("great", "lovely", "funny", "brilliant", "warm", "clever", "moving", "fine")
BAD = ("awful", "boring", "weak", "clumsy", "cold", "stupid", "tired", "poor")
TEMPLATES = (
    "the {noun} is {word}",
    "a {word} {noun} and i was there until the end",
    "this {noun} was so {word} that we told all of our friends about it",
    "{word} {noun} !",
    "i saw it with my friends , and the {noun} was really {word} .",
)
NAMES = ("anna", "maria", "peter", "london", "lisbon", "paris")
TAGGED = (
    ("{one} lives in {two}", "B-NAME O O B-NAME"),
    ("we saw {one} {two} there .", "O O B-NAME I-NAME O O"),
    ("the friends of {one} told me about it", "O O O B-NAME O O O O"),
    ("this is the end of the story .", "O O O O O O O O"),
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_TOKENS = 64


def shuffled(rows):
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]


@pytest.fixture(scope="session")
def sentences():
    """400 short English sentences with their labels, half `positive`, half `negative`, all different."""
    found = []
    for label, words in (("positive", GOOD), ("negative", BAD)):
        texts = [form.format(noun=noun, word=word) for form, noun, word in product(TEMPLATES, NOUNS, words)]
        found += [(text, label) for text in shuffled(texts)[:200]]
    return shuffled(found)


@pytest.fixture(scope="session")
def tagged_sentences():
    """Different sentences as (tokens, tags), with names in BIO."""
    found = {}
    for (form, tags), one, two in product(TAGGED, NAMES, NAMES):
        found[form.format(one=one, two=two)] = tags.split()
    return shuffled([(text.split(), tags) for text, tags in found.items()])


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def review_files(tmp_path_factory, sentences):
    """A folder with train.jsonl (280 rows), validation.jsonl (60) and test.jsonl (60): text, label."""
    folder = tmp_path_factory.mktemp("reviews")
    rows = [{"text": text, "label": label} for text, label in sentences]
    for name, part in (("train", rows[:280]), ("validation", rows[280:340]), ("test", rows[340:])):
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


@pytest.fixture(scope="session")
def tagged_files(tmp_path_factory, tagged_sentences):
    """A folder with train.jsonl, validation.jsonl (15 rows) and test.jsonl (15): tokens, tags."""
    folder = tmp_path_factory.mktemp("names")
    rows = [{"tokens": tokens, "tags": tags} for tokens, tags in tagged_sentences]
    for name, part in (("train", rows[30:]), ("validation", rows[:15]), ("test", rows[15:30])):
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


def vocabulary():
    words = " ".join([*TEMPLATES, *(form for form, _ in TAGGED)]).format(noun="", word="", one="", two="").split()
    pieces = [*SPECIAL, *".,!?'-", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    known = [*pieces, *sorted(set(words)), *NOUNS, *GOOD, *BAD, "anna", "london", "##s"]
    return {piece: index for index, piece in enumerate(dict.fromkeys(known))}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """tokenizer.json and tokenizer_config.json of an uncased WordPiece of about 110 tokens, as BERT has it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    known = vocabulary()
    backend = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])],
    )
    backend.add_special_tokens(list(SPECIAL))
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": MAX_TOKENS,
        "padding_side": "right",
        "do_lower_case": True,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def copy_tokenizer(source, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())


@pytest.fixture(scope="session")
def tiny_model(tokenizer_folder):
    """`tiny_model(folder, task=..., labels=..., seed=0) -> folder`: a BERT of two layers in Hugging Face's layout.

    Hidden size 32, 4 heads, feed-forward 128, 64 positions, random weights.
    """

    def build(folder, task="text-classification", labels=("negative", "positive"), seed=0, **config):
        import torch
        import transformers

        class_name = {"text-classification": "Sequence", "token-classification": "Token"}[task]
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        settings = transformers.BertConfig(
            **{**sizes, **config},
            vocab_size=len(vocabulary()),
            max_position_embeddings=MAX_TOKENS,
            pad_token_id=0,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        model = getattr(transformers, f"BertFor{class_name}Classification")(settings)
        copy_tokenizer(tokenizer_folder, folder)
        model.save_pretrained(folder, safe_serialization=True)
        return folder

    return build


@pytest.fixture(scope="session")
def tiny_graph():
    """`tiny_graph(file, task, labels=2, seed=0) -> weights`: an ONNX file whose logits are known in closed form.

    Token classification: the row `weights[id]` of each token; text classification: the sum of those rows
    over the tokens that the mask keeps.
    """

    def build(file, task="text-classification", labels=2, seed=0):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        weights = np.random.default_rng(seed).normal(size=(len(vocabulary()), labels)).astype(np.float32)
        whole = task == "text-classification"
        nodes = [helper.make_node("Gather", ["weights", "input_ids"], ["rows" if whole else "logits"])]
        if whole:
            nodes += [
                helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
                helper.make_node("Mul", ["rows", "column"], ["kept"]),
                helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
            ]
        names = ("input_ids", "attention_mask") if whole else ("input_ids",)
        shape = ["batch", labels] if whole else ["batch", "tokens", labels]
        constants = [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            constants if whole else constants[:1],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
        return weights

    return build


@pytest.fixture(scope="session")
def manifest_facts():
    """`manifest_facts(**changes) -> dict`: what `artifact.seal` takes besides the two directories."""

    def build(**changes):
        metric = artifact.Metric(value=0.9, low=0.85, high=0.95)
        step = artifact.Step(
            stage="export",
            method="export",
            key="k" * 64,
            seconds=1.5,
            parameters=1000,
            bytes=4000,
            p50_ms=1.0,
            metrics={"validation": {"accuracy": metric}},
        )
        facts = {
            "kind": "onnx",
            "name": "tiny",
            "task": "text-classification",
            "task_options": {},
            "labels": ("negative", "positive"),
            "pair": False,
            "max_tokens": MAX_TOKENS,
            "base_model": "tiny-bert",
            "base_revision": "",
            "stage": "export",
            "method": "export",
            "options": {"opset": 18},
            "key": "k" * 64,
            "parent_key": "p" * 64,
            "parent_digest": "d" * 64,
            "seed": 0,
            "history": (step,),
            "execution": Execution(),
            "weights_precision": "float32",
            "cost": None,
            "serve": artifact.ServeOptions(),
            "details": {},
            "hardware": {},
            "versions": {},
            "created": "2025-01-01T00:00:00+00:00",
        }
        return {**facts, **changes}

    return build


@pytest.fixture(scope="session")
def tiny_artifact(tokenizer_folder, tiny_graph, manifest_facts):
    """`tiny_artifact(target, fill=None, **changes) -> Artifact`: sealed, with the tokenizer and `tiny_graph`.

    `changes` go into the manifest; `fill(draft)` may add files before it is sealed.
    """

    def build(target, fill=None, **changes):
        facts = manifest_facts(**changes)
        with artifact.draft(target) as folder:
            copy_tokenizer(tokenizer_folder, folder)
            tiny_graph(folder / artifact.GRAPH, facts["task"], len(facts["labels"]))
            if fill:
                fill(folder)
            return artifact.seal(folder, target, **facts)

    return build


@pytest.fixture(scope="session")
def tiny_recipe(tiny_model, tmp_path_factory, review_files, tagged_files):
    """`tiny_recipe(folder, task=..., **sections) -> path of a recipe` that runs in seconds on a tiny model."""
    models = tmp_path_factory.mktemp("models")
    labels = {"text-classification": ("negative", "positive"), "token-classification": ("O", "B-NAME", "I-NAME")}
    bases = {
        task: tiny_model(models / task, task=task, labels=names, intermediate_size=256, hidden_size=64)
        for task, names in labels.items()
    }

    def build(folder, task="text-classification", **sections):
        files = review_files if task == "text-classification" else tagged_files
        content = {
            "name": "tiny",
            "task": task,
            "model": str(bases[task if task == "token-classification" else "text-classification"]),
            "data": {name: str(files / f"{name}.jsonl") for name in ("train", "validation", "test")},
            "train": {"method": "full", "epochs": 6, "learning_rate": 1e-3},
            "prune": {"method": "width", "keep": 0.75, "distill": {"epochs": 2, "learning_rate": 1e-3}},
            "gates": {"max_drop": 0.1, "inconclusive": "accept"},
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.yaml"
        path.write_text(json.dumps({**content, **sections}), encoding="utf-8")  # JSON is YAML
        return path

    return build
