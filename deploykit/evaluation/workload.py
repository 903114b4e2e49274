"""How long texts are, in tokens: what a selection measures at, from labelled data or from a running service.

A service counts the tokens of every text that it answers in the histogram `deploykit_input_tokens`; a page of its
metrics, saved to a file, is all that a selection needs of it. Tokenizing is left to others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client.parser import text_string_to_metric_families

from deploykit.errors import InputError

HISTOGRAM = "deploykit_input_tokens"
ADVICE = "Save the page /metrics of a service after some traffic, with a key that has the scope metrics."


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, ascending, and the share of texts that have each; the shares sum to 1."""

    tokens: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def from_counts(cls, counts: Mapping[int, float] | Mapping[str, float]) -> "Lengths":
        """Takes how many texts have each length.

        Args:
            counts: length in tokens to a count, or any other weight.

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
        """Reads the lengths that a running service has seen.

        Args:
            page: what its /metrics answered. Several replicas' histograms, told apart by labels, are added.

        Raises:
            InputError: it is no such page, lacks the histogram, or was taken before the first answer.
        """
        try:
            samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        except ValueError as error:
            raise InputError(f"this is no page of metrics ({error}). {ADVICE}") from error
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
            InputError: there is no such file, or it is no such page.
        """
        try:
            page = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({type(error).__name__}). {ADVICE}") from error
        return cls.from_metrics(page)

    def counts(self) -> dict[str, float]:
        """Returns what `from_counts` takes, with keys that JSON can hold."""
        return {str(tokens): share for tokens, share in zip(self.tokens, self.shares, strict=True)}

    def quantile(self, share: float) -> int:
        """Returns the shortest length that at least this share of the texts, 0 to 1, do not exceed."""
        return int(self._at(np.array([share]))[0])

    def draw(self, count: int, seed: int) -> list[int]:
        """Draws lengths, one from each of `count` equal parts of the distribution, in random order.

        Stratified, so that few texts stand for all: a plain draw has too many long ones, or too few.

        Args:
            count: how many.
            seed: of the draw.
        """
        random = np.random.default_rng(seed)
        found = self._at((np.arange(count) + random.random(count)) / count)
        return [int(tokens) for tokens in random.permutation(found)]

    def _at(self, shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Looks up the lengths at these shares of the distribution."""
        ends = np.cumsum(self.shares) + 1e-9  # a sum of shares may be a hair too small
        return np.array(self.tokens)[np.searchsorted(ends, shares)]


def _spread(cumulative: Mapping[float, float]) -> dict[int, float]:
    """Puts the texts of each bucket at the geometric middle of the lengths that it holds; the last one has no end."""
    counts: dict[int, float] = {}
    edge, before = 0.0, 0.0
    for end, count in sorted(cumulative.items()):
        middle = round(sqrt((edge + 1) * end)) if isfinite(end) else int(edge) + 1
        counts[middle] = counts.get(middle, 0.0) + count - before
        edge, before = end, count
    return counts
