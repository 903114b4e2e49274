"""Measurements that were made before, by what was measured and the machine: one JSON file each.

They lie below `DEPLOYKIT_CACHE`, by default `~/.cache/deploykit`; deleting that directory makes everything be
measured again. Those that were not read for longest are deleted once there are many.
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
MAX_FILES = 4096  # a search makes some fifty, of a few kilobytes each
log = logging.getLogger(__name__)


def folder() -> Path:
    """Returns where measurements are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(base) / "deploykit").expanduser()


def key_of(*parts: Any) -> str:
    """Returns a sha256 of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_of(key: str) -> Path:
    """Returns where the measurement of a key lies, if it was made."""
    return folder() / key[:2] / f"{key}.json"


def recall(key: str) -> Any:
    """Returns what was measured before, or None.

    Args:
        key: of `key_of`.
    """
    try:
        file = file_of(key)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # none yet, half of one, or no home directory
        return None
    with suppress(OSError):
        os.utime(file)  # read last, deleted last
    return content


def remember(key: str, compute: Callable[[], Any]) -> Any:
    """Returns what was measured before, or measures and keeps it.

    A measurement that cannot be kept is returned all the same, and a warning says so.

    Args:
        key: of `key_of`.
        compute: returns something that can be written as JSON, and is not None.
    """
    known = recall(key)
    if known is not None:
        return known
    result = compute()
    try:
        file_of(key).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(file_of(key), json.dumps(result))
        _forget()
    except (OSError, RuntimeError) as error:
        _warn(str(error))
    return result


def _forget() -> None:
    """Deletes the files that were read or written longest ago, down to nine tenths of the limit."""
    files = list(folder().glob("??/*.json"))
    if len(files) > MAX_FILES:
        ages: dict[Path, float] = {}
        for file in files:
            with suppress(FileNotFoundError):  # another process deletes, too
                ages[file] = file.stat().st_mtime
        for file in sorted(ages, key=ages.__getitem__)[: len(files) - MAX_FILES * 9 // 10]:
            file.unlink(missing_ok=True)


@functools.cache  # once for each reason
def _warn(reason: str) -> None:
    log.warning(
        "the measurements cannot be kept (%s) and will be made again next time. To keep them, set %s to a"
        " directory that can be written.",
        reason,
        VARIABLE,
    )
