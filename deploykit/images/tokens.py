"""The counterpart of `Tokenizer` for models that read images, alone or each with a text."""

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

PIXEL_VALUES = "pixel_values"  # the graph's input for images
FULL_LENGTH_MODEL_TYPES = ("siglip",)  # models that read every text at full length, padding included
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageTokenizer:
    """Prepares images, and tokenizes the texts that belong to them, with the methods of `Tokenizer`.

    The last `image_tokens` ids of an encoding stand for the patches of the image. No graph reads them; they make the
    length of an encoding count the work for the image.
    """

    preprocessing: Preprocessing
    image_tokens: int  # number of tokens that the model has for one image
    text_tokenizer: Tokenizer | None = None  # None: the model reads images alone
    pads_to_full_length: bool = False  # whether each text is padded to the length that the model reads

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> Self:
        """Opens the settings for images, and the tokenizer if there is one, of a model directory.

        Args:
            folder: holds `config.json`, `preprocessor_config.json` and, if the model reads texts, a tokenizer.
            max_tokens: maximum of image and text together; ignored for images alone.

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
        has_texts = (folder / TOKENIZER).is_file()
        text_tokenizer = Tokenizer.load(folder, max_tokens - image_tokens) if has_texts else None
        return cls(preprocessing, image_tokens, text_tokenizer, model_type in FULL_LENGTH_MODEL_TYPES)

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of an image and its text together."""
        return self.image_tokens + (self.text_tokenizer.max_tokens if self.text_tokenizer else 0)

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token, if the model reads texts."""
        return self.text_tokenizer.pad_id if self.text_tokenizer else None

    def make_features(self, images: Sequence[bytes | Path], texts: Sequence[str | None]) -> list[Features]:
        """Returns the features of images and their texts; pixels are computed only when they are read.

        Raises:
            InputError: a text is missing although the model reads texts, or there is one although it reads none.
        """
        if any((text is None) != (self.text_tokenizer is None) for text in texts):
            wanted = "an image and a text" if self.text_tokenizer else "an image alone, without a text"
            raise InputError(f"an input of this model is {wanted}")
        arrays = (Pixels(image, self.preprocessing) for image in images)
        rows = zip(texts, self.encode([text or "" for text in texts]), arrays, strict=True)
        return [Features(text or "", 0, encoding, pixels) for text, encoding, pixels in rows]

    def blank_features(self) -> Features:
        """Returns the features of a black image with an empty text, the shortest input of the model."""
        pixels = np.zeros((3, *self.preprocessing.size), np.float32)
        return Features("", 0, self.encode([""])[0], {PIXEL_VALUES: pixels})

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenizes texts as `Tokenizer.encode` does, and adds the tokens of an image to each."""
        if self.text_tokenizer is None:
            return [self._image_encoding] * len(texts)
        encodings = map(self._pad_to_full_length, self.text_tokenizer.encode(texts))
        return [_concatenate(encoding, self._image_encoding) for encoding in encodings]

    def collate(self, encodings: Sequence[Encoding], padding_side: Side | None = None, tokens: int = 0) -> Batch:
        """Pads the texts of encodings as `Tokenizer.collate` does; for images alone there are no arrays of tokens."""
        if self.text_tokenizer is None:
            return {}
        texts = [_first_tokens(encoding, len(encoding) - self.image_tokens) for encoding in encodings]
        return self.text_tokenizer.collate(texts, padding_side, tokens - self.image_tokens)

    def token_slice(self, tokens: int, width: int, padding_side: Side | None = None) -> slice:
        """Returns the slice that `tokens` tokens take in a padded row, as `Tokenizer.token_slice` does."""
        return self.text_tokenizer.token_slice(tokens, width, padding_side) if self.text_tokenizer else slice(0, tokens)

    @cached_property
    def _image_encoding(self) -> Encoding:
        return _padding(self.image_tokens, self.pad_id or 0)

    def _pad_to_full_length(self, encoding: Encoding) -> Encoding:
        """Returns a text with the padding that the model reads, if `pads_to_full_length` says that it does."""
        if not self.pads_to_full_length or self.text_tokenizer is None:
            return encoding
        missing_tokens = self.text_tokenizer.max_tokens - len(encoding)
        return _concatenate(encoding, _padding(missing_tokens, self.text_tokenizer.pad_id))


AnyTokenizer = Tokenizer | ImageTokenizer


class Pixels(Mapping[str, Array]):
    """A mapping with the pixels of one image, computed at each access, so that waiting images need little memory."""

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
    """Opens the tokenizer of an artifact: an `ImageTokenizer` if the model reads images, else a `Tokenizer`."""
    return (ImageTokenizer if (folder / PREPROCESSOR).is_file() else Tokenizer).load(folder, max_tokens)


def _padding(tokens: int, pad_id: int) -> Encoding:
    """Returns an encoding of `tokens` padding tokens."""
    ids = np.full(tokens, pad_id, np.int64)
    return Encoding(ids, np.zeros_like(ids), np.zeros((tokens, 2), np.int64), unknown=0, truncated=False)


def _concatenate(first: Encoding, second: Encoding) -> Encoding:
    """Returns the tokens of the first encoding followed by those of the second; all else is that of the first."""
    return replace(
        first,
        ids=np.concatenate([first.ids, second.ids]),
        type_ids=np.concatenate([first.type_ids, second.type_ids]),
        offsets=np.concatenate([first.offsets, second.offsets]),
    )


def _first_tokens(encoding: Encoding, tokens: int) -> Encoding:
    """Returns the encoding without the tokens after the first `tokens`."""
    ids, type_ids, offsets = encoding.ids[:tokens], encoding.type_ids[:tokens], encoding.offsets[:tokens]
    return replace(encoding, ids=ids, type_ids=type_ids, offsets=offsets)
