"""The one tokenization path: text to int64 arrays with the `tokenizers` library.

Training, evaluation, parity checks and the service all come through here, so they cannot drift apart.
Reads only the files `tokenizer.json` and `tokenizer_config.json`; needs neither torch nor transformers.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import tokenizers

from deploykit.artifact import TOKENIZER, TOKENIZER_CONFIG, VOCABULARY
from deploykit.errors import ModelError
from deploykit.tokenizer.encoding import Encoding, Int64, Slot, Tokens, Window, joined

Batch = dict[str, Int64]
Side = Literal["left", "right"]
OVERLAP = 4  # a window of a long text shares a part of one in so many with the one before
CHARACTERS = 16  # of a text of a pair that are tokenized for each token of the model's limit; words have 4 or 5
PORTION = 1_000_000  # characters that are tokenized at once


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
        backend.no_truncation()  # see `encode`
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
        """Tokenizes texts, or pairs of texts, without padding; what is longer than the model reads is cut off.

        Of a pair the longer text is cut first, as the library's strategy `longest_first` does. Its own truncation is
        not used: it makes windows of both texts and joins each with each, so that time and memory grow with the
        product of their lengths.

        Args:
            texts: the first (or only) text of each input.
            pairs: the second texts, as many as `texts`. Of each text of a pair, `CHARACTERS` for each token that the
                model reads are tokenized.
        """
        rows = list(zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True))
        limit = self.max_tokens * CHARACTERS
        firsts = self._tokens([text if pair is None else text[:limit] for text, pair in rows])
        seconds = self._tokens([pair[:limit] for _, pair in rows if pair is not None])
        return [
            self._cut(first) if pair is None else self._cut(first, next(seconds), max(len(text), len(pair)) > limit)
            for (text, pair), first in zip(rows, firsts, strict=True)
        ]

    def _cut(self, first: "Tokens", second: "Tokens | None" = None, truncated: bool = False) -> Encoding:
        parts = [first] if second is None else [first, second]
        kept = longest_first(len(first), len(second or ()), self._room(len(parts)))
        cut = [tokens[:count] for tokens, count in zip(parts, kept, strict=False)]
        return self._framed(cut, truncated=truncated or sum(map(len, parts)) > sum(map(len, cut)))

    def windows(self, texts: Sequence[str], most: int) -> "list[list[Window]]":
        """Tokenizes texts that may be longer than the model reads.

        Args:
            texts: single ones, no pairs.
            most: windows of one text; what they do not hold is cut off.

        Returns:
            For each text its windows, at least one, each overlapping with the one before.
        """
        return [self._windows(text, tokens, most) for text, tokens in zip(texts, self._tokens(texts), strict=True)]

    def _windows(self, text: str, tokens: "Tokens", most: int) -> "list[Window]":
        room = self._room()
        step = room - room // OVERLAP
        starts = range(0, max(len(tokens) - room, 0) + step, step)
        cut = len(starts) > most
        parts = [self._framed([tokens[start : start + room]]) for start in starts[:most]]
        if len(parts) == 1:
            return [Window(text, 0, replace(parts[0], truncated=cut))]
        windows = []
        for part in parts:
            real = part.offsets[:, 1] > part.offsets[:, 0]
            start, end = int(part.offsets[real, 0].min(initial=len(text))), int(part.offsets[:, 1].max(initial=0))
            offsets = np.where(real[:, None], part.offsets - start, 0)
            windows.append(Window(text[start:end], start, replace(part, offsets=offsets)))
        last = windows[-1]
        return [*windows[:-1], replace(last, encoding=replace(last.encoding, truncated=cut))]

    def _tokens(self, texts: Sequence[str]) -> "Iterator[Tokens]":
        """Tokenizes some texts at a time: the library needs about a hundred bytes for each token."""
        for portion in _portions(texts):
            for encoding in self.backend.encode_batch(list(portion), add_special_tokens=False):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                yield Tokens(np.array(encoding.ids, np.int64), offsets)

    def _room(self, texts: int = 1) -> int:
        """Returns how many tokens of one text, or of two, an input holds besides its special tokens."""
        return max(1, self.max_tokens - len(self._frames[texts - 1]) + texts)

    @cached_property
    def _frames(self) -> "tuple[tuple[Slot, ...], tuple[Slot, ...]]":
        """The slots of an input of one text, and of two, as the tokenizer's own post-processor lays them out."""
        letter = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106
        if self.backend.post_processor is not None:
            letter.post_processor = self.backend.post_processor
        return _slots(letter.encode("a")), _slots(letter.encode("a", "a"))

    def _framed(self, parts: "Sequence[Tokens]", truncated: bool = False) -> Encoding:
        """Puts one or two texts' tokens between the special tokens."""
        slots = self._frames[len(parts) - 1]
        filled = [parts[slot.text] if slot.text is not None else slot.special for slot in slots]
        ids = np.concatenate([tokens.ids for tokens in filled])
        return Encoding(
            ids=ids,
            type_ids=int(self.typed)
            * np.repeat([slot.type_id for slot in slots], [len(tokens) for tokens in filled]).astype(np.int64),
            offsets=np.concatenate([tokens.offsets for tokens in filled]),
            unknown=0 if self.unknown_id is None else int((ids == self.unknown_id).sum()),
            truncated=truncated,
        )

    def longest(self, text: str) -> str:
        """Repeats a text until no longer input can be read; of a long one, a part is enough.

        No more than `CHARACTERS` are returned for each token that the model reads.
        """
        limit = self.max_tokens * CHARACTERS
        tokens = next(self._tokens([text[:limit]]))
        return " ".join([text[:limit]] * -(-self.max_tokens // max(1, len(tokens))))[:limit]

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


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of each text of a pair stay where both together are to have at most `room`.

    What is left where the longer text is cut until both are equally long, and then both in turn.

    Args:
        first: tokens of the first text.
        second: tokens of the second.
        room: tokens that there is room for.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _slots(layout: tokenizers.Encoding) -> tuple[Slot, ...]:
    nowhere = np.zeros((1, 2), np.int64)
    rows = zip(layout.sequence_ids, layout.ids, layout.type_ids, strict=True)
    return tuple(Slot(text, Tokens(np.array([token], np.int64), nowhere), type_id) for text, token, type_id in rows)


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, characters = 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= PORTION or end == len(texts):
            yield texts[start:end]
            start, characters = end, 0


def _special(backend: tokenizers.Tokenizer, config: dict[str, object], role: str) -> int | None:
    token = config.get(role)
    if isinstance(token, dict):
        token = token.get("content")
    return backend.token_to_id(token) if isinstance(token, str) else None


__all__ = [
    "CHARACTERS",
    "OVERLAP",
    "PORTION",
    "Batch",
    "Encoding",
    "Int64",
    "Side",
    "Slot",
    "Tokenizer",
    "Tokens",
    "Window",
    "joined",
    "longest_first",
]
