"""The text of a file: decompressed by its suffix, decoded by its byte order mark, otherwise UTF-8.

Nothing is guessed that could be wrong unseen: what looks like another encoding is refused with the command that
converts it.
"""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deploykit.errors import DataError

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
MARKS = {  # the longer ones first: that of UTF-32LE begins with that of UTF-16LE
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
    codecs.BOM_UTF8: "UTF-8",
}
LOOKED_AT_BYTES = 65536
TEXT_NUL_SHARE = 0.01  # UTF-8 text has no NUL; UTF-16 has one in each letter of English, in each space of Russian


def content(path: Path) -> bytes:
    """Returns what a file holds, decompressed where its suffix says that it is compressed.

    Raises:
        DataError: it is not compressed in the way that its suffix says, or it is damaged.
    """
    decompress, suffix = DECOMPRESS.get(path.suffix.lower()), path.suffix.lower().lstrip(".")
    data = path.read_bytes()
    if decompress is None:
        return data
    try:
        return decompress(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is no {suffix} file that can be read: {error}. Compress it again.") from error


def text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        DataError: it is neither UTF-8 nor begins with the byte order mark of UTF-16 or UTF-32, or it is damaged.
    """
    data = content(path)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    if mark and (encoding := MARKS[mark]) != "UTF-8":
        try:
            return data[len(mark) :].decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} begins with the byte order mark of {encoding} and is damaged: {error}.") from None
    if data[:LOOKED_AT_BYTES].count(0) > TEXT_NUL_SHARE * len(data[:LOOKED_AT_BYTES]):
        _refuse_wide(path, data)
    try:
        return data[len(mark) :].decode()
    except UnicodeDecodeError as error:
        _refuse_wide(path, data)
        start = error.start + len(mark)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[start]:02x} at offset {start}, line {line}."
            f" Save it as UTF-8, for example, where it comes from Windows in Western Europe, with:"
            f" iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from None


def _refuse_wide(path: Path, data: bytes) -> None:
    """Refuses what its NUL bytes show to be UTF-16 or UTF-32."""
    encoding = wide_encoding(data[:LOOKED_AT_BYTES])
    if encoding:
        raise DataError(
            f"{path} is not UTF-8 but, by its NUL bytes, {encoding} without a byte order mark. Convert it with:"
            f" iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        )


def wide_encoding(data: bytes) -> str | None:
    """Tells UTF-16 and UTF-32 by where their ASCII characters, such as commas and line breaks, have NUL bytes."""
    quads = np.frombuffer(data[: len(data) // 4 * 4], dtype=np.uint8).reshape(-1, 4)
    if len(quads) and (quads[:, 3] == 0).all() and (quads[:, 2] <= 0x10).all():
        return "UTF-32LE"
    if len(quads) and (quads[:, 0] == 0).all() and (quads[:, 1] <= 0x10).all():
        return "UTF-32BE"
    pairs = np.frombuffer(data[: len(data) // 2 * 2], dtype=np.uint8).reshape(-1, 2).astype(int)
    ascii_little, ascii_big = (
        int(((pairs[:, high] == 0) & (pairs[:, 1 - high] > 0) & (pairs[:, 1 - high] < 0x80)).sum()) for high in (1, 0)
    )
    if ascii_little == ascii_big:
        return None
    return "UTF-16LE" if ascii_little > ascii_big else "UTF-16BE"
