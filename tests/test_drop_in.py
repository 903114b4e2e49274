"""A new task, trainer, quantizer and engine are one new file each: nothing else of the package is edited.

They are put into a copy of the package, which then runs the whole path with them, from data to a served answer.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit

TASK = '''"""Says how loud a message is: a number, learned from a flag, and a yes or no."""

import numpy as np

from deploykit.methods import Frozen, Options as Base
from deploykit.tasks import Column, Example, Input as BaseInput, Observations, Target
from deploykit.tokenizer import join_windows

AUTO_CLASS = "AutoModelForSequenceClassification"
ORT_CLASS = "ORTModelForSequenceClassification"
OPTIMUM_TASK = "text-classification"
OUTPUTS = {"logits": ("labels",)}
OUTPUT_NAMES = ("loudness",)
TARGETS = {"labels": Target("logits", "squared_error")}
COLUMNS = {"body": Column("body", "the message"), "loud": Column("loud", "whether it is loud, 0 or 1")}
EXAMPLES = ({"body": "stop it !", "loud": 1}, {"body": "good night", "loud": 0})
METRICS = ("accuracy",)
FIGURES = frozenset({"changes"})
CAPABILITIES = frozenset()


class Options(Base):
    limit: float = 0.5


class Input(BaseInput):
    body: str


class Answer(Frozen):
    loud: bool
    tokens: int
    truncated: bool


def reader(rows, columns):
    return lambda row: Example(Input(body=row[columns["body"]]), int(row[columns["loud"]]))


def label_names(examples):
    return ()


label_order, example_labels = tuple, lambda example: ()


def encode(inputs, tokenizer, spec):
    return tokenizer.windows([item.body for item in inputs], max_windows=1)


def targets(example, features, spec):
    return {"labels": np.array(example.target, dtype=np.float32)}


def decode(outputs, features, item, spec):
    return outputs[0]["logits"]


def gold(example, spec):
    return np.array([example.target])


def decide(prediction, spec):
    return np.array([int(prediction[0] > spec.options.limit)])


def changes(example, before, after, spec):
    return []


def distance(first, second):
    return float(abs(first - second).max())


def observe(predictions, spec):
    none = np.zeros(0)
    return Observations(np.zeros(len(predictions), int), none.astype(int), none, none)


def dump(predictions):
    return {"loudness": np.stack(predictions)}


def load(arrays):
    return list(arrays["loudness"])


def answer(prediction, features, item, spec):
    encoding = join_windows(features)
    return Answer(loud=bool(decide(prediction, spec)[0]), tokens=len(encoding), truncated=encoding.truncated)


def record(answer):
    return {"loud": answer.loud}
'''
TRAINER = '''"""Fine-tunes the head alone."""

from deploykit.modeling.finetuning import fit
from deploykit.modeling.losses import task_loss
from deploykit.modeling.options import FitOptions
from deploykit.trainers import Trained

NEEDS_FINE_TUNED = False


class Options(FitOptions):
    pass


def train(model, problem, options, work):
    return Trained(model, fit(model, problem, options, task_loss(problem.task), work))
'''
QUANTIZER = '''"""Rounds weights to three digits."""

import numpy as np
import onnx

from deploykit.methods import Options

PRECISION = "float32"
ENGINES = ("onnxruntime",)
DEVICES = ("cpu",)
OPERATORS = ("MatMul",)
SEARCHED = {"latency": {}}


def quantize(graph, options, target, calibration=(), float_nodes=()):
    model, count = onnx.load(graph), 0
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.round(3), tensor.name))
            count += 1
    onnx.save(model, target)
    return {"quantized": count, "float": 0}
'''
ENGINE = '''"""ONNX Runtime, under another name."""

from deploykit.engines import onnxruntime

EXTRA = "cpu"
KIND = "onnx"
FUSED = False
PRECISIONS = {"float32": ()}
QUANTIZERS = ("none", "rounding")
devices, versions = onnxruntime.devices, onnxruntime.versions


def load(model, execution):
    return onnxruntime.Session(model, execution)
'''
FILES = {
    "tasks/loudness.py": TASK,
    "trainers/head_only.py": TRAINER,
    "quantizers/rounding.py": QUANTIZER,
    "engines/renamed.py": ENGINE,
}
SERVE = """
import json, os, sys, urllib.request
from pathlib import Path
import deploykit
from deploykit.serving import launch
package = Path(sys.argv[1])
assert str(deploykit.__file__).startswith(sys.argv[2]), deploykit.__file__
with launch.running_service(package, keys=None, environ={**os.environ, "DEPLOYKIT_AUTH": "off"}) as url:
    body = json.dumps({"inputs": [{"body": "this story !"}, {"body": "this story ."}]}).encode()
    request = urllib.request.Request(url + "/v1/predict", body, {"content-type": "application/json"})
    print(urllib.request.urlopen(request).read().decode())
"""


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "site"
    shutil.copytree(Path(deploykit.__file__).parent, folder / "deploykit", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        (folder / "deploykit" / name).write_text(content, encoding="utf-8")
    return folder


def test_new_methods_of_every_kind_are_one_file_each(copy, tmp_path, tiny_model):
    environ = {**os.environ, "PYTHONPATH": str(copy), "BENTOML_HOME": str(tmp_path / "bentoml")}
    rows = [
        {"body": f"{word} {noun}{mark}", "loud": int(mark == " !")}
        for word in ("a", "the", "this")
        for noun in ("film", "story", "plot", "cast", "script", "music", "ending", "director")
        for mark in (" !", "", " .")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    quantize = {"method": "auto", "minutes": 0.05, "engines": ["renamed"], "quantizers": ["rounding"]}
    recipe = {
        "name": "loud",
        "task": {"method": "loudness", "limit": 0.4},
        "model": str(tiny_model(tmp_path / "base")),
        "data": {"train": "train.jsonl", "body": "body", "validation_share": 0.2, "test_share": 0.2},
        "train": {"method": "head-only", "epochs": 20, "learning_rate": 1e-2},
        "quantize": quantize,
        "gates": {"max_drop": 0.5, "inconclusive": "accept"},
        "package": {"store": False},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    def run(*command):
        process = subprocess.run(
            [sys.executable, *command], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    listed = run("-m", "deploykit", "methods")
    assert all(name in listed for name in ("loudness", "head-only", "rounding", "renamed"))
    assert "Rounds weights to three digits." in listed
    run("-m", "deploykit", "run", "recipe.yaml")
    package = tmp_path / "runs" / "loud" / "package"
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["task_options"] == {"limit": 0.4}
    assert manifest["history"][-1]["metrics"]["test"]["accuracy"]["value"] > 0.8
    candidates = manifest["details"]["quantize"]["candidates"]
    assert ("rounding", "renamed") in {(one["quantizer"], one["execution"]["engine"]) for one in candidates}
    answers = json.loads(run("-c", SERVE, str(package), str(copy)))["predictions"]
    assert [answer["loud"] for answer in answers] == [True, False]
