"""A package that serves, made in code, and BentoML kept in a folder of its own."""

import json
import logging
import os
import shutil
import tempfile
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from asgi import Client

import deploykit
from deploykit import artifact, golden
from deploykit.predictor import Predictor
from deploykit.serving import keys

# BentoML reads these when it is first imported
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="deploykit-tests-")
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
for name in [name for name in os.environ if name.startswith("DEPLOYKIT_")]:
    del os.environ[name]

BENTOML_WARNS = ("GitWildMatchPattern", "The `__get_pydantic_core_schema__` method")  # of newer libraries that it uses

with warnings.catch_warnings():
    for start in BENTOML_WARNS:
        warnings.filterwarnings("ignore", start, DeprecationWarning)
    from deploykit.serving import service

LIBRARY = Path(deploykit.__file__).parent
SERVED = (
    *("__init__", "errors", "execution", "cost", "artifact", "methods", "hardware", "tokenizer", "predictor", "golden"),
    *("tasks/*", "engines/__init__", "engines/onnxruntime", "serving/*"),
)
SERVICE = """from pathlib import Path

from deploykit.serving.service import build

service = build(Path(__file__).parent)
"""
BENTOFILE = """service: "service:service"
name: tiny
include: ["*"]
python:
  requirements_txt: "./requirements.txt"
  lock_packages: false
"""
TEXTS = ["a great film", "the plot is weak", "this story was so moving that we told all of our friends about it"]


def pytest_configure(config):
    for start in BENTOML_WARNS:
        config.addinivalue_line("filterwarnings", f"ignore:{start}:DeprecationWarning")


def pytest_unconfigure():
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


def write_package(folder, manifest):
    """Adds to a draft what makes a model a package."""
    predictor = Predictor.load(artifact.Artifact(folder, manifest), cores=1)
    pairs = ["the end"] * len(TEXTS) if manifest.pair else [None] * len(TEXTS)
    scores = [rows.tolist() for rows in predictor.predict(TEXTS, pairs)]
    golden.save(folder, golden.Golden(texts=TEXTS, pairs=pairs, scores=scores, reference=scores))
    (folder / artifact.SERVICE).write_text(SERVICE)
    (folder / artifact.BENTOFILE).write_text(BENTOFILE)
    (folder / artifact.REQUIREMENTS).write_text("bentoml\nonnxruntime\n")
    (folder / artifact.MODEL_CARD).write_text("# tiny\n")
    for pattern in SERVED:
        for file in LIBRARY.glob(f"{pattern}.py"):
            target = folder / artifact.LIBRARY / file.relative_to(LIBRARY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


@pytest.fixture(scope="session")
def make_package(tiny_artifact, manifest_facts):
    """`make_package(target, **changes) -> Artifact`: a sealed package; `changes` go into the manifest."""

    def build(target, **changes):
        facts = manifest_facts(kind="package", stage="package", **changes)
        manifest = artifact.Manifest(format_version=artifact.FORMAT_VERSION, files={}, **facts)
        return tiny_artifact(target, fill=lambda folder: write_package(folder, manifest), **facts)

    return build


@pytest.fixture(scope="session")
def package(make_package, tmp_path_factory):
    """A package for text classification that nobody changes."""
    return make_package(tmp_path_factory.mktemp("package") / "package").path


@pytest.fixture
def copied(package, tmp_path):
    """A package of one's own."""
    return Path(shutil.copytree(package, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def _own_logging():
    """Puts back what a service in this process does to its loggers."""
    logger = logging.getLogger("deploykit")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def alice(key_file):
    """A key that opens everything but the docs."""
    return keys.add(key_file, "alice")


@pytest.fixture
def log_lines():
    """`log_lines(text) -> list`: the JSON lines of a log."""
    return lambda text: [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture
def serve(key_file, alice, monkeypatch):
    """`serve(package) -> Client`: a service that runs until the test ends, and a client with alice's key."""
    monkeypatch.setenv("DEPLOYKIT_KEYS", str(key_file))
    running = []

    def start(package):
        running.append(Client(service.build(package).to_asgi(), headers={"x-api-key": alice}).__enter__())
        return running[-1]

    yield start
    for client in running:
        client.__exit__()


@pytest.fixture
def client(serve, package):
    return serve(package)


@pytest.fixture
def engine(client):
    """Holds the engine: `started` once it has a batch, goes on with `go`; `batches` lists their sizes."""
    runtime = client._app._runtime
    found = SimpleNamespace(started=threading.Event(), go=threading.Event(), batches=[])
    compute = runtime._batcher._compute

    def held(texts, encodings):
        found.batches.append(len(texts))
        found.started.set()
        assert found.go.wait(10)
        return compute(texts, encodings)

    runtime._batcher._compute = held
    yield found
    found.go.set()
