"""The fifth stage: a graph becomes a directory that serves by itself.

The package holds the graph in the layout of Hugging Face, the golden set, a copy of exactly that part of
deploykit which serves, pinned requirements without torch, a service file and a bentofile, and a model card.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import bentoml
import numpy as np
from packaging.requirements import Requirement

import deploykit
from deploykit import golden, hardware
from deploykit.artifact import (
    BENTOFILE,
    FLOAT_GRAPH,
    GRAPH,
    LIBRARY,
    MODEL_CARD,
    REQUIREMENTS,
    SERVICE,
    Artifact,
    draft,
    load_predictions,
)
from deploykit.errors import ArtifactError, GateError, MissingExtraError
from deploykit.evaluation import gates, latency, metrics, splits
from deploykit.evaluation.comparison import Comparison, compare, flips
from deploykit.execution import Execution
from deploykit.job import REFERENCE, Job
from deploykit.predictor import Predictor
from deploykit.recipe import PackageSection

ROOT = Path(__file__).parent
FLOAT = "float32"
SERVED = (
    *("__init__.py", "py.typed", "errors.py", "artifact.py", "methods.py", "hardware.py", "tokenizer.py"),
    *("predictor.py", "golden.py", "execution.py", "cost.py", "tasks/*.py", "serving/*.py"),
    *("engines/__init__.py", "engines/onnxruntime.py", "engines/openvino.py"),
)
SERVING_PACKAGES = (
    *("bentoml", "httptools", "numpy", "onnxruntime", "onnxruntime-gpu"),
    *("prometheus-client", "pydantic", "tokenizers", "uvloop"),
)
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
  - {{name: HF_HUB_OFFLINE, value: "1"}}
"""
CARD = """# {name}

A model for {task}, made by deploykit {version} from `{base}`.

| | |
| --- | --- |
| labels | {labels} |
| precision and engine | {precision} on {engine} |
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

The figures hold for texts like those of the test split. Inputs longer than {max_tokens} tokens are cut, and the
answer says so.
"""


def package(job: Job) -> Artifact:
    """Packages the parent's graph with everything that serving it needs.

    Args:
        job: of the stage `package`.
    """
    dataset, options, source = job.dataset(), job.recipe.package, job.source
    if options is None:
        raise RuntimeError("the recipe skips packaging")
    predictor, rows = Predictor.load(source, hardware.cpu_limit()), dataset.validation
    scores = load_predictions(source)
    before, after = scores[f"{REFERENCE}validation"], scores["validation"]
    lengths = splits.lengths(predictor.tokenizer, rows)
    comparison = compare(job.task, rows, predictor.labels, before, after, job.recipe.seed, lengths)
    verdicts = _judge(job, predictor, comparison)
    gold = [job.task.targets(example, predictor.labels) for example in dataset.test]
    table = metrics.per_label(job.task.METRICS, gold, metrics.predictions(scores["test"]), predictor.labels)
    with draft(job.target) as folder:
        job.copy(folder, GRAPH, FLOAT_GRAPH)
        golden.save(folder, _golden(job, options, predictor))
        _write_texts(job, folder, comparison, verdicts)
        copy_library(folder / LIBRARY)
        return job.finish(
            folder,
            kind="package",
            predictor=predictor,
            scores={name: scores[name] for name in ("validation", "test")},
            parameters=source.manifest.step.parameters,
            details={
                "comparison": comparison.model_dump(),
                "verdicts": [verdict.model_dump() for verdict in verdicts],
                "flips": flips(job.task, rows, predictor.labels, before, after, comparison.flipped),
                "test": table,
            },
        )


def _judge(job: Job, predictor: Predictor, comparison: Comparison) -> tuple[gates.Verdict, ...]:
    """Holds the graph against every gate.

    Raises:
        GateError: one of them stops it.
    """
    promised = job.recipe.gates
    p95_ms = latency.p95(predictor, job.dataset().validation, job.recipe.seed) if promised.max_p95_ms else None
    found = gates.verdicts(promised, comparison, p95_ms=p95_ms, size_bytes=job.source.manifest.step.bytes)
    failed = gates.failing(promised, found)
    if failed:
        raise GateError(
            "a gate stops the package, on the validation split against the trained model:\n"
            f"{failed}\nThe graph is kept in {job.source.path}."
        )
    return found


def _golden(job: Job, options: PackageSection, predictor: Predictor) -> golden.Golden:
    """Picks validation rows of all lengths, and asks the graph that will be served and, if there, the float graph."""
    rows, reference = job.dataset().validation, load_predictions(job.source)[f"{REFERENCE}validation"]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].text))
    positions = np.unique(np.linspace(0, len(rows) - 1, min(options.golden, len(rows))).round().astype(int))
    chosen = [order[position] for position in positions]
    texts, pairs = [rows[index].text for index in chosen], [rows[index].pair for index in chosen]
    floating = _floating(job)
    scores, exact = predictor.predict(texts, pairs), floating.predict(texts, pairs) if floating else None
    return golden.Golden(
        texts=texts,
        pairs=pairs,
        scores=[answer.tolist() for answer in scores],
        reference=[reference[index].tolist() for index in chosen],
        float_scores=[answer.tolist() for answer in exact] if exact else None,
        tolerance=golden.tolerance_of(exact, scores) if exact else golden.TOLERANCE,
    )


def _floating(job: Job) -> Predictor | None:
    """Opens the float graph, which may be the one that is served, on the engine and in the precision of reference."""
    graph = FLOAT_GRAPH if job.source.file(FLOAT_GRAPH).is_file() else GRAPH if _precision(job) == FLOAT else None
    execution = Execution(threads=hardware.cpu_limit())
    return Predictor.load(job.source, execution.threads, execution, graph) if graph else None


def _precision(job: Job) -> str:
    """Returns the precision of the candidate that was kept."""
    candidates = job.source.manifest.details.get("quantize", {}).get("candidates", [])
    return next((str(found["precision"]) for found in candidates if found["kept"]), FLOAT)


def _write_texts(job: Job, folder: Path, comparison: Comparison, verdicts: Sequence[gates.Verdict]) -> None:
    manifest = job.source.manifest
    (folder / SERVICE).write_text(SERVICE_TEXT, encoding="utf-8")
    (folder / BENTOFILE).write_text(
        BENTOFILE_TEXT.format(name=job.recipe.name, task=job.recipe.task, key=job.key[:12]), encoding="utf-8"
    )
    (folder / REQUIREMENTS).write_text("\n".join(requirements(SERVING_PACKAGES)) + "\n", encoding="utf-8")
    steps = "\n".join(
        f"- {step.stage} ({step.method}): {step.parameters:,} parameters, {step.bytes:,} bytes,"
        f" test {comparison.metric} {step.metrics['test'][comparison.metric].value:.4f}"
        for step in manifest.history
    )
    card = CARD.format(
        name=job.recipe.name,
        task=job.recipe.task,
        version=deploykit.__version__,
        base=manifest.base_model,
        labels=", ".join(manifest.labels),
        precision=_precision(job),
        engine=manifest.execution,
        parameters=manifest.step.parameters,
        bytes=manifest.step.bytes,
        max_tokens=manifest.max_tokens,
        value=manifest.step.metrics["test"][comparison.metric],
        trained=manifest.history[0].metrics["test"][comparison.metric].value,
        comparison=comparison,
        promises="\n".join(f"- {verdict}" for verdict in verdicts),
        steps=steps,
    )
    (folder / MODEL_CARD).write_text(card, encoding="utf-8")


def served_files() -> list[Path]:
    """Lists the files of deploykit that a serving process imports."""
    return sorted(file for pattern in SERVED for file in ROOT.glob(pattern))


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


def requirements(names: tuple[str, ...]) -> list[str]:
    """Pins packages and all that they pull in to the versions installed here, `name==version` each.

    Args:
        names: of the registry. One that is not installed is left out: `onnxruntime-gpu` may stand in.
    """
    found: dict[str, str] = {}
    queue = [(name, frozenset[str]()) for name in names]
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
        raise MissingExtraError("no ONNX Runtime is installed to pin. Add it with: pip install 'deploykit[cpu]'")
    return pinned


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def store(artifact: Artifact) -> str:
    """Adds a package to BentoML's model store, unless it is there whole; returns its tag.

    Args:
        artifact: of kind `package`.
    """
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    tag = f"{artifact.manifest.name}:{artifact.digest[:12]}"
    try:
        Artifact.load(bentoml.models.get(tag).path).verify()
    except (bentoml.exceptions.BentoMLException, ArtifactError):  # none, or half of one, left by a kill
        with suppress(bentoml.exceptions.BentoMLException):
            bentoml.models.delete(tag)
        labels = {"task": artifact.manifest.task, "made_by": "deploykit"}
        with bentoml.models.create(tag, labels=labels, metadata={"key": artifact.manifest.key}) as model:
            shutil.copytree(artifact.path, model.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tag
