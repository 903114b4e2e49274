"""Token ids of a text, of a pair or of a window, with their offsets in the text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
class Features:
    """What the model reads at once: a text, a window of a long text, or a pair of texts.

    The offsets of the encoding count from `start`, which is the place of `text` in the whole text. `arrays` are further
    inputs of the graph by name, without the axis of the batch; their shapes are the same in all features. `part` holds
    what the task needs to read the outputs.
    """

    text: str
    start: int
    encoding: Encoding
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    part: Any = None

    def __len__(self) -> int:
        return len(self.encoding)

    def with_loaded_arrays(self) -> "Features":
        """Returns the same features with their arrays in memory; those of images are made whenever they are read."""
        return replace(self, arrays=dict(self.arrays)) if self.arrays else self


def lengthen(features: Features, tokens: int) -> Features:
    """Returns features of more tokens, by repeating each of them but the first and last.

    They have no text and no offsets, so that outputs for them cannot be decoded.

    Args:
        features: that are repeated.
        tokens: the new number, at least as many as before.
    """
    encoding, inner = features.encoding, max(len(features) - 2, 1)
    stretched = 1 + np.arange(tokens - 2) * inner // max(tokens - 2, 1)
    places = np.minimum([0, *stretched, len(features) - 1], len(features) - 1)[:tokens]
    ids, type_ids, offsets = encoding.ids[places], encoding.type_ids[places], np.zeros((tokens, 2), np.int64)
    return replace(features, text="", encoding=Encoding(ids, type_ids, offsets, unknown=0, truncated=False))


def join_windows(windows: Sequence[Features]) -> Encoding:
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
