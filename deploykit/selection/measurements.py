"""Measurements that were made before, by what was measured and the machine: one JSON file each.

They lie below `DEPLOYKIT_CACHE`, by default `~/.cache/deploykit`; deleting that directory makes everything be
measured again.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploykit.errors import storage_errors

VARIABLE = "DEPLOYKIT_CACHE"


def folder() -> Path:
    """Returns where measurements are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(VARIABLE) or Path(base) / "deploykit").expanduser()


def key_of(*parts: Any) -> str:
    """Returns a sha256 of anything that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def remember(key: str, compute: Callable[[], Any]) -> Any:
    """Returns what was computed before, or computes and keeps it.

    Args:
        key: of `key_of`.
        compute: returns something that can be written as JSON.
    """
    file = folder() / key[:2] / f"{key}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or half of one
        found = compute()
    with storage_errors(file.parent, VARIABLE):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps(found), encoding="utf-8")
        draft.replace(file)
    return found
