"""Token ids with their offsets in the text: of a text, of an input of the model, and of the windows of a long text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """One tokenized input of the model, with special tokens and without padding.

    Attributes:
        ids: `(tokens,)`.
        type_ids: `(tokens,)`.
        offsets: start and end of each token in characters of the text, `(tokens, 2)`; (0, 0) for special tokens.
        unknown: number of tokens that are unknown to the tokenizer.
        truncated: whether the end of the text was cut off.
        windows: number of windows that the tokens come from.
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
class Tokens:
    """The tokens of a text, without special tokens."""

    ids: Int64  # (tokens,)
    offsets: Int64  # (tokens, 2), start and end in characters

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tokens: slice) -> "Tokens":
        return Tokens(self.ids[tokens], self.offsets[tokens])


@dataclass(frozen=True)
class Slot:
    """A place in the layout of an input, for a special token or for all tokens of a text."""

    text: int | None  # 0: all tokens of the first text, 1: of the second, None: a special token
    special: Tokens  # the special token; not used for a text
    type_id: int  # of the tokens in this place


@dataclass(frozen=True)
class Features:
    """What the model reads in one pass: a text, a window of a long text, or a pair of texts.

    Attributes:
        text: the text, or the part of it that the window shows.
        start: character offset of `text` in the whole text.
        encoding: its tokens; their offsets count from the beginning of `text`.
        arrays: further inputs of the graph by name, such as pixels, without the axis of the batch. All features of a
            model have the same shapes.
        part: what the task needs to read the outputs, in a type that the task chooses.
    """

    text: str
    start: int
    encoding: Encoding
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    part: Any = None

    def __len__(self) -> int:
        return len(self.encoding)

    def with_loaded_arrays(self) -> "Features":
        """Returns the same features with all arrays in memory; pixels are otherwise computed at each access."""
        return replace(self, arrays=dict(self.arrays)) if self.arrays else self


def lengthen(features: Features, tokens: int) -> Features:
    """Returns features with more tokens, for checks and timings: all tokens but the first and last are repeated.

    They have no text and no offsets, so outputs for them cannot be decoded.

    Args:
        features: of any input.
        tokens: new number of tokens, at least the old one.
    """
    encoding, inner_tokens = features.encoding, max(len(features) - 2, 1)
    repeated = 1 + np.arange(tokens - 2) * inner_tokens // max(tokens - 2, 1)
    sources = np.minimum([0, *repeated, len(features) - 1], len(features) - 1)[:tokens]  # old index of each new token
    ids, type_ids, offsets = encoding.ids[sources], encoding.type_ids[sources], np.zeros((tokens, 2), np.int64)
    return replace(features, text="", encoding=Encoding(ids, type_ids, offsets, unknown=0, truncated=False))


def join_windows(windows: Sequence[Features]) -> Encoding:
    """Returns the concatenated tokens of all windows of a text; those that two windows share occur twice.

    The offsets are into the whole text.
    """
    if len(windows) == 1:
        return windows[0].encoding
    encodings = [window.encoding for window in windows]
    offsets = []
    for window, encoding in zip(windows, encodings, strict=True):
        is_text = encoding.offsets[:, 1:] > encoding.offsets[:, :1]
        offsets.append(np.where(is_text, encoding.offsets + window.start, 0))
    return Encoding(
        ids=np.concatenate([encoding.ids for encoding in encodings]),
        type_ids=np.concatenate([encoding.type_ids for encoding in encodings]),
        offsets=np.concatenate(offsets),
        unknown=sum(encoding.unknown for encoding in encodings),
        truncated=encodings[-1].truncated,
        windows=len(encodings),
    )


def longest_first(first: int, second: int, capacity: int) -> tuple[int, int]:
    """Returns how many tokens of each text of a pair are kept, as the library's strategy `longest_first` does.

    The longer text is shortened until both have the same length, then both in turn.

    Args:
        first: number of tokens of the first text.
        second: number of tokens of the second text.
        capacity: maximum number of tokens of both together.
    """
    if first + second <= capacity:
        return first, second
    shorter = min(first, second, capacity // 2)
    return (shorter, capacity - shorter) if first <= second else (capacity - shorter, shorter)
