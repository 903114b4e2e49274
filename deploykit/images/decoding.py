"""Reads images that strangers send: PNG, JPEG and WebP, recognized by content, within limits of bytes and pixels."""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import ImageError, missing_extra_error

MAX_BYTES = 8 * 2**20  # of a file; photographs of 12 megapixels have 3 to 6 MiB
MAX_PIXELS = 32_000_000  # some 100 MB once decoded; a file of a few kilobytes could hold a thousand times as many
SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
EXPECTED = "a PNG, JPEG or WebP file"


def content(value: Any) -> bytes | Path:
    """Returns the bytes of an image in base64 or a data URL; bytes and the path of a file stay as they are.

    A text is never taken for a path, because texts come from clients.

    Raises:
        ImageError: it is no such text, too large, or not in one of the formats.
    """
    if isinstance(value, Path):
        return value
    if isinstance(value, str):
        encoded = value.partition(",")[2] if value.startswith("data:") else value
        try:
            value = base64.b64decode(encoded.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise ImageError(f"an image must be {EXPECTED} in base64, alone or in a data URL") from None
    if not isinstance(value, bytes):
        raise ImageError(f"an image must be {EXPECTED}, got {type(value).__name__}")
    if len(value) > MAX_BYTES:
        raise ImageError(f"the image has {len(value)} bytes, at most {MAX_BYTES} are read. Make it smaller")
    _format_of(value)
    return value


def as_text(image: bytes | Path) -> str:
    """Returns an image in base64, which `content` reads."""
    return base64.b64encode(read(image)).decode()


def read(image: bytes | Path) -> bytes:
    """Returns the bytes of an image, which may be those of a file.

    Raises:
        ImageError: the file cannot be read, is too large, or is not in one of the formats.
    """
    if isinstance(image, bytes):
        return image
    try:
        with image.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ImageError(f"the image {image} cannot be read: {error.strerror}") from error
    try:
        content(data)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from None
    return data


def decode(data: bytes) -> Any:
    """Returns an image as Pillow has it, in RGB.

    It is turned as its EXIF data says, transparent parts become white, and of an animation the first frame is taken.

    Raises:
        ImageError: it is damaged, or has too many pixels.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise missing_extra_error("an image", error.name, "images") from error
    try:
        image: Any = Image.open(io.BytesIO(data), formats=[_format_of(data)])
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"the image has {width} x {height} pixels, at most {MAX_PIXELS} are read. Make it smaller")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("the image is damaged: its header cannot be read") from None
    except Exception as error:  # damaged files raise errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"the image is damaged: {reason[:200]}") from error


def _format_of(data: bytes) -> str:
    for name, signature in SIGNATURES.items():
        if data.startswith(signature) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    raise ImageError(f"an image must be {EXPECTED}, and this begins with {data[:8]!r}")
