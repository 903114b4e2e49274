"""Tokenization: texts to int64 arrays with the library `tokenizers`, without torch or transformers.

Training, evaluation, parity checks and the service all use this module, so that they cannot drift apart.
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
from deploykit.tokenizer.encoding import Encoding, Features, Int64, Slot, Tokens, join_windows, lengthen

Batch = dict[str, Int64]
Side = Literal["left", "right"]
OVERLAP_DIVISOR = 4  # neighbouring windows of a long text share 1 / 4 of their tokens
MAX_CHARACTERS_PER_TOKEN = 16  # bounds the characters that are tokenized for the model's limit; words have 4 or 5
PORTION_CHARACTERS = 1_000_000  # of the texts that are tokenized in one call of the library


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer, and how its encodings are padded and cut.

    If `uses_type_ids` is False, all `type_ids` are 0: the model may have only one type of token.
    """

    backend: tokenizers.Tokenizer
    pad_id: int
    padding_side: Side
    unknown_id: int | None
    max_tokens: int
    uses_type_ids: bool = True

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "Tokenizer":
        """Opens the tokenizer of a model directory.

        Args:
            folder: holds `tokenizer.json` and `tokenizer_config.json`.
            max_tokens: longer inputs are cut to this length, special tokens included.

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
        uses_type_ids = "token_type_ids" in config.get("model_input_names", ["token_type_ids"])
        return cls(backend, pad_id, side, _special(backend, config, "unk_token"), max_tokens, uses_type_ids)

    def overwrite(self, folder: Path) -> None:
        """Replaces the tokenizer of a model directory, which must have all of its special tokens."""
        content = {**json.loads(self.backend.to_str()), "truncation": None}
        (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        if added := config.get("added_tokens_decoder"):
            tokens = {cast(int, self.backend.token_to_id(token["content"])): token for token in added.values()}
            config["added_tokens_decoder"] = {str(index): tokens[index] for index in sorted(tokens)}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / VOCABULARY).unlink(missing_ok=True)  # the old one; only other libraries read it

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[Encoding]:
        """Tokenizes texts, or pairs of texts, without padding, and cuts them to the length that the model reads.

        Of a pair the longer text is cut first, as by the library's strategy `longest_first`. The library's own
        truncation is not used: it combines the windows of both texts, so that time and memory grow with the product
        of their lengths.

        Args:
            texts: the first (or only) text of each input.
            pairs: the second texts, as many as `texts`. Texts of a pair are cut to `MAX_CHARACTERS_PER_TOKEN` for each
                token that the model reads before they are tokenized.
        """
        rows = list(zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True))
        limit = self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        firsts = self._tokens([text if pair is None else text[:limit] for text, pair in rows])
        seconds = self._tokens([pair[:limit] for _, pair in rows if pair is not None])
        return [
            self._cut(first) if pair is None else self._cut(first, next(seconds), max(len(text), len(pair)) > limit)
            for (text, pair), first in zip(rows, firsts, strict=True)
        ]

    def _cut(self, first: "Tokens", second: "Tokens | None" = None, truncated: bool = False) -> Encoding:
        parts = [first] if second is None else [first, second]
        lengths = longest_first(len(first), len(second or ()), self._capacity(len(parts)))
        cut = [tokens[:length] for tokens, length in zip(parts, lengths, strict=False)]
        return self._with_special(cut, truncated or sum(map(len, parts)) > sum(map(len, cut)))

    def windows(self, texts: Sequence[str], max_windows: int) -> "list[list[Features]]":
        """Tokenizes texts that may be longer than the model reads.

        Args:
            texts: no pairs.
            max_windows: of one text; the rest of the text is cut off. A text is also cut at `MAX_CHARACTERS_PER_TOKEN`
                characters for each token of these windows.

        Returns:
            For each text its windows, at least one; each overlaps with the one before.
        """
        limit = max_windows * self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        short = [text[:limit] for text in texts]
        rows = zip(texts, short, self._tokens(short), strict=True)
        return [self._windows(part, tokens, max_windows, len(text) > limit) for text, part, tokens in rows]

    def _windows(self, text: str, tokens: "Tokens", max_windows: int, truncated: bool) -> "list[Features]":
        capacity = self._capacity()
        step = capacity - capacity // OVERLAP_DIVISOR
        starts = range(0, max(len(tokens) - capacity, 0) + step, step)
        cut = truncated or len(starts) > max_windows
        starts = starts[:max_windows]
        encodings = [
            self._with_special([tokens[start : start + capacity]], cut and start == starts[-1]) for start in starts
        ]
        if len(encodings) == 1:
            return [Features(text, 0, encodings[0])]
        windows = []
        for encoding in encodings:
            is_text = encoding.offsets[:, 1] > encoding.offsets[:, 0]
            start = int(encoding.offsets[is_text, 0].min(initial=len(text)))
            end = int(encoding.offsets[:, 1].max(initial=0))
            offsets = np.where(is_text[:, None], encoding.offsets - start, 0)
            windows.append(Features(text[start:end], start, replace(encoding, offsets=offsets)))
        return windows

    def windows_beside(
        self, first: str, second: str, number: int, max_windows: int, overlap: int, max_first_tokens: int
    ) -> "list[Features]":
        """Tokenizes pairs of a short text and each of the overlapping windows of a text that may be long.

        Args:
            first: the short text, in each pair the first.
            second: the text that is read in windows; offsets are into it.
            number: of the second text, for `part`.
            max_windows: of the second text; the rest of it is cut off.
            overlap: tokens that neighbouring windows share, at most half of a window.
            max_first_tokens: to which the first text is cut.

        Returns:
            At least one window. `part` is the number and the slice of the tokens that belong to the second text.
        """
        limit = max_windows * self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        head, tokens = self._tokens([first[: max_first_tokens * MAX_CHARACTERS_PER_TOKEN], second[:limit]])
        capacity = self._capacity(2)
        head = head[: min(max_first_tokens, capacity // 2)]
        width = capacity - len(head)
        step = max(1, width - min(overlap, width // 2))
        starts = range(0, max(len(tokens) - width, 0) + step, step)[:max_windows]
        cut = len(second) > limit or starts[-1] + width < len(tokens)
        windows = []
        for start in starts:
            part = tokens[start : start + width]
            encoding = self._with_special([head, part], cut and start == starts[-1])
            begin = self._place_of_second(len(head))
            windows.append(Features(second, 0, encoding, part=(number, slice(begin, begin + len(part)))))
        return windows

    def _place_of_second(self, first_tokens: int) -> int:
        """Returns the index of the first token of the second text of a pair."""
        slots = [slot.text for slot in self._layouts[1]]
        before = slots[: slots.index(1)]
        return len(before) - before.count(0) + first_tokens * before.count(0)

    def _tokens(self, texts: Sequence[str]) -> "Iterator[Tokens]":
        """Tokenizes a portion of the texts at a time, because the library needs about 100 bytes for each token."""
        for portion in _portions(texts):
            for encoding in self.backend.encode_batch(list(portion), add_special_tokens=False):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                yield Tokens(np.array(encoding.ids, np.int64), offsets)

    def _capacity(self, texts: int = 1) -> int:
        """Returns the most tokens of one text, or of two, besides the special tokens of an input."""
        return max(1, self.max_tokens - len(self._layouts[texts - 1]) + texts)

    @cached_property
    def _layouts(self) -> "tuple[tuple[Slot, ...], tuple[Slot, ...]]":
        """The slots of an input of one text, and of two, as the tokenizer's own post-processor orders them."""
        letter = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106
        if self.backend.post_processor is not None:
            letter.post_processor = self.backend.post_processor
        return _slots(letter.encode("a")), _slots(letter.encode("a", "a"))

    def _with_special(self, parts: "Sequence[Tokens]", truncated: bool) -> Encoding:
        """Puts the tokens of one or two texts between the special tokens."""
        slots = self._layouts[len(parts) - 1]
        filled = [parts[slot.text] if slot.text is not None else slot.special for slot in slots]
        ids = np.concatenate([tokens.ids for tokens in filled])
        type_ids = np.zeros(len(ids), np.int64)
        if self.uses_type_ids and any(slot.type_id for slot in slots):
            type_ids = np.repeat([slot.type_id for slot in slots], [len(tokens) for tokens in filled]).astype(np.int64)
        return Encoding(
            ids=ids,
            type_ids=type_ids,
            offsets=np.concatenate([tokens.offsets for tokens in filled]),
            unknown=0 if self.unknown_id is None else int(np.count_nonzero(ids == self.unknown_id)),
            truncated=truncated,
        )

    def collate(self, encodings: Sequence[Encoding], padding_side: Side | None = None, tokens: int = 0) -> Batch:
        """Pads encodings to the longest of them.

        Args:
            encodings: at least one.
            padding_side: overrides the tokenizer's own side; parity checks try both.
            tokens: the least length, up to the most that the model reads.

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
            place = self.token_slice(len(encoding), width, padding_side)
            batch["input_ids"][row, place] = encoding.ids
            batch["attention_mask"][row, place] = 1
            batch["token_type_ids"][row, place] = encoding.type_ids
        return batch

    def blank_features(self) -> Features:
        """Returns the shortest input."""
        return Features("", 0, self.encode([""])[0])

    def token_slice(self, tokens: int, width: int, padding_side: Side | None = None) -> slice:
        """Returns the slice of a padded row of `width` that holds its `tokens`."""
        left = (padding_side or self.padding_side) == "left"
        return slice(width - tokens, width) if left else slice(0, tokens)


def longest_first(first: int, second: int, capacity: int) -> tuple[int, int]:
    """Cuts the lengths of a pair to `capacity` in total: first the longer one until both are equal, then both in turn.

    Args:
        first: tokens of the first text.
        second: tokens of the second text.
        capacity: the most tokens of both.
    """
    if first + second <= capacity:
        return first, second
    shorter = min(first, second, capacity // 2)
    return (shorter, capacity - shorter) if first <= second else (capacity - shorter, shorter)


def _slots(layout: tokenizers.Encoding) -> tuple[Slot, ...]:
    no_offset = np.zeros((1, 2), np.int64)
    rows = zip(layout.sequence_ids, layout.ids, layout.type_ids, strict=True)
    return tuple(Slot(text, Tokens(np.array([token], np.int64), no_offset), type_id) for text, token, type_id in rows)


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, characters = 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= PORTION_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, characters = end, 0


def _special(backend: tokenizers.Tokenizer, config: dict[str, object], role: str) -> int | None:
    token = config.get(role)
    if isinstance(token, dict):
        token = token.get("content")
    return backend.token_to_id(token) if isinstance(token, str) else None


__all__ = [
    "MAX_CHARACTERS_PER_TOKEN",
    "OVERLAP_DIVISOR",
    "Batch",
    "Encoding",
    "Features",
    "Int64",
    "Side",
    "Tokenizer",
    "join_windows",
    "lengthen",
    "longest_first",
]
