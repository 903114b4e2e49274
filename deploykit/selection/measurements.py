"""A cache of measurements on disk: one JSON file each, by a hash of what was measured and the machine.

The directory is `DEPLOYKIT_CACHE`, by default `~/.cache/deploykit`; if it is deleted, everything is measured again. The
least recently used files are deleted once there are many.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploykit.artifact import atomic

VARIABLE = "DEPLOYKIT_CACHE"
MAX_FILES = 4096  # a search writes about 50, of a few kilobytes each
log = logging.getLogger(__name__)


def folder() -> Path:
    """Returns the directory of the cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(base) / "deploykit").expanduser()


def key_of(*parts: Any) -> str:
    """Returns the sha256 of values that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_of(key: str) -> Path:
    """Returns the path of a key's measurement, which may not exist."""
    return folder() / key[:2] / f"{key}.json"


def recall(key: str) -> Any:
    """Returns a measurement from the cache, or None."""
    try:
        file = file_of(key)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # absent, incomplete, or no home directory
        return None
    with suppress(OSError):
        os.utime(file)  # marks it as used
    return content


def remember(key: str, compute: Callable[[], Any]) -> Any:
    """Returns a measurement from the cache, or computes and stores it; logs a warning if it cannot be stored.

    Args:
        key: from `key_of`.
        compute: returns a value that can be written as JSON and is not None.
    """
    cached = recall(key)
    if cached is not None:
        return cached
    result = compute()
    try:
        file_of(key).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file_of(key), json.dumps(result))
        _delete_oldest()
    except (OSError, RuntimeError) as error:
        _warn(str(error))
    return result


def _delete_oldest() -> None:
    """Deletes the least recently used files, down to nine tenths of the limit."""
    files = list(folder().glob("??/*.json"))
    if len(files) > MAX_FILES:
        used: dict[Path, float] = {}
        for file in files:
            with suppress(FileNotFoundError):  # another process may delete files, too
                used[file] = file.stat().st_mtime
        for file in sorted(used, key=used.__getitem__)[: len(files) - MAX_FILES * 9 // 10]:
            file.unlink(missing_ok=True)


@functools.cache  # logs each reason once
def _warn(reason: str) -> None:
    log.warning(
        "the measurements cannot be stored (%s) and will be made again next time. To store them, set %s to a"
        " writable directory.",
        reason,
        VARIABLE,
    )
