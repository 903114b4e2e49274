"""The documents, word for word: recipes are parsed, commands and Python run, names and links exist.

README.md describes the one run from end to end: a model of two layers, a few hundred real texts, a real service.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from real_texts import tickets

from deploykit import Predictor, cli, recipe
from deploykit.artifact import Artifact, load_predictions
from deploykit.recipe import Recipe
from deploykit.serving import launch
from deploykit.serving.access import keys as store
from deploykit.serving.settings import VARIABLE_FIELDS

ROOT = Path(__file__).parent.parent
GENERATED = "<!-- Made by"  # how pages begin that `make docs` writes from the code
WRITTEN = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.read_text().startswith(GENERATED)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *WRITTEN]
NOT_RUN = "# needs: "  # how a shell block begins whose commands must exist, and which no test can run
METHOD = "# deploykit/"  # how a Python block begins that is a file of the package
QUICKER = {"--minutes 2": "--minutes 0.1", "curl -s ": "curl -s --fail "}
URL = "http://127.0.0.1:3000"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    name: str
    language: str
    text: str

    @property
    def commands(self):
        """The commands of a shell block, comments left out."""
        lines = self.text.replace("\\\n", " ").replace(" && ", "\n").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def per_block(language, wanted=lambda block: True):
    chosen = [block for block in BLOCKS if block.language == language and wanted(block)]
    return pytest.mark.parametrize("block", chosen, ids=lambda block: block.name)


WHOLE = next(yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml")


def test_the_blocks_are_found():
    assert len(PAGES) > 14
    assert {"sh", "yaml", "python", "text", "json"} == {block.language for block in BLOCKS}
    assert len(BLOCKS) > 60


# without running anything


@per_block("yaml", lambda block: not block.text.startswith("# not a recipe"))
def test_a_recipe_is_valid(block):
    content = yaml.safe_load(block.text)
    train = {} if content.get("task") is None else {"train": {"method": "full"}}  # options that fit every task
    recipe.parse({**WHOLE, **train, **content})


@per_block("yaml", lambda block: block.text.startswith("# not a recipe"))
def test_other_yaml_is_yaml(block):
    assert isinstance(yaml.safe_load(block.text), dict)


@per_block("json")
def test_json_is_json(block):
    json.loads(block.text)


@per_block("sh")
def test_commands_and_their_options_exist(block):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in block.commands:
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert words[1] in targets
        if words[0] != "deploykit":
            continue
        command, names = typer.main.get_command(cli.app), words[1:]
        while isinstance(command, typer.core.TyperGroup):
            command, names = command.commands[names[0]], names[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {name for name in names if name.startswith("--")} <= options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_exist(page):
    text = page.read_text(encoding="utf-8")
    known = re.findall(r"`(\w+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8"))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdeploykit_\w+", text)} <= {
        *known,
        "deploykit_limits",
    }  # a claim of tokens
    others = {"DEPLOYKIT_CACHE", "DEPLOYKIT_KEY_PASSWORD"}
    assert set(re.findall(r"DEPLOYKIT_[A-Z_]+", text)) <= {*VARIABLE_FIELDS, *others}
    for section, key in re.findall(r"`(data|export|gates|package|serve)\.(\w+)", text):
        model = Recipe.model_fields[section].annotation
        fields = next(part for part in (model, *getattr(model, "__args__", ())) if hasattr(part, "model_fields"))
        assert key in fields.model_fields, f"{section}.{key}"


def test_the_examples_of_methods_keep_the_contracts_of_their_kinds(tmp_path):
    shutil.copytree(ROOT / "deploykit", tmp_path / "deploykit", ignore=shutil.ignore_patterns("__pycache__"))
    names = []
    for block in [block for block in BLOCKS if block.text.startswith(METHOD)]:
        file = tmp_path / block.text.partition("\n")[0].removeprefix("# ")
        assert not file.exists()
        file.write_text(block.text)
        names.append(file.stem.replace("_", "-"))
    assert len(names) == 5
    chosen = " or ".join(names)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, "tests/test_contracts.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 25


# the run from end to end


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT of two layers with a vocabulary made from the texts."""
    import torch
    import transformers
    from tokenizers import BertWordPieceTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([row["body"] for row in tickets()], vocab_size=600, show_progress=False)
    tokenizer.save_model(str(folder))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    config = transformers.BertConfig(**sizes, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder):
    """A folder in which the README's recipe was run, and what that printed."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(encoder, folder / WHOLE["model"])
    # What differs from the README: how much faster one so small can become, how long it trains and searches, and gates
    # that thirty rows can pass. Records are kept so that the page about feedback can be run.
    content = {**WHOLE, "gates": {"max_drop": 0.2, "inconclusive": "accept"}}
    content["train"] |= {"epochs": 20, "learning_rate": 1e-3}
    content["quantize"]["minutes"] = 0.2
    content["prune"]["speedup"] = 1.1
    content["prune"]["distill"] |= {"epochs": 4, "learning_rate": 1e-3}
    content["serve"]["records"] = {"share": 1.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    with (folder / content["data"]["train"]).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["body", "queue"])
        writer.writeheader()
        writer.writerows(tickets())
    (folder / "printed.txt").write_text(run("deploykit run recipe.yaml", folder))
    for name in ("report.html", "report.md"):  # commands that run a part of it report on that instead
        shutil.copy(folder / "runs/support-tickets" / name, folder / f"whole-{name}")
    shutil.copytree(folder / "runs/support-tickets/package", folder / "demo/runs/movie-reviews/package")
    return folder


@pytest.fixture(scope="module")
def service(folder):
    """A running service that keeps records: its address, and a key that opens everything."""
    package, keys = folder / "demo/runs/movie-reviews/package", folder / "all-scopes.json"
    key = store.add(keys, "tester", store.SCOPES)
    environ = {**os.environ, "DEPLOYKIT_RECORDS": str(folder / "records"), "PYTHONDONTWRITEBYTECODE": "1"}
    with launch.running_service(package, keys, environ=environ) as url:
        yield url, key


@pytest.fixture(scope="module")
def ran():
    """Commands that were run; some stand on several pages."""
    return set()


def run(line, folder, **environ):
    """Runs one command as a shell would, with this Python's `deploykit`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "COLUMNS": "160", "XDG_CONFIG_HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["sh", "-ec", line], cwd=folder, capture_output=True, text=True, env={**os.environ, **own, **environ}
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def adapted(text, url):
    for long, short in {**QUICKER, URL: url}.items():
        text = text.replace(long, short)
    return text


@per_block("sh", lambda block: not block.text.startswith(NOT_RUN))
def test_shell_runs(block, folder, service, ran):
    url, key = service
    for line in block.commands:
        served = re.match(r"([A-Z_]+=\S+ )*deploykit serve ", line)  # the service above answers in its place
        if not served and not line.startswith("make ") and line.partition(" #")[0].strip() not in ran:
            run(adapted(line, url), folder, KEY=key)
            ran.add(line.partition(" #")[0].strip())


@per_block("python", lambda block: not block.text.startswith(METHOD))
def test_python_runs(block, folder, service, monkeypatch, capsys):
    from deploykit.quantizers import dynamic

    if "optimum" in block.text and not dynamic.HAS_OPTIMUM:
        pytest.skip("the extra `optimum` is not installed")
    url, key = service
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KEY", key)
    exec(compile(adapted(block.text, url), block.name, "exec"), {"__name__": "__main__"})  # noqa: S102
    assert "import deploykit" in block.text or "optimum" in block.text or capsys.readouterr().out


def test_every_route_that_is_documented_exists(service):
    url, key = service
    request = urllib.request.Request(f"{url}/docs.json", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        paths = json.load(response)["paths"]
    routes = {route for page in PAGES for route in re.findall(r"`(?:GET |POST )?(/[\w./]*)`", page.read_text())}
    routes = {route.replace("NAME", WHOLE["name"]) for route in routes if not route.startswith("/var/")}
    assert len(routes) > 12
    others = {"/", "/healthz", "/versions/VERSION", "/v1/rank"}  # a page, an alias, a part of a path, of pairs only
    assert routes <= {*paths, *others}


def test_the_stages_are_told(folder):
    printed = (folder / "printed.txt").read_text()
    for stage in ("train (full)", "prune (width)", "export", "quantize (auto)", "package"):
        assert stage in printed


def test_it_learned_what_the_texts_are_about(folder):
    steps = Artifact.load(folder / "demo/runs/movie-reviews/package").manifest.history
    assert steps[0].metrics["test"]["accuracy"].value > 0.7
    assert steps[1].parameters < steps[0].parameters


def test_the_report_tells_the_run(folder):
    page, text = ((folder / f"whole-{name}").read_text() for name in ("report.html", "report.md"))
    package = Artifact.load(folder / "demo/runs/movie-reviews/package")
    value = f"{package.manifest.step.metrics['test']['accuracy'].value:.4f}"
    assert value in page
    assert value in text
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=[\"']?(http|//)", page)


def test_optimum_gives_the_same_logits(folder):
    """What the service computes is what Optimum's own class computes from the same folder."""
    from deploykit.quantizers import dynamic

    if not dynamic.HAS_OPTIMUM:
        pytest.skip("the extra `optimum` is not installed: it needs transformers 4.57")
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    package = Artifact.load(folder / "demo/runs/movie-reviews/package")
    model = ORTModelForSequenceClassification.from_pretrained(package.path)
    tokenizer = AutoTokenizer.from_pretrained(package.path)
    texts = [row["body"] for row in tickets()[:8]]
    ours = np.concatenate(Predictor.load(package, 1).predict(texts, batch_tokens=1))
    with torch.inference_mode():
        theirs = np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_service_answers_with_the_labels_of_the_data(service):
    url, key = service
    body = json.dumps({"texts": ["The invoice is wrong."]}).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/predict", body, headers)) as response:
        (answer,) = json.load(response)["predictions"]
    assert answer["label"] in ("numbers", "networks")
    assert answer["truncated"] is False


def test_predictions_of_the_package_are_those_of_the_quantized_graph(folder):
    runs = folder / "runs/support-tickets"
    before, after = (load_predictions(Artifact.load(runs / name)) for name in ("quantize", "package"))
    assert set(before["test"]) == set(after["test"])
    assert all(np.array_equal(array, after["test"][name]) for name, array in before["test"].items())
