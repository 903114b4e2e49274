"""Writes files and directories atomically: after a kill or a power cut, either the old or the new version is complete.

The content is written under another name beside its place, synchronized to the disk (`fsync`) and then renamed.
"""

import errno
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a file in UTF-8; its directory must exist.

    Raises:
        OSError: the file cannot be written; an older one is unchanged.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        move(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def move(draft: Path, target: Path) -> None:
    """Moves a finished file or directory to `target` on the same file system, and replaces a file there.

    Raises:
        OSError: the move failed, the disk is full, or there is a directory at `target`.
    """
    for path in (draft, *draft.rglob("*")) if draft.is_dir() else (draft,):
        if not path.is_symlink():
            _sync(path)
    draft.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Waits until the content of a file, or the list of the files in a directory, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system cannot synchronize directories
            raise
    finally:
        os.close(descriptor)
