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

# One text is timed at each; the median is first, and is the only one where one suffices.
LENGTH_QUANTILES = (0.5, 0.1, 0.95)
MIXED_TEXTS = 128  # texts of mixed lengths, enough for several batches of each size
HISTOGRAM = "deploykit_input_tokens"  # the metric of a service that counts its texts by their tokens
ADVICE = "Save the page /metrics of a service after some traffic, with a key that has the scope metrics."


@dataclass(frozen=True)
class Lengths:
    """How long texts are: the lengths in `tokens`, ascending, and for each length the share of texts that have it.

    The shares sum to 1.
    """

    tokens: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def from_counts(cls, counts: Mapping[int, float] | Mapping[str, float]) -> "Lengths":
        """Makes lengths from the number of texts, or their share, for each length in tokens.

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
        """Reads the lengths from the page /metrics of a service; histograms of several replicas are added up.

        Raises:
            InputError: the page has no metrics, lacks the histogram, or was saved before the first answer.
        """
        try:
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        except ValueError as error:
            raise InputError(f"this is not a page of metrics ({error}). {ADVICE}") from error
        cumulative: dict[float, float] = {}  # by the upper bound of each bucket, in tokens
        for sample in samples:
            if sample.name == f"{HISTOGRAM}_bucket":
                bound = float(sample.labels["le"])
                cumulative[bound] = cumulative.get(bound, 0.0) + sample.value
        if not cumulative:
            raise InputError(f"this page has no histogram {HISTOGRAM}. {ADVICE}")
        if not any(cumulative.values()):
            raise InputError(f"{HISTOGRAM} is empty: this service has not answered a text yet. {ADVICE}")
        return cls.from_counts(_counts_by_length(cumulative))

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

    def shares_by_length(self) -> dict[str, float]:
        """Returns the shares by length, with the lengths as strings for JSON; `from_counts` reads them back."""
        return {str(tokens): share for tokens, share in zip(self.tokens, self.shares, strict=True)}

    def quantile(self, share: float) -> int:
        """Returns the length in tokens that a share of the texts, 0 to 1, do not exceed."""
        return int(self._quantiles(np.array([share]))[0])

    def draw(self, count: int, seed: int) -> list[int]:
        """Draws lengths in tokens, in random order: one from each of `count` equal parts of the distribution.

        A few draws of this kind (stratified ones) represent the distribution; a few independent draws may have too many
        long texts, or too few.
        """
        random = np.random.default_rng(seed)
        lengths = self._quantiles((np.arange(count) + random.random(count)) / count)
        return [int(tokens) for tokens in random.permutation(lengths)]

    def _quantiles(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Returns the length that each of these shares of the texts, 0 to 1, do not exceed."""
        ends = np.cumsum(self.shares) + 1e-9  # rounding may leave the last sum below 1
        return np.array(self.tokens)[np.searchsorted(ends, shares)]


@dataclass(frozen=True)
class Workload:
    """The texts to time.

    `singles` maps names such as `"batch 1, 27 tokens"` to one text each, the text of median length first. `mixed` are
    texts of all lengths, to be batched. Batches are padded for each engine as in a service.
    """

    tokenizer: AnyTokenizer
    singles: Mapping[str, Features]
    mixed: tuple[Features, ...]

    @property
    def key(self) -> list[int]:
        """The lengths of all texts: workloads with the same lengths take the same time."""
        return [*map(len, self.singles.values()), *map(len, self.mixed)]

    def batch(self, rows: int, width: int, engine: Engine) -> Batch:
        """Returns a batch of `rows` texts of `width` tokens each."""
        pool = np.concatenate([text.encoding.ids for text in self.mixed])
        arrays = self.mixed[0].arrays
        return pad_for_engine([_cut_text(pool, width, index, arrays) for index in range(rows)], self.tokenizer, engine)

    def subsample(self, share: float) -> "Workload":
        """Returns a workload with a share of the mixed texts, at least one, spread evenly over their lengths."""
        count = max(1, round(share * len(self.mixed)))
        indices = ((np.arange(count) + 0.5) / count * len(self.mixed)).astype(int)
        ranked = sorted(self.mixed, key=len)
        return replace(self, mixed=tuple(ranked[index] for index in indices))

    def mixed_batches(self, batch_tokens: int, engine: Engine) -> list[Batch]:
        """Returns the mixed texts in batches of up to `batch_tokens` padded tokens, the short texts first."""
        groups = group_by_length([len(text) for text in self.mixed], batch_tokens, engine.shape)
        return [pad_for_engine([self.mixed[index] for index in group], self.tokenizer, engine) for group in groups]


def build(lengths: Lengths, tokenizer: AnyTokenizer, features: Sequence[Features], seed: int) -> Workload:
    """Builds a workload: texts of the given lengths, cut from real tokens.

    Args:
        lengths: of the training split, or of the traffic of a service.
        tokenizer: of the model; longer lengths are cut to its `max_tokens`.
        features: the source of the tokens, and of further arrays that the model reads.
        seed: of the draw of the mixed lengths.
    """
    pool, arrays = np.concatenate([one.encoding.ids for one in features]), features[0].arrays
    single_lengths = dict.fromkeys(min(lengths.quantile(share), tokenizer.max_tokens) for share in LENGTH_QUANTILES)
    drawn = [min(length, tokenizer.max_tokens) for length in lengths.draw(MIXED_TEXTS, seed)]
    return Workload(
        tokenizer,
        {f"batch 1, {length} tokens": _cut_text(pool, length, 0, arrays) for length in single_lengths},
        tuple(_cut_text(pool, length, index, arrays) for index, length in enumerate(drawn)),
    )


def _cut_text(pool: npt.NDArray[np.int64], length: int, index: int, arrays: Arrays) -> Features:
    """Cuts a text out of the ids of a pool: tokens `index * length` to `(index + 1) * length`.

    Beyond its end, the pool begins again.
    """
    ids = np.take(pool, np.arange(index * length, (index + 1) * length), mode="wrap")
    zeros = np.zeros(length, dtype=np.int64)
    encoding = Encoding(ids, zeros, np.zeros((length, 2), dtype=np.int64), unknown=0, truncated=False)
    return Features("", 0, encoding, arrays)


def _counts_by_length(cumulative: Mapping[float, float]) -> dict[int, float]:
    """Returns the number of texts by length in tokens, from a histogram with cumulative counts.

    All texts of a bucket count as having one length: the geometric mean of its shortest and its longest. The last
    bucket has no upper bound, so its texts count as having its shortest length.

    Args:
        cumulative: by the upper bound of a bucket, how many texts are not longer.
    """
    counts: dict[int, float] = {}
    previous_bound, previous_count = 0.0, 0.0
    for bound, count in sorted(cumulative.items()):
        shortest = previous_bound + 1
        length = round(sqrt(shortest * bound)) if isfinite(bound) else int(shortest)
        counts[length] = counts.get(length, 0.0) + count - previous_count
        previous_bound, previous_count = bound, count
    return counts
