"""What a package holds besides the model: service file, bentofile, pinned requirements, model card, library.

The copy of deploykit is exactly that part of it which serves. Shared by packaging and by choosing again.
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
from deploykit.artifact import BENTOFILE, LIBRARY, MODEL_CARD, REQUIREMENTS, SERVICE, Artifact, Manifest
from deploykit.errors import ArtifactError, extra_missing
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.gates import Verdict

ROOT = Path(deploykit.__file__).parent
SERVED = (
    *("__init__.py", "py.typed", "errors.py", "methods.py", "hardware.py", "no_telemetry.py"),
    *("artifact/*.py", "tokenizer/*.py", "tasks/*.py", "engines/*.py", "inference/*.py"),
    *("serving/*.py", "serving/*/*.py", "serving/api/ui/*"),
)  # what a service needs, as patterns below the package: the one list that packages, bentofile.yaml and tests follow
NOT_SERVED = ("engines/torch.py",)  # the reference engine, which needs torch
SERVING_PACKAGES = (
    *("bentoml", "httptools", "httpx", "numpy", "onnxruntime", "onnxruntime-gpu"),
    *("prometheus-client", "pydantic", "python-stdnum", "regex", "tokenizers", "uvloop"),
)  # ONNX Runtime whatever was chosen: the float graph falls back to it
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
| what runs | {chosen} |
| parameters | {parameters:,} |
| graph | {bytes:,} bytes |
| longest input | {max_tokens} tokens |
| {comparison.metric} on the test split | {value:.4f} |
| the same, as trained | {trained:.4f} |
| loss against the trained model (validation) | {comparison.drop:.4f} |
| predictions that changed (validation) | {comparison.flips:.1%} |
| growth of the calibration error (validation) | {comparison.calibration:.4f} |

## What it keeps

{promises}

## How it was made

{steps}

## Use

In this directory: `pip install -r requirements.txt`, `python -m deploykit.serving.keys NAME` for a key (it is shown
once), and `bentoml serve .`; where deploykit is installed, `deploykit serve .` does the same.

## Limits

The figures hold for texts like those of the test split. Texts longer than {max_tokens} tokens are read in parts that
overlap; what is too long even for that is cut, and the answer says so.
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
    """Writes everything besides the model into a draft.

    Args:
        folder: the draft.
        manifest: of the artifact that is packaged.
        key: of the package.
        packages: to pin beside those of every service: the engine's, and those of extras.
        chosen: the name of the candidate that runs.
        comparison: with the trained model.
        verdicts: on it.
    """
    (folder / SERVICE).write_text(SERVICE_TEXT, encoding="utf-8")
    bentofile = BENTOFILE_TEXT.format(name=manifest.name, task=manifest.task, key=key[:12])
    (folder / BENTOFILE).write_text(bentofile, encoding="utf-8")
    pinned = requirements([*SERVING_PACKAGES, *packages])
    (folder / REQUIREMENTS).write_text("\n".join(pinned) + "\n", encoding="utf-8")
    (folder / MODEL_CARD).write_text(card(manifest, chosen, comparison, verdicts), encoding="utf-8")
    copy_library(folder / LIBRARY)


def card(manifest: Manifest, chosen: str, comparison: Comparison, verdicts: Sequence[Verdict]) -> str:
    """Returns the model card: what it is, what it keeps, how it was made and how to use it."""
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
        promises="\n".join(f"- {verdict}" for verdict in verdicts),
        steps="\n".join(
            f"- {step.stage} ({step.method}): {step.parameters:,} parameters, {step.bytes:,} bytes,"
            f" test {metric} {step.metrics['test'][metric].value:.4f}"
            for step in manifest.history
        ),
    )


def _cell(text: str) -> str:
    """Returns a text as it can stand in a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|")


def served_files() -> list[Path]:
    """Lists the files of deploykit that a serving process imports."""
    left_out = {ROOT / name for name in NOT_SERVED}
    return sorted({file for pattern in SERVED for file in ROOT.glob(pattern)} - left_out)


def library_hash() -> str:
    """Returns a hash of the code that is copied into packages, so that new code makes a new package."""
    names = [(file.relative_to(ROOT).as_posix(), file.read_bytes()) for file in served_files()]
    digest = hashlib.sha256(repr([(name, hashlib.sha256(content).hexdigest()) for name, content in names]).encode())
    return digest.hexdigest()


def copy_library(folder: Path) -> None:
    """Copies the serving part of deploykit."""
    for file in served_files():
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def members(extras: Sequence[str]) -> list[str]:
    """Lists the packages of deploykit's extras, as its own metadata name them.

    Raises:
        MissingExtraError: one of them is not installed here, so that there is no version to pin.
    """
    found = []
    for extra in extras:
        for needed in map(Requirement, requires("deploykit") or []):
            if needed.marker and needed.marker.evaluate({"extra": extra}):
                try:
                    version(needed.name)
                except PackageNotFoundError as error:
                    raise extra_missing(f"the recipe's `extras: [{extra}]`", needed.name, extra) from error
                found.append(f"{needed.name}[{','.join(needed.extras)}]" if needed.extras else needed.name)
    return found


def requirements(names: Sequence[str]) -> list[str]:
    """Pins packages and all that they pull in to the versions installed here, `name==version` each.

    Args:
        names: of the registry, as `name` or `name[extra]`. One that is not installed is left out: `onnxruntime-gpu`
            may stand in.
    """
    found: dict[str, str] = {}
    queue = [(needed.name, frozenset(needed.extras)) for needed in map(Requirement, names)]
    while queue:
        name, extras = queue.pop()
        try:
            release = version(name)
        except PackageNotFoundError:
            continue
        known = f"{_canonical(name)}[{','.join(sorted(extras))}]"
        if known in found:
            continue
        found[known] = f"{_canonical(name)}=={release}"
        for line in requires(name) or []:
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                queue.append((needed.name, frozenset(needed.extras)))
    pinned = sorted(set(found.values()))
    if not any(line.startswith("onnxruntime") for line in pinned):
        raise extra_missing("a package", "onnxruntime", "cpu")
    return pinned


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def store(artifact: Artifact) -> str:
    """Adds a package to BentoML's model store, unless it is there whole; returns its tag.

    Args:
        artifact: of kind `package`.
    """
    tag = artifact.tag
    try:
        Artifact.load(bentoml.models.get(tag).path).verify()
    except (bentoml.exceptions.BentoMLException, ArtifactError):  # none, or half of one, left by a kill
        with suppress(bentoml.exceptions.BentoMLException):
            bentoml.models.delete(tag)
        labels = {"task": artifact.manifest.task, "made_by": "deploykit"}
        with bentoml.models.create(tag, labels=labels, metadata={"key": artifact.manifest.key}) as model:
            shutil.copytree(artifact.path, model.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tag
