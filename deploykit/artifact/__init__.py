"""Artifacts: immutable directories that the stages hand to each other, and their manifests.

This is the only file that knows names on disk. A directory is written under a temporary name beside its
place, its manifest last, and then renamed: a manifest that is present means that the stage finished.
The layout stays that of Hugging Face, so that transformers and Optimum open what they are able to open.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, ValidationError, model_validator

from deploykit.artifact import atomic
from deploykit.artifact.cost import Cost
from deploykit.artifact.execution import Execution
from deploykit.errors import ArtifactError, storage_errors
from deploykit.methods import Frozen

FORMAT_VERSION, OLDEST_FORMAT = 3, 2  # written, and still read
MANIFEST = "manifest.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
FLOAT_GRAPH = "model_float32.onnx"  # beside a chosen graph that is another one
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocab.txt"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", VOCABULARY)
ARCHITECTURE = "deploykit_arch.json"
PREDICTIONS = "predictions.npz"
GOLDEN = "golden.json"
MODEL_CARD = "README.md"
SERVICE = "service.py"
BENTOFILE = "bentofile.yaml"
REQUIREMENTS = "requirements.txt"
LIBRARY = "deploykit"
SIGNATURE = "model.sig"
STORED = "model.yaml"  # BentoML's model store leaves it beside a package's files
PYCACHE = "__pycache__"
GENERATED = (PYCACHE, STORED)
BUSY_SHARE = 0.05  # of the time that a measurement takes: more waiting for cores than this is said wherever it is shown

Kind = Literal["checkpoint", "onnx", "package"]


class Record(Frozen):
    """Base of what a manifest holds."""


class FileEntry(Record):
    """One file of an artifact: its sha256 in hexadecimal and its size in bytes."""

    sha256: str
    bytes: int


class Metric(Record):
    """A measured value with its 95 % interval; `f"{metric:.4f}"` writes both."""

    value: float
    low: float
    high: float

    def __format__(self, numbers: str) -> str:
        value, low, high = (format(number, f"z{numbers}") for number in (self.value, self.low, self.high))
        return value if low == high else f"{value} (95 % interval {low} to {high})"


class Step(Record):
    """What one stage of the chain did.

    `bytes` are those of the weights or of the graph; `p50_ms` is the median time in milliseconds of one input
    of median length on the step's engine, timed in turn with those of all steps in the same manifest, so that they can
    be compared; `waited_share` is the part of that time in which other processes held the cores.
    """

    stage: str
    method: str
    key: str
    seconds: float
    parameters: int
    bytes: int
    p50_ms: float
    waited_share: float = Field(default=0.0, ge=0)
    metrics: dict[str, dict[str, Metric]]

    @property
    def busy(self) -> bool:
        """Whether the machine was too busy for `p50_ms` to be trusted."""
        return self.waited_share > BUSY_SHARE


class RecordOptions(Record):
    """Which texts a service keeps to be looked at."""

    share: float = Field(default=0.01, gt=0, le=1)
    """Share of the texts that are kept."""
    megabytes: int = Field(default=64, ge=1)
    """Most megabytes of all files together."""


class ServeOptions(Record):
    """How a package is served; carried to the service by the manifest."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one padded batch."""
    max_batch_items: int = Field(default=64, ge=1)
    """Most texts of one batch."""
    max_queue_tokens: int = Field(default=65536, ge=1)
    """Most tokens that wait."""
    max_wait_s: float = Field(default=0.5, gt=0)
    """Seconds that a text may wait for others; where it would wait longer, the answer is 503."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Deadline of a request in seconds."""
    stuck_s: float = Field(default=60.0, ge=1)
    """Seconds after which a process whose engine or event loop hangs ends, to be started again."""
    max_texts: int = Field(default=256, ge=1)
    """Most texts of one request."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Most bytes of one request."""
    max_windows: int = Field(default=16, ge=1)
    """Most overlapping windows in which a text is read that is longer than the model reads; 1: it is cut."""
    redact: bool = False
    """Masks personal data before the model reads a text."""
    batching: Literal["cost", "fifo", "none", "bentoml"] = "cost"
    """How texts share batches: `cost` by the latency model; for comparison `fifo` (in order of arrival), `none`
    (each alone) and `bentoml` (BentoML's adaptive batching)."""
    redact_names: str | None = Field(default=None, min_length=1)
    """The spaCy model that finds names of people for that; null: names stay."""
    records: RecordOptions | None = None
    """What may be kept of texts and answers; null: nothing."""
    extras: tuple[Literal["jwt", "otel", "presidio", "redis", "sign"], ...] = ()
    """Extras of deploykit that the service uses; their packages are pinned with the others."""
    ui: bool = True
    """Offers the page at /ui to try the model on."""
    threads: int | None = Field(default=None, ge=1)
    """Cores for the engine; null: all that the cgroup allows."""

    @model_validator(mode="after")
    def _masks_somewhere(self) -> Self:
        if self.redact_names and not (self.redact or self.records):
            raise ValueError("redact_names adds to what `redact: true` or `records` mask; set one of them, too")
        return self


class Manifest(Record):
    """Everything that later stages, the service and the report need to know.

    `pair` says whether an input is two texts, `execution` how the model is run, `weights_precision` what the weights of
    its layers are stored in (`float32`, `float16`, `int8`, `int4`), `cost` what its batches take where it was measured
    (null: it was not), `history` lists the stages so far, this
    one last, and `details` maps each of them to what is particular to it (data summary, learning curve, parity,
    candidates, flips), so that the last artifact tells the whole story.
    """

    format_version: int
    kind: Kind
    name: str
    task: str
    labels: tuple[str, ...]
    pair: bool
    max_tokens: int
    base_model: str
    base_revision: str
    stage: str
    method: str
    options: dict[str, Any]
    key: str
    parent_key: str
    parent_digest: str
    seed: int
    files: dict[str, FileEntry]
    history: tuple[Step, ...] = Field(min_length=1)
    execution: Execution
    weights_precision: str
    cost: Cost | None
    serve: ServeOptions
    details: dict[str, dict[str, Any]]
    hardware: dict[str, Any]
    versions: dict[str, str]
    created: str

    @property
    def own(self) -> dict[str, Any]:
        """The details of this artifact's own stage."""
        return self.details[self.stage]

    @property
    def step(self) -> Step:
        """The last step of the history: this artifact's own."""
        return self.history[-1]


@dataclass(frozen=True)
class Artifact:
    """A finished directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path | str) -> "Artifact":
        """Opens a directory that a stage has finished; file contents are not checked, see `verify`.

        Raises:
            ArtifactError: no manifest, one that cannot be read, or one of a newer format.
        """
        path = Path(path)
        try:
            content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(
                f"{path} is not an artifact: it has no {MANIFEST}. Give the directory that a stage has written."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
            raise ArtifactError(f"{path / MANIFEST} cannot be read ({error}). Build the artifact again.") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {version}, and this deploykit reads {FORMAT_VERSION}."
                " Upgrade deploykit to open it."
            )
        if isinstance(version, int) and version < OLDEST_FORMAT:
            raise ArtifactError(
                f"{path} has format version {version}, from an older deploykit; this one reads {OLDEST_FORMAT} to"
                f" {FORMAT_VERSION}. Run the recipe again."
            )
        try:
            return cls(path, Manifest.model_validate(_from_format_2(content) if version == 2 else content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ArtifactError(
                f"{path / MANIFEST} is damaged: {where}: {first['msg']}. Build the artifact again."
            ) from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path / MANIFEST} is damaged: details. Build the artifact again.") from error

    @property
    def digest(self) -> str:
        """A hash of the contents: of every file's hash."""
        content = {name: entry.sha256 for name, entry in self.manifest.files.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def tag(self) -> str:
        """Its name in BentoML's model store, where it is stored."""
        return f"{self.manifest.name}:{self.digest[:12]}"

    def file(self, name: str) -> Path:
        """Returns the path of one of the names at the top of this module."""
        return self.path / name

    def verify(self) -> None:
        """Compares every file with the manifest.

        Raises:
            ArtifactError: names the first file that is missing, added or changed.
        """
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise ArtifactError(f"{self.path} lacks the file {name}. Restore it, or build the artifact again.")
            found = sha256_of(file)
            if found != entry.sha256:
                raise ArtifactError(
                    f"{file} was changed after it was made: sha256 {found[:12]}…, expected {entry.sha256[:12]}…."
                    " Restore it, or delete the directory and run the recipe again."
                )
        added = sorted(set(_contents(self.path)) - set(self.manifest.files))
        if added:
            raise ArtifactError(f"{self.path} holds a file that the manifest does not name: {added[0]}. Remove it.")


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `target`; removes it unless `seal` has renamed it.

    Raises:
        StorageError: the disk is full or refuses to be written.
    """
    folder = target.parent / f".{target.name}.draft"
    try:
        with storage_errors(target.parent):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, target: Path, **facts: Any) -> Artifact:
    """Hashes the files of a draft, writes the manifest last and moves the draft to its place.

    Args:
        folder: what `draft` gave.
        target: the artifact's final directory; an older one there is replaced.
        facts: the manifest's fields, without `format_version` and `files`.
    """
    files = {
        name: FileEntry(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size)
        for name in sorted(_contents(folder))
    }
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **facts)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if target.exists():  # set aside whole, so that a kill leaves the old one or the new one, or none
        target.rename(folder.with_name(f"{folder.name}.old.draft"))
    atomic.move(folder, target)
    shutil.rmtree(folder.with_name(f"{folder.name}.old.draft"), ignore_errors=True)
    return Artifact(target, manifest)


def _from_format_2(content: dict[str, Any]) -> dict[str, Any]:
    """Adds what format 3 states: the precision of the weights, which was that of the candidate that was kept."""
    details = content["details"]
    candidates = details.get("retune", details.get("quantize", {})).get("candidates", ())
    kept = [candidate["precision"] for candidate in candidates if candidate["kept"]]
    return {**content, "weights_precision": kept[0] if kept else "float32"}


def is_finished(path: Path) -> bool:
    """Says whether a stage has finished this directory."""
    return (path / MANIFEST).is_file()


def key_of(*, parent: str, stage: str, method: str, options: Mapping[str, Any], data: str, seed: int) -> str:
    """Returns the content key that answers "already done?".

    Args:
        parent: key of the artifact that the stage starts from, or the base model's fingerprint.
        stage: name of the stage.
        method: name of its method.
        options: everything of the recipe that changes what the stage makes.
        data: fingerprint of the labelled data.
        seed: of the run.
    """
    content = [parent, stage, method, dict(options), data, seed, FORMAT_VERSION]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Returns a file's sha256 in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_predictions(folder: Path, rows: Mapping[str, list[npt.NDArray[np.float32]]]) -> None:
    """Stores the scores of each split: `name` concatenated, `name.lengths` to cut it into rows.

    Args:
        folder: the draft.
        rows: split to one array `(units, labels)` a row.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, scores in rows.items():
        arrays[name] = np.concatenate(scores).astype(np.float32)
        arrays[f"{name}.lengths"] = np.array([len(row) for row in scores], dtype=np.int64)
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **arrays)


def load_predictions(artifact: Artifact) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Reads what `save_predictions` wrote."""
    with np.load(artifact.file(PREDICTIONS), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not name.endswith(".lengths")]
        return {name: np.split(arrays[name], np.cumsum(arrays[f"{name}.lengths"])[:-1]) for name in names}


def _contents(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        made = str(name) in (MANIFEST, SIGNATURE) or str(name) == STORED or PYCACHE in name.parts
        if (file.is_file() or file.is_symlink()) and not made:
            yield name.as_posix()
