"""Images: reading them within limits, computing the pixels that a model reads, and counting their tokens.

Needs numpy, and Pillow when an image is decoded. Training, evaluation, the golden set and the service all use this
folder, so that they treat images in the same way.
"""

from deploykit.images.decoding import MAX_BYTES, MAX_PIXELS, MEDIA_TYPES, encode_base64, parse_image
from deploykit.images.tokens import AnyTokenizer, ImageTokenizer, load_tokenizer

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MEDIA_TYPES",
    "AnyTokenizer",
    "ImageTokenizer",
    "encode_base64",
    "load_tokenizer",
    "parse_image",
]
