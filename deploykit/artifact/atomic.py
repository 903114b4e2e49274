"""Files and directories that appear whole: a reader, a kill and a power cut see the old one or the new one.

What is written lies under another name beside its place and on the disk itself (`fsync`), before it is renamed.
"""

import errno
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, in place of an older one.

    Args:
        path: of the file; its directory exists.
        text: all of it.

    Raises:
        OSError: it cannot be written; an older file is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        move(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def move(draft: Path, target: Path) -> None:
    """Moves a finished file or directory to its place on the same file system.

    Args:
        draft: what was written.
        target: its name from now on. A file there is replaced; there must be no directory.

    Raises:
        OSError: it cannot be moved, or the disk is full.
    """
    for path in (draft, *draft.rglob("*")) if draft.is_dir() else (draft,):
        if not path.is_symlink():
            _sync(path)
    draft.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no directories
            raise
    finally:
        os.close(descriptor)
