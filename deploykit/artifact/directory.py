"""Opens, verifies and writes artifacts.

A directory is written under a temporary name beside its final one, its manifest last, and then renamed. So a directory
with a manifest is of a stage that has finished.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploykit.artifact import atomic
from deploykit.artifact.files import (
    FORMAT_VERSION,
    MANIFEST,
    OLDEST_FORMAT_VERSION,
    PYCACHE,
    SIGNATURE,
    STORE_RECORD,
    sha256_of,
)
from deploykit.artifact.manifest import FileEntry, Manifest, upgrade
from deploykit.errors import ArtifactError, storage_errors


@dataclass(frozen=True)
class Artifact:
    """A finished directory and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def load(cls, path: Path | str) -> "Artifact":
        """Opens an artifact; `verify` checks its files.

        Raises:
            ArtifactError: the manifest is missing, damaged, or of a format that cannot be read.
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
        if isinstance(version, int) and version < OLDEST_FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format version {version}, from an older deploykit; this one reads"
                f" {OLDEST_FORMAT_VERSION} to {FORMAT_VERSION}. Run the recipe again."
            )
        try:
            return cls(path, Manifest.model_validate(upgrade(content) if isinstance(version, int) else content))
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
        """A hash of the names and hashes of all files."""
        content = {name: entry.sha256 for name, entry in self.manifest.files.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def tag(self) -> str:
        """The tag in BentoML's model store: name and digest."""
        return f"{self.manifest.name}:{self.digest[:12]}"

    def file(self, name: str) -> Path:
        """Returns the path of a file, whose name is usually a constant of `artifact.files`."""
        return self.path / name

    def verify(self) -> None:
        """Compares all files with the manifest.

        Raises:
            ArtifactError: a file is missing, added or changed.
        """
        for name, entry in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise ArtifactError(f"{self.path} lacks the file {name}. Restore it, or build the artifact again.")
            sha256 = sha256_of(file)
            if sha256 != entry.sha256:
                raise ArtifactError(
                    f"{file} was changed after it was made: sha256 {sha256[:12]}…, expected {entry.sha256[:12]}…."
                    " Restore it, or delete the directory and run the recipe again."
                )
        added = sorted(set(_hashed_files(self.path)) - set(self.manifest.files))
        if added:
            raise ArtifactError(f"{self.path} holds a file that the manifest does not name: {added[0]}. Remove it.")


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """Yields a new, empty directory beside `target`, and removes it at the end unless `seal` has renamed it.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    folder = target.parent / f".{target.name}.draft"
    try:
        with storage_errors(target.parent):
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, target: Path, **fields: Any) -> Artifact:
    """Hashes the files of a draft, writes the manifest and moves the draft to its place.

    Args:
        folder: the directory from `draft`.
        target: the artifact's final directory; an older artifact there is replaced.
        fields: of the manifest, except `format_version` and `files`.
    """
    files = {
        name: FileEntry(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size)
        for name in sorted(_hashed_files(folder))
    }
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    replaced = folder.with_name(f"{folder.name}.old.draft")
    if target.exists():  # renamed, not deleted, so that after a kill no half of an artifact is at `target`
        target.rename(replaced)
    atomic.move(folder, target)
    shutil.rmtree(replaced, ignore_errors=True)
    return Artifact(target, manifest)


def content_key(*, parent: str, stage: str, method: str, options: Mapping[str, Any], data: str, seed: int) -> str:
    """Returns the content key of a stage's artifact: a hash of everything that decides its content.

    Args:
        parent: content key of the artifact that the stage starts from; for the first stage, a fingerprint of the model.
        stage: name of the stage.
        method: name of its method.
        options: everything in the recipe that changes the result.
        data: fingerprint of the labelled data.
        seed: the recipe's.
    """
    content = [parent, stage, method, dict(options), data, seed, FORMAT_VERSION]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hashed_files(folder: Path) -> Iterator[str]:
    """Yields the names of the files that a manifest lists: all but itself and those that are added after it."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        excluded = str(name) in (MANIFEST, SIGNATURE, STORE_RECORD) or PYCACHE in name.parts
        if (file.is_file() or file.is_symlink()) and not excluded:
            yield name.as_posix()
