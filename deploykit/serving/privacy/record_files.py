"""Files of records in a folder that several processes may share, and that never holds more than it may.

The first clients have files of their own, and all others share some. Where there is no room, the oldest file of those
who hold most goes: a client may use all that others leave free, and cannot push out theirs.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from errno import EFBIG, ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deploykit.artifact.record_format import PATTERN

SEGMENTS = 8  # files among which a client's share of the room is divided, so that little is lost at once
OWN_FILES, GROUPS = 24, 8  # clients with files of their own, and the groups that others share
MAX_FILES = SEGMENTS * (OWN_FILES + GROUPS)  # each is looked at for each record


class Files:
    """The files that one process writes.

    Args:
        folder: that exists.
        most: bytes of all files together.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._current: dict[str, str] = {}

    def write(self, line: bytes, client: str = "") -> None:
        """Adds a line of a client, or nothing of it.

        Raises:
            OSError: the disk is full or refuses to be written, or the line is longer than all files may be.
        """
        if len(line) > self._most:
            raise OSError(EFBIG, os.strerror(EFBIG))
        held = self._held()
        mark = _mark(client, held)
        self._current = {owner: file for owner, file in self._current.items() if file in held.get(owner, ())}
        size = held.setdefault(mark, {}).get(self._current.get(mark, ""), 0)
        if not size or size + len(line) > self._most // SEGMENTS // len(held):
            self._current[mark] = f"records-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{mark}.jsonl"
        self._make_room(held, mark, len(line))
        _append(self._folder / self._current[mark], line)

    def _held(self) -> dict[str, dict[str, int]]:
        """Returns the sizes of all files by the marks of their clients, the oldest first."""
        held: dict[str, dict[str, int]] = {}
        with os.scandir(self._folder) as entries:
            files = sorted((entry.name, entry) for entry in entries if fnmatchcase(entry.name, PATTERN))
        for name, entry in files:
            with suppress(FileNotFoundError):  # taken away by another process
                held.setdefault(name.removesuffix(".jsonl").rpartition("-")[2], {})[name] = entry.stat().st_size
        return held

    def _make_room(self, held: Mapping[str, dict[str, int]], mark: str, size: int) -> None:
        while files := {owner: names for owner, names in held.items() if names}:
            sizes = {owner: sum(names.values()) + size * (owner == mark) for owner, names in files.items()}
            counts = {owner: len(names) for owner, names in files.items()}
            if sum(sizes.values()) + size * (mark not in sizes) > self._most:
                largest = max(sizes, key=sizes.__getitem__)
            elif sum(counts.values()) >= MAX_FILES:
                largest = max(counts, key=counts.__getitem__)
            else:
                return
            oldest = next(iter(files[largest]))
            (self._folder / oldest).unlink(missing_ok=True)
            del files[largest][oldest]


def _mark(client: str, held: Mapping[str, Any]) -> str:
    """Returns what names the files of a client: its own mark, or that of a group where there are many clients."""
    digest = hashlib.blake2s(client.encode(), digest_size=6)
    own = digest.hexdigest()
    return own if own in held or len(held) < OWN_FILES else f"group{digest.digest()[0] % GROUPS}"


def _append(file: Path, line: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, before)
            raise OSError(ENOSPC, os.strerror(ENOSPC))
    finally:
        os.close(handle)
