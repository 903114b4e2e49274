"""What stands in the place of a tokenizer for a model that reads images, alone or each with a text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deploykit.artifact import CONFIG, PREPROCESSOR, TOKENIZER
from deploykit.errors import InputError, ModelError
from deploykit.images.preprocessing import IMAGE_TOKENS_KEY, Preprocessing
from deploykit.tokenizer import Batch, Encoding, Features, Side, Tokenizer

PIXEL_VALUES = "pixel_values"  # name of the graph's input
FIXED_LENGTH_TYPES = ("siglip",)  # read each text at full length, padding included
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageTokenizer:
    """Prepares images, and tokenizes the texts that belong to them, with the interface of `Tokenizer`.

    The last `image_tokens` ids of an encoding stand for the patches of the image, so that the costs of batches count
    them. No graph reads them. `text` is None for a model that reads images alone.
    """

    preprocessing: Preprocessing
    image_tokens: int
    text_tokenizer: Tokenizer | None = None
    pads_to_full_length: bool = False

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> Self:
        """Opens what a model directory holds.

        Args:
            folder: holds `config.json`, `preprocessor_config.json` and, if the model reads texts, a tokenizer.
            max_tokens: of image and text together; ignored for images alone.

        Raises:
            ModelError: a file is missing or not supported.
        """
        try:
            settings = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
            preprocessing, image_tokens = Preprocessing.of(settings), int(settings[IMAGE_TOKENS_KEY])
            model_type = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ModelError(f"{folder / PREPROCESSOR} cannot be used: {reason}.") from error
        text = Tokenizer.load(folder, max_tokens - image_tokens) if (folder / TOKENIZER).is_file() else None
        return cls(preprocessing, image_tokens, text, model_type in FIXED_LENGTH_TYPES)

    @property
    def max_tokens(self) -> int:
        """The most tokens of an image and its text."""
        return self.image_tokens + (self.text_tokenizer.max_tokens if self.text_tokenizer else 0)

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token, if the model reads texts."""
        return self.text_tokenizer.pad_id if self.text_tokenizer else None

    def make_features(self, images: Sequence[bytes | Path], texts: Sequence[str | None]) -> list[Features]:
        """Returns what the model reads of images and their texts; pixels are made when they are needed.

        Raises:
            InputError: the model reads a text, and one is missing, or it reads none.
        """
        if any((text is None) != (self.text_tokenizer is None) for text in texts):
            wanted = "an image and a text" if self.text_tokenizer else "an image alone, without a text"
            raise InputError(f"an input of this model is {wanted}")
        arrays = (Pixels(image, self.preprocessing) for image in images)
        rows = zip(texts, self.encode([text or "" for text in texts]), arrays, strict=True)
        return [Features(text or "", 0, encoding, pixels) for text, encoding, pixels in rows]

    def blank_features(self) -> Features:
        """Returns the shortest input."""
        return Features(
            "", 0, self.encode([""])[0], {PIXEL_VALUES: np.zeros((3, *self.preprocessing.size), np.float32)}
        )

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenizes texts, and adds the tokens of an image to each; see `Tokenizer.encode`."""
        if self.text_tokenizer is None:
            return [self._image] * len(texts)
        return [_joined(self._filled(encoding), self._image) for encoding in self.text_tokenizer.encode(texts)]

    def collate(self, encodings: Sequence[Encoding], padding_side: Side | None = None, tokens: int = 0) -> Batch:
        """Pads the texts of encodings as `Tokenizer.collate` does; images have no arrays of tokens."""
        if self.text_tokenizer is None:
            return {}
        texts = [_cut(encoding, len(encoding) - self.image_tokens) for encoding in encodings]
        return self.text_tokenizer.collate(texts, padding_side, tokens - self.image_tokens)

    def token_slice(self, tokens: int, width: int, padding_side: Side | None = None) -> slice:
        """Returns the slice of a padded row that holds its tokens; see `Tokenizer.token_slice`."""
        return self.text_tokenizer.token_slice(tokens, width, padding_side) if self.text_tokenizer else slice(0, tokens)

    @cached_property
    def _image(self) -> Encoding:
        return _padding(self.image_tokens, self.pad_id or 0)

    def _filled(self, encoding: Encoding) -> Encoding:
        """Adds padding that the model reads, if it reads each text at full length."""
        if not self.pads_to_full_length or self.text_tokenizer is None:
            return encoding
        return _joined(encoding, _padding(self.text_tokenizer.max_tokens - len(encoding), self.text_tokenizer.pad_id))


AnyTokenizer = Tokenizer | ImageTokenizer


class Pixels(Mapping[str, Array]):
    """The array of an image, made whenever it is read, so that many images need no more memory than their files."""

    def __init__(self, image: bytes | Path, preprocessing: Preprocessing) -> None:
        self._image, self._preprocessing = image, preprocessing

    def __getitem__(self, name: str) -> Array:
        if name != PIXEL_VALUES:
            raise KeyError(name)
        return self._preprocessing.pixels(self._image)

    def __iter__(self) -> Iterator[str]:
        return iter((PIXEL_VALUES,))

    def __len__(self) -> int:
        return 1


def load_tokenizer(folder: Path, max_tokens: int) -> AnyTokenizer:
    """Opens the tokenizer of an artifact, or what stands in its place if the model reads images."""
    return (ImageTokenizer if (folder / PREPROCESSOR).is_file() else Tokenizer).load(folder, max_tokens)


def _padding(tokens: int, pad_id: int) -> Encoding:
    ids = np.full(tokens, pad_id, np.int64)
    return Encoding(ids, np.zeros_like(ids), np.zeros((tokens, 2), np.int64), unknown=0, truncated=False)


def _joined(first: Encoding, second: Encoding) -> Encoding:
    return replace(
        first,
        ids=np.concatenate([first.ids, second.ids]),
        type_ids=np.concatenate([first.type_ids, second.type_ids]),
        offsets=np.concatenate([first.offsets, second.offsets]),
    )


def _cut(encoding: Encoding, tokens: int) -> Encoding:
    ids, type_ids, offsets = encoding.ids[:tokens], encoding.type_ids[:tokens], encoding.offsets[:tokens]
    return replace(encoding, ids=ids, type_ids=type_ids, offsets=offsets)
