"""The README, word for word: its recipe runs, its commands run, its Python runs, and what it serves answers.

This is also the one run from end to end: a model of two layers, a few hundred real texts, a real service.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from real_texts import tickets

from deploykit.artifact import Artifact, load_predictions
from deploykit.serving import launch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def blocks(language, containing=""):
    return [text for name, text in BLOCKS if name == language and containing in text]


def lines(text):
    """Returns the commands of a block, comments left out."""
    joined = text.replace("\\\n", " ")
    return [command for line in joined.splitlines() if (command := shlex.split(line, comments=True))]


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
def finished(tmp_path_factory, encoder):
    """A folder in which the README's recipe was run by the README's commands; and what they printed."""
    folder = tmp_path_factory.mktemp("readme")
    (text,) = blocks("yaml")
    content = yaml.safe_load(text)
    # Five things differ from the README: the model, how much faster one so small can become, how long it trains and
    # searches, and gates that thirty rows hold.
    content |= {"model": str(encoder), "gates": {"max_drop": 0.2, "cannot_tell": "accept"}}
    content["train"] |= {"epochs": 20, "learning_rate": 1e-3}
    content["quantize"]["minutes"] = 0.3
    content["prune"]["speedup"] = 1.1
    content["prune"]["distill"] |= {"epochs": 4, "learning_rate": 1e-3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    with (folder / content["data"]["train"]).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["body", "queue"])
        writer.writeheader()
        writer.writerows(tickets())
    (commands,) = blocks("sh", "--dry-run")
    return folder, {shlex.join(command): run(command, folder) for command in lines(commands)}


def test_what_was_chosen_can_be_explained_and_chosen_again(finished):
    folder, _ = finished
    (commands,) = blocks("sh", "retune")
    explain, retune = lines(commands)
    assert "signal to noise" in run(explain, folder)
    assert retune[:2] == ["deploykit", "retune"]
    assert "package: runs/support-tickets/package-" in run([*retune, "--minutes", "0.3"], folder)


def run(command, folder):
    assert command[0] == "deploykit"
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


def test_the_blocks_are_found():
    assert {"sh", "yaml", "python", "text"} == {name for name, _ in BLOCKS}
    assert len(blocks("python")) == 3


def test_the_two_commands_are_in_the_makefile():
    (text,) = blocks("sh", "make demo")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [command[1] for command in lines(text)] == ["demo", "test"]
    assert {"demo", "test"} <= set(targets)


def test_the_commands_run(finished):
    _, printed = finished
    assert len(printed) == 6
    dry, whole = list(printed.values())[:2]
    assert re.search(r"^package +package +run ", dry, re.MULTILINE)
    for stage in ("train (full)", "prune (width)", "export", "quantize (auto)", "package"):
        assert stage in whole
    assert "package/" not in dry
    verified = " ".join(list(printed.values())[-1].split())
    assert re.search(r"is as it was made: \d+ files checked, and its golden answers hold\.", verified)


def test_it_learned_what_the_texts_are_about(finished):
    steps = Artifact.load(finished[0] / "runs/support-tickets/package").manifest.history
    assert steps[0].metrics["test"]["accuracy"].value > 0.7
    assert steps[1].parameters < steps[0].parameters


def test_the_report_tells_the_run(finished):
    page = (finished[0] / "runs/support-tickets/report.html").read_text()
    text = (finished[0] / "runs/support-tickets/report.md").read_text()
    package = Artifact.load(finished[0] / "runs/support-tickets/package")
    value = f"{package.manifest.step.metrics['test']['accuracy'].value:.4f}"
    assert value in page
    assert value in text
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=[\"']?(http|//)", page)


def test_python_blocks_run(finished, monkeypatch, capsys):
    folder = finished[0]
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "runs/support-tickets/package", folder / "demo/runs/movie-reviews/package")
    from deploykit.quantizers import dynamic

    for block in blocks("python"):
        if "optimum" in block and not dynamic.OPTIMUM:
            continue
        exec(compile(block.replace("train.epochs=2", "train.epochs=20"), "README.md", "exec"), {})  # noqa: S102
    out = capsys.readouterr().out
    assert "text-classification" in out
    assert "package-" in out


def test_optimum_gives_the_same_logits(finished):
    """What the service computes is what Optimum's own class computes from the same folder."""
    from deploykit.quantizers import dynamic

    if not dynamic.OPTIMUM:
        pytest.skip("the extra `optimum` is not installed: it needs transformers 4.57")
    import torch
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    package = Artifact.load(finished[0] / "runs/support-tickets/package")
    model = ORTModelForSequenceClassification.from_pretrained(package.path)
    tokenizer = AutoTokenizer.from_pretrained(package.path)
    texts = [row["body"] for row in tickets()[:8]]
    from deploykit import Predictor

    ours = np.concatenate(Predictor.load(package, 1).predict(texts, batch_tokens=1))
    with torch.inference_mode():
        theirs = np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_package_is_signed_by_the_commands(finished):
    folder = finished[0]
    *keys, sign, verify, serve = lines(*blocks("sh", "deploykit sign"))
    for command in keys:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert "is signed" in run(sign, folder)
    assert "signed by the owner of public.pem" in run(verify, folder)
    assert serve[:3] == ["DEPLOYKIT_SIGNED_BY=public.pem", "deploykit", "serve"]


def test_it_serves_and_the_curl_command_is_answered(finished, monkeypatch):
    folder = finished[0]
    serving, curl = (lines(text) for text in (blocks("sh", "deploykit serve")[0], blocks("sh", "curl")[0]))
    keys = ["--keys", str(folder / "keys.json")]
    key = run([*serving[0], *keys], folder).strip()
    assert serving[1][:2] == ["deploykit", "serve"]
    with launch.running(folder / serving[1][2], folder / "keys.json") as url:
        command = " ".join(shlex.quote(part) for part in curl[0])
        command = command.replace("http://127.0.0.1:3000", url).replace("$KEY", key)
        reply = json.loads(subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout)
    (answer,) = reply["predictions"]
    assert answer["label"] in ("numbers", "networks")
    assert answer["truncated"] is False


def test_predictions_of_the_package_are_those_of_the_quantized_graph(finished):
    folder = finished[0] / "runs/support-tickets"
    before, after = (load_predictions(Artifact.load(folder / name)) for name in ("quantize", "package"))
    assert all(np.array_equal(a, b) for a, b in zip(before["test"], after["test"], strict=True))
