"""Reads images from untrusted sources: PNG, JPEG and WebP files, up to a number of bytes and pixels."""

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import ImageError, missing_extra_error

MAX_BYTES = 8 * 2**20  # of a file; photographs of 12 megapixels have 3 to 6 MiB
MAX_PIXELS = 32_000_000  # about 100 MB once decoded; a file of a few kilobytes could hold a thousand times as many
SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}  # first bytes, by Pillow's format
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
EXPECTED_FILE = "a PNG, JPEG or WebP file"


def parse_image(value: Any) -> bytes | Path:
    """Returns the bytes of an image that is given in base64, alone or in a data URL; bytes and paths stay as they are.

    A text is never read as a path, because texts come from clients.

    Raises:
        ImageError: the text is not base64, or the image is too large or not in one of the formats.
    """
    if isinstance(value, Path):
        return value
    if isinstance(value, str):
        encoded = value.partition(",")[2] if value.startswith("data:") else value
        try:
            value = base64.b64decode(encoded.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise ImageError(f"an image must be {EXPECTED_FILE} in base64, alone or in a data URL") from None
    if not isinstance(value, bytes):
        raise ImageError(f"an image must be {EXPECTED_FILE}, got {type(value).__name__}")
    if len(value) > MAX_BYTES:
        raise ImageError(f"the image has {len(value)} bytes, at most {MAX_BYTES} are read. Make it smaller")
    _format_of(value)
    return value


def encode_base64(image: bytes | Path) -> str:
    """Returns an image in base64, as `parse_image` accepts it."""
    return base64.b64encode(read_bytes(image)).decode()


def read_bytes(image: bytes | Path) -> bytes:
    """Returns the bytes of an image; those of a path are read from its file.

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
        parse_image(data)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from None
    return data


def decode(data: bytes) -> Any:
    """Returns a file's image as an RGB image of Pillow.

    It is turned as its EXIF data says, transparent parts become white, and an animation is read up to its first frame.

    Raises:
        ImageError: the file is damaged, or the image has more than `MAX_PIXELS` pixels.
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
        if image.mode.startswith("I"):  # grey values of 16 bits; `convert` would turn all above 255 into white
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
    """Returns Pillow's name of a file's format; raises ImageError if the file is in none of the formats."""
    for name, signature in SIGNATURES.items():
        if data.startswith(signature) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    raise ImageError(f"an image must be {EXPECTED_FILE}, and this begins with {data[:8]!r}")
