"""Token ids of a text, of a pair or of a window, with their offsets in the text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """One tokenized input.

    `ids` and `type_ids` have shape `(tokens,)`; `offsets` has shape `(tokens, 2)` and holds character offsets into the
    text, (0, 0) for special tokens. `unknown` counts unknown tokens, `windows` the windows of the text, and `truncated`
    says that its end was cut off.
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
    """The tokens of a text without special tokens: `ids` of shape `(tokens,)`, `offsets` of shape `(tokens, 2)`."""

    ids: Int64
    offsets: Int64

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], self.offsets[part])


@dataclass(frozen=True)
class Slot:
    """A part of an input: the tokens of its first text (0) or of its second (1), or (None) a special token."""

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
    """Joins the windows of a text; offsets are into the whole text, and overlaps occur twice."""
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
