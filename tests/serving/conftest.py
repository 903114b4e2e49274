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
from rows import inputs_of

from deploykit import artifact
from deploykit.artifact.execution import Execution
from deploykit.inference import golden
from deploykit.inference.predictor import Predictor
from deploykit.serving.access import keys

# BentoML reads it when it is first imported
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="deploykit-tests-")
for name in [name for name in os.environ if name.startswith("DEPLOYKIT_")]:
    del os.environ[name]

BENTOML_WARNS = ("GitWildMatchPattern", "The `__get_pydantic_core_schema__` method")  # of newer libraries that it uses

with warnings.catch_warnings():
    for start in BENTOML_WARNS:
        warnings.filterwarnings("ignore", start, DeprecationWarning)
    from deploykit.serving import service
    from deploykit.stages import bundle

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


def write_package(folder, manifest, inputs=None):
    """Adds to a draft what makes a model a package; `inputs` are those of the golden set."""
    made = artifact.Artifact(folder, manifest)
    inputs = inputs or inputs_of(TEXTS, ["the end"] * len(TEXTS) if manifest.pair else None)

    def answers(*how):
        predictor = Predictor.load(made, 1, *how)
        return golden.to_stored(predictor.task.dump(predictor.predict(inputs)))

    exact = answers(Execution(), artifact.FLOAT_GRAPH if made.file(artifact.FLOAT_GRAPH).is_file() else artifact.GRAPH)
    questions, own = [item.model_dump(mode="json") for item in inputs], answers()
    golden.save(folder, golden.Golden(inputs=questions, predictions=own, reference=own, float_predictions=exact))
    (folder / artifact.SERVICE).write_text(SERVICE)
    (folder / artifact.BENTOFILE).write_text(BENTOFILE)
    (folder / artifact.REQUIREMENTS).write_text("bentoml\nonnxruntime\n")
    (folder / artifact.MODEL_CARD).write_text("# tiny\n")
    bundle.copy_library(folder / artifact.LIBRARY)


@pytest.fixture(scope="session")
def make_package(tiny_artifact, tiny_graph, manifest_facts):
    """`make_package(target, float_seed=None, then=None, **changes) -> Artifact`: a sealed package.

    `float_seed` adds a float graph whose answers are not those of the chosen one, `before(draft)` comes first and may
    replace the graph, `then(draft)` comes last, `questions` are the golden inputs, and `changes` go into the manifest.
    """

    def build(target, float_seed=None, then=None, before=None, questions=None, **changes):
        facts = manifest_facts(kind="package", stage="package", **changes)
        manifest = artifact.Manifest(format_version=artifact.FORMAT_VERSION, files={}, **facts)

        def fill(folder):
            if before:
                before(folder)
            if float_seed is not None:
                tiny_graph(folder / artifact.FLOAT_GRAPH, manifest.task, len(manifest.labels), float_seed)
            write_package(folder, manifest, questions)
            if then:
                then(folder)

        return tiny_artifact(target, fill=fill, **facts)

    return build


@pytest.fixture(scope="session")
def package(make_package, tmp_path_factory):
    """A package for text classification that nobody changes."""
    return make_package(tmp_path_factory.mktemp("package") / "package").path


@pytest.fixture(scope="session")
def recording_package(make_package, tmp_path_factory):
    """A package whose recipe asks for records of everything."""
    records = artifact.RecordOptions(share=1, megabytes=1)
    return make_package(tmp_path_factory.mktemp("recording") / "package", serve=artifact.ServeOptions(records=records))


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
def hold():
    """`hold(client)`: its engine has `started` once it has a batch, goes on with `go`, lists sizes in `batches`."""
    held = []

    def start(client):
        batcher = client._app._runtime._model.batcher
        found = SimpleNamespace(started=threading.Event(), go=threading.Event(), batches=[])
        compute = batcher._compute

        def wait(features):
            found.batches.append(len(features))
            found.started.set()
            assert found.go.wait(10)
            return compute(features)

        batcher._compute = wait
        held.append(found)
        return found

    yield start
    for found in held:
        found.go.set()


@pytest.fixture
def engine(hold, client):
    return hold(client)
