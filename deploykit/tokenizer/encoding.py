"""Token ids of a text, of a pair or of a window, with their places in the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


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
class Tokens:
    """The tokens of a text alone, without special ones: `ids` of shape `(tokens,)`, `offsets` of `(tokens, 2)`."""

    ids: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.offsets[part])


@dataclass(frozen=True)
class Slot:
    """A place in an input: for the tokens of its first text (0) or its second (1), or (None) for a special token."""

    text: int | None
    special: Tokens
    type_id: int


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
