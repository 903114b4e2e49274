"""Files of records in a folder that several processes may share, with a limit on the bytes of all files.

The first clients have files of their own, and all others share some. At the limit, the oldest file of the client that
holds most is deleted: a client may use all the room that others leave, and cannot push out their records.
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

from deploykit.artifact.record_format import FILE_PATTERN

FILES_PER_OWNER = 8  # into which its share of the room is divided, so that little is deleted at once
MAX_SINGLE_OWNERS = 24  # clients with files of their own
GROUPS = 8  # of the other clients
MAX_FILES = FILES_PER_OWNER * (MAX_SINGLE_OWNERS + GROUPS)  # every write looks at all of them

Sizes = dict[str, dict[str, int]]  # bytes of each file by its owner, the oldest file first


class Files:
    """The files that one process writes.

    Args:
        folder: an existing one.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._current: dict[str, str] = {}  # the file that each owner's next line is added to

    def write(self, line: bytes, client: str = "") -> None:
        """Adds a line of a client, or nothing of it.

        Raises:
            OSError: the disk is full or not writable, or the line is longer than `max_bytes`.
        """
        if len(line) > self._max_bytes:
            raise OSError(EFBIG, os.strerror(EFBIG))
        sizes = self._sizes()
        owner = _owner(client, sizes)
        self._current = {name: file for name, file in self._current.items() if file in sizes.get(name, ())}
        size = sizes.setdefault(owner, {}).get(self._current.get(owner, ""), 0)
        if not size or size + len(line) > self._max_bytes // FILES_PER_OWNER // len(sizes):
            self._current[owner] = f"records-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{owner}.jsonl"
        self._make_room(sizes, owner, len(line))
        _append(self._folder / self._current[owner], line)

    def _sizes(self) -> Sizes:
        sizes: Sizes = {}
        with os.scandir(self._folder) as entries:
            files = sorted((entry.name, entry) for entry in entries if fnmatchcase(entry.name, FILE_PATTERN))
        for name, entry in files:
            with suppress(FileNotFoundError):  # deleted by another process
                sizes.setdefault(name.removesuffix(".jsonl").rpartition("-")[2], {})[name] = entry.stat().st_size
        return sizes

    def _make_room(self, sizes: Sizes, owner: str, size: int) -> None:
        """Deletes files, until the owner can add a line of `size` bytes."""
        while files := {name: own for name, own in sizes.items() if own}:
            totals = {name: sum(own.values()) + size * (name == owner) for name, own in files.items()}
            counts = {name: len(own) for name, own in files.items()}
            if sum(totals.values()) + size * (owner not in totals) > self._max_bytes:
                largest = max(totals, key=totals.__getitem__)
            elif sum(counts.values()) >= MAX_FILES:
                largest = max(counts, key=counts.__getitem__)
            else:
                return
            oldest = next(iter(files[largest]))
            (self._folder / oldest).unlink(missing_ok=True)
            del files[largest][oldest]


def _owner(client: str, sizes: Mapping[str, Any]) -> str:
    """Returns the name that a client's files have: its own, or that of a group if there are many clients."""
    digest = hashlib.blake2s(client.encode(), digest_size=6)
    own = digest.hexdigest()
    return own if own in sizes or len(sizes) < MAX_SINGLE_OWNERS else f"group{digest.digest()[0] % GROUPS}"


def _append(file: Path, line: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, before)
            raise OSError(ENOSPC, os.strerror(ENOSPC))
    finally:
        os.close(handle)
