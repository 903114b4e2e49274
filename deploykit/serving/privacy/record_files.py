"""Files of records in a folder that several processes may share, with a limit on the bytes of all files.

The owner of a file is one client, or one of a few groups of clients if there are many. At the limit, the oldest file of
the largest owner is deleted. So a client may use all the room that others leave, but cannot push out their records.
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

FILES_PER_OWNER = 8  # an owner's share of the room is divided into so many files, so that little is deleted at once
MAX_SINGLE_OWNERS = 24  # once there are so many owners, new clients share the groups
OWNER_GROUPS = 8  # number of groups that the other clients share
MAX_FILES = FILES_PER_OWNER * (MAX_SINGLE_OWNERS + OWNER_GROUPS)  # limits the time of a write, which looks at all files

Sizes = dict[str, dict[str, int]]  # from owner to file name to bytes; the oldest file of each owner first


class RecordFiles:
    """Writes records to files of one process.

    Args:
        folder: an existing one; other processes may use it, too.
        max_bytes: of all files in it together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._current: dict[str, str] = {}  # from owner to the name of the file that its next line is added to

    def write(self, line: bytes, client: str = "") -> None:
        """Adds a line of a client to a file; if that fails, no part of it stays.

        Raises:
            OSError: the disk is full or not writable, or the line is longer than `max_bytes`.
        """
        if len(line) > self._max_bytes:
            raise OSError(EFBIG, os.strerror(EFBIG))
        sizes = self._sizes()
        owner = _owner(client, sizes)
        self._current = {name: file for name, file in self._current.items() if file in sizes.get(name, ())}
        file_bytes = sizes.setdefault(owner, {}).get(self._current.get(owner, ""), 0)
        if not file_bytes or file_bytes + len(line) > self._max_bytes // FILES_PER_OWNER // len(sizes):
            self._current[owner] = f"records-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{os.getpid()}-{owner}.jsonl"
        self._make_room(sizes, owner, len(line))
        _append(self._folder / self._current[owner], line)

    def _sizes(self) -> Sizes:
        """Returns the sizes of all files of records in the folder."""
        sizes: Sizes = {}
        with os.scandir(self._folder) as entries:
            files = sorted((entry.name, entry) for entry in entries if fnmatchcase(entry.name, FILE_PATTERN))
        for name, entry in files:
            with suppress(FileNotFoundError):  # deleted by another process
                sizes.setdefault(name.removesuffix(".jsonl").rpartition("-")[2], {})[name] = entry.stat().st_size
        return sizes

    def _make_room(self, sizes: Sizes, owner: str, line_bytes: int) -> None:
        """Deletes files until an owner can add a line of `line_bytes`; removes them from `sizes`, too."""
        while remaining := {name: files for name, files in sizes.items() if files}:
            # bytes of each owner as they will be with the line, and files as they are
            totals = {name: sum(files.values()) + line_bytes * (name == owner) for name, files in remaining.items()}
            counts = {name: len(files) for name, files in remaining.items()}
            if sum(totals.values()) + line_bytes * (owner not in totals) > self._max_bytes:
                largest = max(totals, key=totals.__getitem__)
            elif sum(counts.values()) >= MAX_FILES:
                largest = max(counts, key=counts.__getitem__)
            else:
                return
            oldest = next(iter(remaining[largest]))
            (self._folder / oldest).unlink(missing_ok=True)
            del remaining[largest][oldest]


def _owner(client: str, sizes: Mapping[str, Any]) -> str:
    """Returns the owner of a client's records: a hash of its name, or a group if there are many owners already."""
    digest = hashlib.blake2s(client.encode(), digest_size=6)
    single_owner = digest.hexdigest()
    if single_owner in sizes or len(sizes) < MAX_SINGLE_OWNERS:
        return single_owner
    return f"group{digest.digest()[0] % OWNER_GROUPS}"


def _append(file: Path, line: bytes) -> None:
    """Adds a line to a file in one write; if only a part of it fits on the disk, removes that and raises an error."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, before)
            raise OSError(ENOSPC, os.strerror(ENOSPC))
    finally:
        os.close(handle)
