"""The files of a package besides the model: service file, bentofile, pinned requirements, model card, library.

The library is a copy of those files of deploykit that serving needs. Shared by packaging and retuning.
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
from deploykit.errors import ArtifactError, extra_missing
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict
from deploykit.tasks import Task

ROOT = Path(deploykit.__file__).parent
SERVED = (
    *("__init__.py", "py.typed", "errors.py", "methods.py", "hardware.py", "no_telemetry.py"),
    *("artifact/*.py", "tokenizer/*.py", "images/*.py", "tasks/*.py", "engines/*.py", "inference/*.py"),
    *("serving/*.py", "serving/*/*.py", "serving/api/ui/*"),
)  # files that a service needs, as patterns below the package; bentofile.yaml has the same list
NOT_SERVED = ("engines/torch.py",)  # the reference engine, which needs torch
SERVING_PACKAGES = (
    *("bentoml", "httptools", "httpx", "numpy", "onnxruntime", "onnxruntime-gpu"),
    *("prometheus-client", "pydantic", "python-stdnum", "regex", "tokenizers", "uvloop"),
)  # ONNX Runtime for any engine, because a service falls back to it
SERVICE_TEXT = '''"""Serves this directory: `bentoml serve .`"""

from pathlib import Path

from deploykit.serving.service import build

service = build(Path(__file__).parent)
'''
BENTOFILE_TEXT = """service: "service:service"
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
CARD = """# {name}

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
    """Writes the files into a draft.

    Args:
        folder: the draft.
        manifest: of the artifact that is packaged.
        key: of the package.
        packages: Python packages to pin besides those of every service: the engine's, and those of extras.
        chosen: name of the candidate that runs.
        comparison: with the trained model.
        verdicts: of the gates.
    """
    (folder / SERVICE).write_text(SERVICE_TEXT, encoding="utf-8")
    bentofile = BENTOFILE_TEXT.format(name=manifest.name, task=manifest.task, key=key[:12])
    (folder / BENTOFILE).write_text(bentofile, encoding="utf-8")
    pinned = requirements([*SERVING_PACKAGES, *packages])
    (folder / REQUIREMENTS).write_text("\n".join(pinned) + "\n", encoding="utf-8")
    (folder / MODEL_CARD).write_text(card(manifest, chosen, comparison, verdicts), encoding="utf-8")
    copy_library(folder / LIBRARY)


def card(manifest: Manifest, chosen: str, comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """Returns the model card in Markdown."""
    metric = comparison.metric
    return CARD.format(
        name=manifest.name,
        task=manifest.task,
        version=deploykit.__version__,
        base=manifest.base_model if not Path(manifest.base_model).is_absolute() else Path(manifest.base_model).name,
        labels=_cell(", ".join(manifest.labels)),
        chosen=_cell(chosen),
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


def _cell(text: str) -> str:
    """Escapes a text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def served_files() -> list[Path]:
    """Lists the files of deploykit that a serving process imports."""
    excluded = {ROOT / name for name in NOT_SERVED}
    return sorted({file for pattern in SERVED for file in ROOT.glob(pattern)} - excluded)


def library_hash() -> str:
    """Returns a hash of the copied code; it is a part of the content key, so that new code makes a new package."""
    hashes = [(file.relative_to(ROOT).as_posix(), sha256_of(file)) for file in served_files()]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()


def copy_library(folder: Path) -> None:
    """Copies the serving part of deploykit."""
    for file in served_files():
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def packages(engine: str, serve: ServeOptions, task: Task) -> list[str]:
    """Lists the packages that a service needs besides those of every service: its engine's, and those of extras."""
    return [engine, *members([*serve.extras, *([task.EXTRA] if hasattr(task, "EXTRA") else [])])]


def members(extras: Sequence[str]) -> list[str]:
    """Lists the packages of deploykit's extras, from its own metadata.

    Raises:
        MissingExtraError: one of them is not installed here, so that there is no version to pin.
    """
    names = []
    for extra in extras:
        for member in map(Requirement, requires("deploykit") or []):
            if member.marker and member.marker.evaluate({"extra": extra}):
                try:
                    version(member.name)
                except PackageNotFoundError as error:
                    raise extra_missing(f"the recipe's `extras: [{extra}]`", member.name, extra) from error
                names.append(f"{member.name}[{','.join(member.extras)}]" if member.extras else member.name)
    return names


def requirements(names: Sequence[str]) -> list[str]:
    """Pins packages and their dependencies to the versions installed here, as sorted lines `name==version`.

    Packages that are not installed are left out, because only one of `onnxruntime` and `onnxruntime-gpu` can be.

    Raises:
        MissingExtraError: neither of these two is installed.
    """
    pins: dict[str, str] = {}
    queue = [(package.name, frozenset(package.extras)) for package in map(Requirement, names)]
    while queue:
        name, extras = queue.pop()
        try:
            release = version(name)
        except PackageNotFoundError:
            continue
        member = f"{_canonical(name)}[{','.join(sorted(extras))}]"
        if member in pins:
            continue
        pins[member] = f"{_canonical(name)}=={release}"
        for dependency in map(Requirement, requires(name) or []):
            marker = dependency.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                queue.append((dependency.name, frozenset(dependency.extras)))
    pinned = sorted(set(pins.values()))
    if not any(line.startswith("onnxruntime") for line in pinned):
        raise extra_missing("a package", "onnxruntime", "cpu")
    return pinned


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def store(artifact: Artifact) -> str:
    """Adds a package to BentoML's model store, unless it is there undamaged; returns its tag."""
    tag = artifact.tag
    try:
        Artifact.load(bentoml.models.get(tag).path).verify()
    except (bentoml.exceptions.BentoMLException, ArtifactError):  # absent, or incomplete after a kill
        with suppress(bentoml.exceptions.BentoMLException):
            bentoml.models.delete(tag)
        labels = {"task": artifact.manifest.task, "made_by": "deploykit"}
        with bentoml.models.create(tag, labels=labels, metadata={"key": artifact.manifest.key}) as model:
            shutil.copytree(artifact.path, model.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tag
