"""Tokenization: texts to int64 arrays with the library `tokenizers`, without torch or transformers.

Training, evaluation, parity checks and the service all use this module, so that they treat texts in the same way.
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
from deploykit.tokenizer.encoding import Encoding, Features, Int64, Slot, Tokens, join_windows, lengthen, longest_first

Batch = dict[str, Int64]
Side = Literal["left", "right"]
OVERLAP_DIVISOR = 4  # neighbouring windows of a long text share 1 / 4 of their tokens
# Before a text is tokenized, it is cut to this many characters for each token that the model can read of it, so that
# huge texts take no longer. English tokens have about 4 characters.
MAX_CHARACTERS_PER_TOKEN = 16
PORTION_CHARACTERS = 1_000_000  # one call of the library tokenizes texts until they have this many characters together


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer, and how its encodings are padded and cut."""

    backend: tokenizers.Tokenizer
    pad_id: int
    padding_side: Side
    unknown_id: int | None  # None: the tokenizer has no token for what it does not know
    max_tokens: int  # that the model reads at once, special tokens included
    uses_type_ids: bool = True  # False: all are 0, because the model may have only one type of token

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
        pad_id = _special_id(backend, config, "pad_token")
        if pad_id is None:
            raise ModelError(f"{folder / TOKENIZER_CONFIG} names no padding token. Add one, for example the end token.")
        backend.no_padding()
        backend.no_truncation()  # see `encode`
        side: Side = "left" if config.get("padding_side") == "left" else "right"
        uses_type_ids = "token_type_ids" in config.get("model_input_names", ["token_type_ids"])
        return cls(backend, pad_id, side, _special_id(backend, config, "unk_token"), max_tokens, uses_type_ids)

    def overwrite(self, folder: Path) -> None:
        """Writes this tokenizer over that of a model directory, which must have the same special tokens."""
        content = {**json.loads(self.backend.to_str()), "truncation": None}
        (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        if added := config.get("added_tokens_decoder"):  # its keys are ids, which differ in the new vocabulary
            tokens = {cast(int, self.backend.token_to_id(token["content"])): token for token in added.values()}
            config["added_tokens_decoder"] = {str(index): tokens[index] for index in sorted(tokens)}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / VOCABULARY).unlink(missing_ok=True)  # of the old tokenizer; deploykit does not read it

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> list[Encoding]:
        """Tokenizes texts, or pairs of texts, without padding, and cuts them to `max_tokens`.

        Of a pair the longer text is cut first, as by the library's strategy `longest_first`. The library's own
        truncation is not used: it combines the windows of both texts, so that time and memory grow with the product
        of their lengths.

        Args:
            texts: the first or only text of each input.
            pairs: the second text of each input; None: it has none. Both texts of a pair are first cut to
                `MAX_CHARACTERS_PER_TOKEN` characters for each of `max_tokens`.
        """
        rows = list(zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True))
        limit = self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        firsts = self._tokens([text if pair is None else text[:limit] for text, pair in rows])
        seconds = self._tokens([pair[:limit] for _, pair in rows if pair is not None])
        return [
            self._truncate(first)
            if pair is None
            else self._truncate(first, next(seconds), is_cut=max(len(text), len(pair)) > limit)
            for (text, pair), first in zip(rows, firsts, strict=True)
        ]

    def _truncate(self, first: "Tokens", second: "Tokens | None" = None, *, is_cut: bool = False) -> Encoding:
        """Cuts the tokens of one text or two to the length of an input, and adds the special tokens.

        `is_cut` says that characters were cut off before tokenizing.
        """
        texts = [first] if second is None else [first, second]
        lengths = longest_first(len(first), len(second or ()), self._capacity(len(texts)))
        kept = [tokens[:length] for tokens, length in zip(texts, lengths, strict=False)]
        return self._with_special(kept, truncated=is_cut or sum(map(len, texts)) > sum(map(len, kept)))

    def windows(self, texts: Sequence[str], max_windows: int) -> "list[list[Features]]":
        """Tokenizes texts that may be longer than the model reads at once, in overlapping windows.

        Args:
            texts: single texts, not pairs.
            max_windows: of one text; the rest of the text is cut off. Before tokenizing, a text is cut to
                `MAX_CHARACTERS_PER_TOKEN` characters for each token of these windows.

        Returns:
            For each text its windows, at least one, in order.
        """
        limit = max_windows * self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        short = [text[:limit] for text in texts]
        rows = zip(texts, short, self._tokens(short), strict=True)
        return [self._windows(cut, tokens, max_windows, is_cut=len(text) > limit) for text, cut, tokens in rows]

    def _windows(self, text: str, tokens: "Tokens", max_windows: int, *, is_cut: bool) -> "list[Features]":
        """Divides the tokens of a text into windows; `is_cut` says that the text went on before it was tokenized."""
        capacity = self._capacity()
        step = capacity - capacity // OVERLAP_DIVISOR
        starts = range(0, max(len(tokens) - capacity, 0) + step, step)
        is_cut = is_cut or len(starts) > max_windows
        starts = starts[:max_windows]
        encodings = [
            self._with_special([tokens[start : start + capacity]], truncated=is_cut and start == starts[-1])
            for start in starts
        ]
        if len(encodings) == 1:
            return [Features(text, 0, encodings[0])]
        windows = []
        for encoding in encodings:
            is_text = encoding.offsets[:, 1] > encoding.offsets[:, 0]
            start = int(encoding.offsets[is_text, 0].min(initial=len(text)))
            end = int(encoding.offsets[:, 1].max(initial=0))
            offsets = np.where(is_text[:, None], encoding.offsets - start, 0)
            # The text of a window begins with its first token, and its offsets count from there.
            windows.append(Features(text[start:end], start, replace(encoding, offsets=offsets)))
        return windows

    def paired_windows(
        self, first: str, second: str, number: int, max_windows: int, overlap: int, max_first_tokens: int
    ) -> "list[Features]":
        """Tokenizes pairs: a short text, such as a question, with each overlapping window of a text that may be long.

        Args:
            first: the short text, which comes first in every pair.
            second: the text that is read in windows; offsets are into it.
            number: index of the second text among several, for `part`.
            max_windows: of the second text; the rest of it is cut off.
            overlap: tokens that neighbouring windows share; at most half of a window.
            max_first_tokens: length to which the first text is cut.

        Returns:
            At least one window. `part` is `number` and the slice of the tokens that belong to the second text.
        """
        limit = max_windows * self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        head, tokens = self._tokens([first[: max_first_tokens * MAX_CHARACTERS_PER_TOKEN], second[:limit]])
        capacity = self._capacity(2)
        head = head[: min(max_first_tokens, capacity // 2)]
        width = capacity - len(head)
        step = max(1, width - min(overlap, width // 2))
        starts = range(0, max(len(tokens) - width, 0) + step, step)[:max_windows]
        is_cut = len(second) > limit or starts[-1] + width < len(tokens)
        second_start = self._start_of_second(len(head))
        windows = []
        for start in starts:
            shown = tokens[start : start + width]
            encoding = self._with_special([head, shown], truncated=is_cut and start == starts[-1])
            second_tokens = slice(second_start, second_start + len(shown))
            windows.append(Features(second, 0, encoding, part=(number, second_tokens)))
        return windows

    def _start_of_second(self, first_tokens: int) -> int:
        """Returns the index of the second text's first token in a pair whose first text has `first_tokens` tokens."""
        slots = [slot.text for slot in self._layouts[1]]
        before = slots[: slots.index(1)]
        return len(before) - before.count(0) + first_tokens * before.count(0)

    def _tokens(self, texts: Sequence[str]) -> "Iterator[Tokens]":
        """Yields the tokens of each text; the library, which needs about 100 bytes per token, gets portions of them."""
        for portion in _portions(texts):
            for encoding in self.backend.encode_batch(list(portion), add_special_tokens=False):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                yield Tokens(np.array(encoding.ids, np.int64), offsets)

    def _capacity(self, texts: int = 1) -> int:
        """Returns how many tokens of one text, or of two together, an input holds besides its special tokens."""
        special_tokens = len(self._layouts[texts - 1]) - texts  # the layout has one slot for each text
        return max(1, self.max_tokens - special_tokens)

    @cached_property
    def _layouts(self) -> "tuple[tuple[Slot, ...], tuple[Slot, ...]]":
        """The slots of an input of one text, and of one of two texts.

        They are what the tokenizer's post-processor makes of texts that have one token each.
        """
        letter = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106
        if self.backend.post_processor is not None:
            letter.post_processor = self.backend.post_processor
        return _slots(letter.encode("a")), _slots(letter.encode("a", "a"))

    def _with_special(self, texts: "Sequence[Tokens]", *, truncated: bool) -> Encoding:
        """Returns an input that has the tokens of one or two texts between the special tokens."""
        slots = self._layouts[len(texts) - 1]
        filled = [texts[slot.text] if slot.text is not None else slot.special for slot in slots]
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
        """Pads encodings to the longest of them, or to a larger given length.

        Args:
            encodings: at least one.
            padding_side: replaces the tokenizer's own side; parity checks try both.
            tokens: minimum length; values above `max_tokens` count as `max_tokens`.

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
            columns = self.token_slice(len(encoding), width, padding_side)
            batch["input_ids"][row, columns] = encoding.ids
            batch["attention_mask"][row, columns] = 1
            batch["token_type_ids"][row, columns] = encoding.type_ids
        return batch

    def blank_features(self) -> Features:
        """Returns the features of an empty text, the shortest input of the model."""
        return Features("", 0, self.encode([""])[0])

    def token_slice(self, tokens: int, width: int, padding_side: Side | None = None) -> slice:
        """Returns the slice that `tokens` tokens take in a padded row of length `width`."""
        pads_left = (padding_side or self.padding_side) == "left"
        return slice(width - tokens, width) if pads_left else slice(0, tokens)


def _slots(layout: tokenizers.Encoding) -> tuple[Slot, ...]:
    """Returns the slots of an input that was tokenized from texts of one token each."""
    no_offset = np.zeros((1, 2), np.int64)
    rows = zip(layout.sequence_ids, layout.ids, layout.type_ids, strict=True)
    return tuple(Slot(text, Tokens(np.array([token], np.int64), no_offset), type_id) for text, token, type_id in rows)


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divides texts into slices that have about `PORTION_CHARACTERS` characters each."""
    start, characters = 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= PORTION_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, characters = end, 0


def _special_id(backend: tokenizers.Tokenizer, config: dict[str, object], role: str) -> int | None:
    """Returns the id of a special token, such as `pad_token`; None if the tokenizer has none."""
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
