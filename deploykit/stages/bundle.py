"""Writes the files of a package besides the model: service file, bentofile, pinned requirements, model card, library.

The library is a copy of the files of deploykit that serving needs. Packaging and retuning both write these files.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import bentoml
from packaging.requirements import Requirement

import deploykit
from deploykit.artifact import (
    BENTOFILE,
    LIBRARY,
    MODEL_CARD,
    REQUIREMENTS,
    SERVICE,
    Artifact,
    Manifest,
    ServeOptions,
    sha256_of,
)
from deploykit.errors import ArtifactError, missing_extra_error
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.tasks import Task

PACKAGE_ROOT = Path(deploykit.__file__).parent
# Patterns, below the package, of the files that a service needs; bentofile.yaml has the same list.
SERVED_PATTERNS = (
    *("__init__.py", "py.typed", "errors.py", "methods.py", "hardware.py", "no_telemetry.py"),
    *("artifact/*.py", "tokenizer/*.py", "images/*.py", "tasks/*.py", "engines/*.py", "inference/*.py"),
    *("serving/*.py", "serving/*/*.py", "serving/api/ui/*"),
)
UNSERVED_FILES = ("engines/torch.py",)  # match a pattern, but no service needs them
# Python packages that every service needs. ONNX Runtime is among them whatever the engine, because a service may fall
# back to the float graph.
SERVING_PACKAGES = (
    *("bentoml", "httptools", "httpx", "numpy", "onnxruntime", "onnxruntime-gpu"),
    *("prometheus-client", "pydantic", "python-stdnum", "regex", "tokenizers", "uvloop"),
)
SERVICE_TEXT = '''"""Serves this directory: `bentoml serve .`"""

from pathlib import Path

from deploykit.serving.service import build

service = build(Path(__file__).parent)
'''
BENTOFILE_TEMPLATE = """service: "service:service"
name: "{name}"
description: "file:./README.md"
labels:
  task: {task}
  key: "{key}"
include: ["*"]
python:
  requirements_txt: "./requirements.txt"
  lock_packages: false
envs:
  - {{name: BENTOML_DO_NOT_TRACK, value: "True"}}
  - {{name: HF_HUB_DISABLE_TELEMETRY, value: "1"}}
  - {{name: ORT_DISABLE_TELEMETRY, value: "1"}}
  - {{name: HF_HUB_OFFLINE, value: "1"}}
"""
MODEL_CARD_TEMPLATE = """# {name}

A model for {task}, made by deploykit {version} from `{base}`.

| | |
| --- | --- |
| labels | {labels} |
| runs as | {chosen} |
| parameters | {parameters:,} |
| graph | {bytes:,} bytes |
| longest input | {max_tokens} tokens |
| {comparison.metric} on the test split | {value:.4f} |
| the same of the trained model | {trained:.4f} |
| loss against the trained model (validation) | {comparison.drop:.4f} |
| prediction changes (validation) | {changes} |
| increase of the calibration error (validation) | {calibration} |

## Gates

{gates}

## Stages

{steps}

## Use

In this directory, run `pip install -r requirements.txt`, then `python -m deploykit.serving.keys NAME` to create a key
(it is shown once), and `bentoml serve .`. If deploykit is installed, `deploykit serve .` does the same.

## Limits

The figures hold for texts like those of the test split. Texts longer than {max_tokens} tokens are read in overlapping
windows; what does not fit into the windows is not read, and the answer says so.
"""


def write(
    folder: Path,
    manifest: Manifest,
    key: str,
    packages: Sequence[str],
    chosen: str,
    comparison: Comparison,
    verdicts: Sequence[Verdict],
) -> None:
    """Writes the files into the draft of a package.

    Args:
        folder: the draft.
        manifest: of the artifact that is packaged.
        key: the content key of the package.
        packages: names of Python packages to pin besides those of every service; see `additional_packages`.
        chosen: name of the candidate that runs.
        comparison: of the packaged model with the trained model.
        verdicts: of the gates.
    """
    (folder / SERVICE).write_text(SERVICE_TEXT, encoding="utf-8")
    bentofile = BENTOFILE_TEMPLATE.format(name=manifest.name, task=manifest.task, key=key[:12])
    (folder / BENTOFILE).write_text(bentofile, encoding="utf-8")
    pinned = pinned_requirements([*SERVING_PACKAGES, *packages])
    (folder / REQUIREMENTS).write_text("\n".join(pinned) + "\n", encoding="utf-8")
    (folder / MODEL_CARD).write_text(model_card(manifest, chosen, comparison, verdicts), encoding="utf-8")
    copy_library(folder / LIBRARY)


def model_card(manifest: Manifest, chosen: str, comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """Returns the model card in Markdown."""
    metric = comparison.metric
    return MODEL_CARD_TEMPLATE.format(
        name=manifest.name,
        task=manifest.task,
        version=deploykit.__version__,
        base=manifest.base_model if not Path(manifest.base_model).is_absolute() else Path(manifest.base_model).name,
        labels=_escape_cell(", ".join(manifest.labels)),
        chosen=_escape_cell(chosen),
        parameters=manifest.step.parameters,
        bytes=manifest.step.bytes,
        max_tokens=manifest.max_tokens,
        value=manifest.step.metrics["test"][metric],
        trained=manifest.history[0].metrics["test"][metric].value,
        comparison=comparison,
        changes=format(comparison.flips, ".1%") if comparison.flips else "not counted for this task",
        calibration=format(comparison.calibration, ".4f") if comparison.calibration else "not measured for this task",
        gates="\n".join(f"- {verdict}" for verdict in verdicts),
        steps="\n".join(
            f"- {step.stage} ({step.method}): {step.parameters:,} parameters, {step.bytes:,} bytes,"
            f" test {metric} {step.metrics['test'][metric].value:.4f}"
            for step in manifest.history
        ),
    )


def _escape_cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def served_files() -> list[Path]:
    """Lists the files of deploykit that a service needs, sorted."""
    excluded = {PACKAGE_ROOT / name for name in UNSERVED_FILES}
    return sorted({file for pattern in SERVED_PATTERNS for file in PACKAGE_ROOT.glob(pattern)} - excluded)


def library_hash() -> str:
    """Returns a hash of the served files; it is part of the content key, so that new code makes a new package."""
    hashes = [(file.relative_to(PACKAGE_ROOT).as_posix(), sha256_of(file)) for file in served_files()]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def copy_library(folder: Path) -> None:
    """Copies the served files to a package's folder for them."""
    for file in served_files():
        target = folder / file.relative_to(PACKAGE_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def additional_packages(engine: str, serve: ServeOptions, task: Task) -> list[str]:
    """Lists the Python packages that a service needs besides `SERVING_PACKAGES`: for its engine, extras and task."""
    task_extras = [task.EXTRA] if hasattr(task, "EXTRA") else []
    return [engine, *packages_of_extras([*serve.extras, *task_extras])]


def packages_of_extras(extras: Sequence[str]) -> list[str]:
    """Lists the packages that belong to extras of deploykit, as its metadata says.

    Raises:
        MissingExtraError: a package is not installed here, so there is no version to pin.
    """
    names = []
    for extra in extras:
        for package in map(Requirement, requires("deploykit") or []):
            if package.marker and package.marker.evaluate({"extra": extra}):
                try:
                    version(package.name)
                except PackageNotFoundError as error:
                    raise missing_extra_error(f"the recipe's `extras: [{extra}]`", package.name, extra) from error
                names.append(f"{package.name}[{','.join(package.extras)}]" if package.extras else package.name)
    return names


def pinned_requirements(names: Sequence[str]) -> list[str]:
    """Pins packages and all their dependencies to the versions that are installed here.

    A package that is not installed is left out, because only one of `onnxruntime` and `onnxruntime-gpu` can be
    installed.

    Args:
        names: of packages, with their extras in brackets.

    Returns:
        Sorted lines `name==version`.

    Raises:
        MissingExtraError: neither of these two packages is installed.
    """
    pins: dict[str, str] = {}  # line by name and extras, because another extra of a package has other dependencies
    queue = [(package.name, frozenset(package.extras)) for package in map(Requirement, names)]
    while queue:
        name, extras = queue.pop()
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        name_with_extras = f"{_normalized(name)}[{','.join(sorted(extras))}]"
        if name_with_extras in pins:
            continue
        pins[name_with_extras] = f"{_normalized(name)}=={installed}"
        for dependency in map(Requirement, requires(name) or []):
            marker = dependency.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                queue.append((dependency.name, frozenset(dependency.extras)))
    lines = sorted(set(pins.values()))
    if not any(line.startswith("onnxruntime") for line in lines):
        raise missing_extra_error("a package", "onnxruntime", "cpu")
    return lines


def _normalized(name: str) -> str:
    """Returns the name of a Python package in its normalized form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def add_to_store(artifact: Artifact) -> str:
    """Adds a package to BentoML's model store, unless an undamaged copy is there; returns its tag."""
    tag = artifact.tag
    try:
        Artifact.load(bentoml.models.get(tag).path).verify()
    except (bentoml.exceptions.BentoMLException, ArtifactError):  # there is none, or a killed run left a part of it
        with suppress(bentoml.exceptions.BentoMLException):
            bentoml.models.delete(tag)
        labels = {"task": artifact.manifest.task, "made_by": "deploykit"}
        with bentoml.models.create(tag, labels=labels, metadata={"key": artifact.manifest.key}) as model:
            shutil.copytree(artifact.path, model.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tag
