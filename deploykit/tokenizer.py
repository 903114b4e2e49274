"""The one tokenization path: text to int64 arrays with the `tokenizers` library.

Training, evaluation, parity checks and the service all come through here, so they cannot drift apart.
Reads only the files `tokenizer.json` and `tokenizer_config.json`; needs neither torch nor transformers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import tokenizers

from deploykit.artifact import TOKENIZER, TOKENIZER_CONFIG, VOCABULARY
from deploykit.errors import ModelError

Int64 = npt.NDArray[np.int64]
Batch = dict[str, Int64]
Side = Literal["left", "right"]
OVERLAP = 4  # a window of a long text shares a part of one in so many with the one before


@dataclass(frozen=True)
class Encoding:
    """One tokenized input.

    `ids` and `type_ids` have shape `(tokens,)`; `offsets` has shape `(tokens, 2)` and holds character
    offsets into the text, (0, 0) for special tokens. `windows` is how many parts the text was read in, and
    `truncated` says that its end was not read.
    """

    ids: Int64
    type_ids: Int64
    offsets: Int64
    unknown: int
    truncated: bool
    windows: int = 1

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with what batching needs to know.

    Where the model does not tell types of tokens apart (`typed`), all are 0: it may have only one.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    padding_side: Side
    unknown_id: int | None
    max_tokens: int
    typed: bool = True

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "Tokenizer":
        """Opens the tokenizer of a model directory.

        Args:
            folder: holds `tokenizer.json` and `tokenizer_config.json`.
            max_tokens: longer inputs are cut to this many tokens, special tokens included.

        Raises:
            ModelError: a file is missing or names no padding token.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
            config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception for a missing file
            raise ModelError(
                f"{folder} has no fast tokenizer that can be read ({error})."
                f" Expected {TOKENIZER} and {TOKENIZER_CONFIG}."
            ) from error
        pad_id = _special(backend, config, "pad_token")
        if pad_id is None:
            raise ModelError(f"{folder / TOKENIZER_CONFIG} names no padding token. Add one, for example the end token.")
        backend.no_padding()
        truncate(backend, max_tokens)
        side: Side = "left" if config.get("padding_side") == "left" else "right"
        typed = "token_type_ids" in config.get("model_input_names", ["token_type_ids"])
        return cls(backend, pad_id, side, _special(backend, config, "unk_token"), max_tokens, typed)

    def replace(self, folder: Path) -> None:
        """Writes itself over the tokenizer of a model directory; its special tokens are a part of that one's."""
        content = {**json.loads(self.backend.to_str()), "truncation": None}
        (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        if added := config.get("added_tokens_decoder"):
            places = {cast(int, self.backend.token_to_id(token["content"])): token for token in added.values()}
            config["added_tokens_decoder"] = {str(place): places[place] for place in sorted(places)}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / VOCABULARY).unlink(missing_ok=True)  # only other libraries read it, and it is the old one

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[Encoding]:
        """Tokenizes texts, or pairs of texts, without padding.

        Args:
            texts: the first (or only) text of each input.
            pairs: the second texts, as many as `texts`.
        """
        if pairs is None:
            pairs = [None] * len(texts)
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)]
        return [self._encoding(found) for found in self.backend.encode_batch(inputs)]

    def windows(self, texts: Sequence[str], most: int) -> "list[list[Window]]":
        """Tokenizes texts that may be longer than the model reads.

        Args:
            texts: single ones, no pairs.
            most: windows of one text; what they do not hold is cut off.

        Returns:
            For each text its windows, at least one, each overlapping with the one before.
        """
        found = self.backend.encode_batch(list(texts))
        return [self._windows(text, whole, most) for text, whole in zip(texts, found, strict=True)]

    def _windows(self, text: str, whole: tokenizers.Encoding, most: int) -> "list[Window]":
        parts = [self._encoding(part) for part in (whole, *whole.overflowing)[:most]]
        cut = len(whole.overflowing) >= most
        if len(parts) == 1:
            return [Window(text, 0, replace(parts[0], truncated=cut))]
        windows = []
        for part in parts:
            real = part.offsets[:, 1] > part.offsets[:, 0]
            start, end = int(part.offsets[real, 0].min(initial=len(text))), int(part.offsets[:, 1].max(initial=0))
            offsets = np.where(real[:, None], part.offsets - start, 0)
            windows.append(Window(text[start:end], start, replace(part, offsets=offsets, truncated=False)))
        last = windows[-1]
        return [*windows[:-1], replace(last, encoding=replace(last.encoding, truncated=cut))]

    def _encoding(self, found: tokenizers.Encoding) -> Encoding:
        ids = np.array(found.ids, dtype=np.int64)
        return Encoding(
            ids=ids,
            type_ids=np.array(found.type_ids, dtype=np.int64) * int(self.typed),
            offsets=np.array(found.offsets, dtype=np.int64).reshape(-1, 2),
            unknown=0 if self.unknown_id is None else int((ids == self.unknown_id).sum()),
            truncated=bool(found.overflowing),
        )

    def longest(self, text: str) -> str:
        """Repeats a text until no longer input can be read."""
        return " ".join([text] * self.max_tokens)

    def collate(self, encodings: Sequence[Encoding], padding_side: Side | None = None, tokens: int = 0) -> Batch:
        """Pads encodings to the longest of them.

        Args:
            encodings: at least one.
            padding_side: overrides the tokenizer's own side; parity checks try both.
            tokens: pads to so many at least, as far as the model reads.

        Returns:
            `input_ids`, `attention_mask` and `token_type_ids`, each int64 of shape `(batch, tokens)`.
        """
        width = max(*map(len, encodings), min(tokens, self.max_tokens))
        batch = {
            "input_ids": np.full((len(encodings), width), self.pad_id, dtype=np.int64),
            "attention_mask": np.zeros((len(encodings), width), dtype=np.int64),
            "token_type_ids": np.zeros((len(encodings), width), dtype=np.int64),
        }
        for row, encoding in enumerate(encodings):
            place = self.place(len(encoding), width, padding_side)
            batch["input_ids"][row, place] = encoding.ids
            batch["attention_mask"][row, place] = 1
            batch["token_type_ids"][row, place] = encoding.type_ids
        return batch

    def place(self, tokens: int, width: int, padding_side: Side | None = None) -> slice:
        """Returns where in a padded row of `width` the `tokens` real ones stand."""
        left = (padding_side or self.padding_side) == "left"
        return slice(width - tokens, width) if left else slice(0, tokens)


@dataclass(frozen=True)
class Window:
    """A part of a text that the model reads at once; its encoding's offsets count from `start`."""

    text: str
    start: int
    encoding: Encoding


def joined(windows: Sequence[Window]) -> Encoding:
    """Returns what was read of a text in all its windows, with offsets into the whole of it."""
    if len(windows) == 1:
        return windows[0].encoding
    found = [window.encoding for window in windows]
    real = [one.offsets[:, 1:] > one.offsets[:, :1] for one in found]
    places = [
        np.where(shown, one.offsets + window.start, 0) for shown, one, window in zip(real, found, windows, strict=True)
    ]
    return Encoding(
        ids=np.concatenate([one.ids for one in found]),
        type_ids=np.concatenate([one.type_ids for one in found]),
        offsets=np.concatenate(places),
        unknown=sum(one.unknown for one in found),
        truncated=found[-1].truncated,
        windows=len(found),
    )


def truncate(backend: tokenizers.Tokenizer, max_tokens: int) -> None:
    """Makes a tokenizer cut inputs to this many tokens, and keep the rest as overlapping windows."""
    room = max_tokens - backend.num_special_tokens_to_add(is_pair=False)
    backend.enable_truncation(max_tokens, stride=max(room, 0) // OVERLAP)


def _special(backend: tokenizers.Tokenizer, config: dict[str, object], role: str) -> int | None:
    token = config.get(role)
    if isinstance(token, dict):
        token = token.get("content")
    return backend.token_to_id(token) if isinstance(token, str) else None
