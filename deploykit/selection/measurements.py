"""A cache of measurements on disk: one JSON file each, named by a hash of what was measured and the machine.

The environment variable `DEPLOYKIT_CACHE` names its directory, by default `~/.cache/deploykit`. If that is deleted,
everything is measured again. The least recently used files are deleted once there are more than `MAX_FILES`.
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

FOLDER_VARIABLE = "DEPLOYKIT_CACHE"  # the environment variable with the directory
MAX_FILES = 4096  # a search writes about 50, of a few kilobytes each
REMAINING_SHARE = 0.9  # of `MAX_FILES`, after old files were deleted, so that this is rarely necessary
log = logging.getLogger(__name__)


def folder() -> Path:
    """Returns the directory of the cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(base) / "deploykit").expanduser()


def key_of(*parts: Any) -> str:
    """Returns a key: the sha256 of values that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_of(key: str) -> Path:
    """Returns the path of the file for a key, which may not exist."""
    return folder() / key[:2] / f"{key}.json"


def look_up(key: str) -> Any:
    """Returns the measurement with a key, or None if the cache has none."""
    try:
        file = file_of(key)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # absent, incomplete, or no home directory
        return None
    with suppress(OSError):
        os.utime(file)  # marks it as recently used
    return content


def get_or_compute(key: str, compute: Callable[[], Any]) -> Any:
    """Returns the measurement with a key from the cache; if there is none, computes and stores it.

    If it cannot be stored, a warning is logged.

    Args:
        key: from `key_of`.
        compute: returns a value that can be written as JSON and is not None.
    """
    cached = look_up(key)
    if cached is not None:
        return cached
    result = compute()
    try:
        file_of(key).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file_of(key), json.dumps(result))
        _delete_least_recently_used()
    except (OSError, RuntimeError) as error:
        _warn_once(str(error))
    return result


def _delete_least_recently_used() -> None:
    """Deletes old files down to `REMAINING_SHARE` of the limit, if there are more than `MAX_FILES`."""
    files = list(folder().glob("??/*.json"))
    if len(files) <= MAX_FILES:
        return
    last_used: dict[Path, float] = {}
    for file in files:
        with suppress(FileNotFoundError):  # another process may delete files, too
            last_used[file] = file.stat().st_mtime
    for file in sorted(last_used, key=last_used.__getitem__)[: len(files) - int(MAX_FILES * REMAINING_SHARE)]:
        file.unlink(missing_ok=True)


@functools.cache  # so that each reason is logged once
def _warn_once(reason: str) -> None:
    log.warning(
        "the measurements cannot be stored (%s) and will be made again next time. To store them, set %s to a"
        " writable directory.",
        reason,
        FOLDER_VARIABLE,
    )
