"""The texts that engines are timed on, with the lengths of labelled data or of the traffic of a running service.

A service counts the tokens of every text that it answers in the histogram `deploykit_input_tokens`, so a saved page of
its metrics tells the lengths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client.parser import text_string_to_metric_families

from deploykit.engines import Engine
from deploykit.errors import InputError
from deploykit.images import AnyTokenizer
from deploykit.inference.predictor import group_by_length, pad_for_engine
from deploykit.tasks import Arrays
from deploykit.tokenizer import Batch, Encoding, Features

LENGTH_QUANTILES = (
    0.5,
    0.1,
    0.95,
)  # one text is timed at each; the median is first, and timed alone where one suffices
MIXED_TEXTS = 128  # texts of mixed lengths, enough for several batches of each budget
HISTOGRAM = "deploykit_input_tokens"
ADVICE = "Save the page /metrics of a service after some traffic, with a key that has the scope metrics."


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, ascending, and the share of texts that have each; the shares sum to 1."""

    tokens: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def from_counts(cls, counts: Mapping[int, float] | Mapping[str, float]) -> "Lengths":
        """Normalizes how many texts, or what share of them, have each length in tokens.

        Raises:
            InputError: nothing was counted.

        Example:
            >>> Lengths.from_counts({12: 3, 8: 1})
            Lengths(tokens=(8, 12), shares=(0.25, 0.75))
        """
        total = sum(counts.values())
        if total <= 0:
            raise InputError("no text was counted, so there are no lengths to measure at. Count at least one text.")
        rows = sorted((int(tokens), count / total) for tokens, count in counts.items() if count > 0)
        return cls(tuple(tokens for tokens, _ in rows), tuple(share for _, share in rows))

    @classmethod
    def from_metrics(cls, page: str) -> "Lengths":
        """Reads the lengths from the text of a service's /metrics; histograms of several replicas are added.

        Raises:
            InputError: the text is not a page of metrics, lacks the histogram, or was saved before the first answer.
        """
        try:
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        except ValueError as error:
            raise InputError(f"this is not a page of metrics ({error}). {ADVICE}") from error
        cumulative: dict[float, float] = {}
        for sample in samples:
            if sample.name == f"{HISTOGRAM}_bucket":
                end = float(sample.labels["le"])
                cumulative[end] = cumulative.get(end, 0.0) + sample.value
        if not cumulative:
            raise InputError(f"this page has no histogram {HISTOGRAM}. {ADVICE}")
        if not any(cumulative.values()):
            raise InputError(f"{HISTOGRAM} is empty: this service has not answered a text yet. {ADVICE}")
        return cls.from_counts(_spread(cumulative))

    @classmethod
    def read(cls, file: Path | str) -> "Lengths":
        """Reads a saved page of metrics; see `from_metrics`.

        Raises:
            InputError: the file cannot be read, or `from_metrics` refuses it.
        """
        try:
            page = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({type(error).__name__}). {ADVICE}") from error
        return cls.from_metrics(page)

    def counts(self) -> dict[str, float]:
        """Returns the shares by length, with keys that JSON can hold; the inverse of `from_counts`."""
        return {str(tokens): share for tokens, share in zip(self.tokens, self.shares, strict=True)}

    def quantile(self, share: float) -> int:
        """Returns the shortest length that at least this share of the texts, 0 to 1, do not exceed."""
        return int(self._at(np.array([share]))[0])

    def draw(self, count: int, seed: int) -> list[int]:
        """Draws `count` lengths, one from each of as many equal parts of the distribution, in random order.

        Such a stratified draw represents the distribution with few texts; a plain one has too many long texts or too
        few.
        """
        random = np.random.default_rng(seed)
        lengths = self._at((np.arange(count) + random.random(count)) / count)
        return [int(tokens) for tokens in random.permutation(lengths)]

    def _at(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Looks up the lengths at these shares of the distribution."""
        ends = np.cumsum(self.shares) + 1e-9  # rounding may leave the last sum below 1
        return np.array(self.tokens)[np.searchsorted(ends, shares)]


@dataclass(frozen=True)
class Workload:
    """The texts to time.

    `singles` maps a name such as `"batch 1, 27 tokens"` to one text, the one of median length first. `mixed` are texts
    in random order, to be batched. They are padded for each engine as in use.
    """

    tokenizer: AnyTokenizer
    singles: Mapping[str, Features]
    mixed: tuple[Features, ...]

    @property
    def key(self) -> list[int]:
        """The lengths, which decide how long the workload takes."""
        return [*map(len, self.singles.values()), *map(len, self.mixed)]

    def batch(self, items: int, width: int, engine: Engine) -> Batch:
        """Returns a batch of `items` texts of `width` tokens each."""
        pool = np.concatenate([text.encoding.ids for text in self.mixed])
        arrays = self.mixed[0].arrays
        return pad_for_engine([_text(pool, width, start, arrays) for start in range(items)], self.tokenizer, engine)

    def part(self, share: float) -> "Workload":
        """Keeps a share of the mixed texts, at least one, spread evenly over their lengths."""
        count = max(1, round(share * len(self.mixed)))
        indices = ((np.arange(count) + 0.5) / count * len(self.mixed)).astype(int)
        ranked = sorted(self.mixed, key=len)
        return replace(self, mixed=tuple(ranked[index] for index in indices))

    def grouped(self, batch_tokens: int, engine: Engine) -> list[Batch]:
        """Returns the mixed texts in batches of up to `batch_tokens` padded tokens, the short ones first."""
        groups = group_by_length([len(text) for text in self.mixed], batch_tokens, engine.shape)
        return [pad_for_engine([self.mixed[index] for index in group], self.tokenizer, engine) for group in groups]


def build(lengths: Lengths, tokenizer: AnyTokenizer, features: Sequence[Features], seed: int) -> Workload:
    """Builds texts from real tokens.

    Args:
        lengths: of the training split, or of the traffic of a service.
        tokenizer: of the model; lengths are limited to what it reads.
        features: the source of the tokens, and of further arrays that the model reads.
        seed: of the draw of the mixed lengths.
    """
    pool, arrays = np.concatenate([part.encoding.ids for part in features]), features[0].arrays
    singles = dict.fromkeys(min(lengths.quantile(share), tokenizer.max_tokens) for share in LENGTH_QUANTILES)
    drawn = [min(length, tokenizer.max_tokens) for length in lengths.draw(MIXED_TEXTS, seed)]
    return Workload(
        tokenizer,
        {f"batch 1, {length} tokens": _text(pool, length, 0, arrays) for length in singles},
        tuple(_text(pool, length, start, arrays) for start, length in enumerate(drawn)),
    )


def _text(pool: npt.NDArray[np.int64], length: int, start: int, arrays: Arrays) -> Features:
    """Cuts the `start`-th text of `length` tokens out of a pool, which is repeated as often as needed."""
    ids = np.take(pool, np.arange(start * length, (start + 1) * length), mode="wrap")
    zeros = np.zeros(length, dtype=np.int64)
    encoding = Encoding(ids, zeros, np.zeros((length, 2), dtype=np.int64), unknown=0, truncated=False)
    return Features("", 0, encoding, arrays)


def _spread(cumulative: Mapping[float, float]) -> dict[int, float]:
    """Takes all texts of a bucket to have the geometric mean of its bounds, and those of the endless last its start."""
    counts: dict[int, float] = {}
    edge, before = 0.0, 0.0
    for end, count in sorted(cumulative.items()):
        middle = round(sqrt((edge + 1) * end)) if isfinite(end) else int(edge) + 1
        counts[middle] = counts.get(middle, 0.0) + count - before
        edge, before = end, count
    return counts
