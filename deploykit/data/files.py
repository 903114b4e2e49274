"""Reads text files: decompressed by the suffix, decoded by the byte order mark or else as UTF-8.

Other encodings are never guessed: the error names the command that converts the file.
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

DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
ENCODING_OF_MARK = {  # the mark of UTF-32LE begins with that of UTF-16LE, so the longer marks come first
    codecs.BOM_UTF32_LE: "UTF-32LE",
    codecs.BOM_UTF32_BE: "UTF-32BE",
    codecs.BOM_UTF16_LE: "UTF-16LE",
    codecs.BOM_UTF16_BE: "UTF-16BE",
    codecs.BOM_UTF8: "UTF-8",
}
INSPECTED_BYTES = 65536  # at the beginning of a file, to recognize UTF-16 and UTF-32
# UTF-8 text has no NUL bytes. UTF-16 has one for each English letter, and for each space in any script.
MAX_NUL_SHARE = 0.01


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file, decompressed according to its suffix.

    Raises:
        DataError: the file is damaged, or not compressed as its suffix says.
    """
    suffix = path.suffix.lower()
    decompress = DECOMPRESSORS.get(suffix)
    data = path.read_bytes()
    if decompress is None:
        return data
    try:
        return decompress(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read as {suffix.lstrip('.')}: {error}. Compress it again.") from error


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        DataError: the file is damaged, or it is not UTF-8 and has no byte order mark of UTF-16 or UTF-32.
    """
    data = read_bytes(path)
    mark = next((mark for mark in ENCODING_OF_MARK if data.startswith(mark)), b"")
    if mark and (encoding := ENCODING_OF_MARK[mark]) != "UTF-8":
        try:
            return data[len(mark) :].decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{path} begins with the byte order mark of {encoding} and is damaged: {error}.") from None
    if data[:INSPECTED_BYTES].count(0) > MAX_NUL_SHARE * len(data[:INSPECTED_BYTES]):
        _refuse_wide_encoding(path, data)
    try:
        return data[len(mark) :].decode()
    except UnicodeDecodeError as error:
        _refuse_wide_encoding(path, data)
        start = error.start + len(mark)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[start]:02x} at offset {start}, line {line}."
            f" Save it as UTF-8, for example, where it comes from Windows in Western Europe, with:"
            f" iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
        ) from None


def _refuse_wide_encoding(path: Path, data: bytes) -> None:
    """Raises DataError if the data is UTF-16 or UTF-32, which its NUL bytes show."""
    encoding = recognize_encoding(data[:INSPECTED_BYTES])
    if encoding:
        raise DataError(
            f"{path} is not UTF-8 but, by its NUL bytes, {encoding} without a byte order mark. Convert it with:"
            f" iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"
        )


def recognize_encoding(data: bytes) -> str | None:
    """Recognizes UTF-16 and UTF-32 without a byte order mark.

    The highest byte of a UTF-32 character is 0, and the next one at most 0x10. UTF-16 is recognized by ASCII characters
    such as line breaks, which have one NUL byte: the second one in UTF-16LE, the first one in UTF-16BE.

    Returns:
        None for other encodings.
    """
    quads = np.frombuffer(data[: len(data) // 4 * 4], dtype=np.uint8).reshape(-1, 4)
    if len(quads) and (quads[:, 3] == 0).all() and (quads[:, 2] <= 0x10).all():
        return "UTF-32LE"
    if len(quads) and (quads[:, 0] == 0).all() and (quads[:, 1] <= 0x10).all():
        return "UTF-32BE"
    pairs = np.frombuffer(data[: len(data) // 2 * 2], dtype=np.uint8).reshape(-1, 2).astype(int)
    little_endian_ascii, big_endian_ascii = (
        int(((pairs[:, high] == 0) & (pairs[:, 1 - high] > 0) & (pairs[:, 1 - high] < 0x80)).sum())
        for high in (1, 0)  # column of the high byte
    )
    if little_endian_ascii == big_endian_ascii:
        return None
    return "UTF-16LE" if little_endian_ascii > big_endian_ascii else "UTF-16BE"
