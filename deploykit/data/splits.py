"""Cuts a split from the training rows: stratified and seeded, with copies of a text kept together.

Rows of several texts are kept together by the text that they share with others: the candidates of a query, the
hypotheses for a premise, the questions on a passage.

An example with several labels belongs to the stratum of its rarest label, as in iterative stratification (Sechidis et
al. 2011, section 3). scikit-learn's splitters either keep groups together or cut an exact share of small classes, and
refuse classes of one row; the largest remainder over the strata does all of this.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from deploykit.data.examples import Key, Split, key_of
from deploykit.tasks import Example, Task

MAX_GROUP_SHARE = 0.05  # of the rows that may share a text and be kept together for it


def cut(split: Split, name: str, share: float, task: Task, seed: int) -> tuple[Split, Split]:
    """Cuts off a share of the rows, and keeps the order of the rows in both parts.

    Args:
        split: the rows; every label keeps at least one text in what remains.
        name: of the new split.
        share: of the distinct texts, or of those that rows share, above 0 and below 1.
        task: lists the labels of an example.
        seed: the same seed cuts the same rows.

    Returns:
        The rest of the split, and the new split.
    """
    keys = _keys(split.examples)
    chosen = _choose(_strata(split.examples, keys, task), share, seed)
    chosen -= _needed(split.examples, keys, chosen, task)
    cut_rows = [row for row, key in enumerate(keys) if key in chosen]
    other_rows = [row for row, key in enumerate(keys) if key not in chosen]
    return split.take(split.name, other_rows), split.take(name, cut_rows)


def _keys(examples: Sequence[Example]) -> list[Key]:
    """Returns the key of each row; rows of the same key are kept together."""
    keys = [key_of(example) for example in examples]
    if min(map(len, keys), default=0) < 2:
        return keys
    columns = [list(column) for column in zip(*keys, strict=False)]
    column = min(columns, key=lambda texts: len(set(texts)))  # texts of more rows than the others
    counts = Counter(column).values()
    in_groups = sum(count for count in counts if count > 1)
    if 2 * in_groups > len(keys) and max(counts) <= MAX_GROUP_SHARE * len(keys):
        return [(text,) for text in column]
    return keys


def _strata(examples: Sequence[Example], keys: Sequence[Key], task: Task) -> dict[str, list[Key]]:
    """Lists the distinct texts of each stratum, in the order of the rows."""
    counts = Counter(label for example in examples for label in set(task.example_labels(example)))
    stratum_of: dict[Key, str] = {}
    for example, key in zip(examples, keys, strict=True):
        rarest = min(task.example_labels(example), key=lambda label: (counts[label], label), default="")
        stratum_of.setdefault(key, rarest)
    strata = defaultdict(list)
    for key, stratum in stratum_of.items():
        strata[stratum].append(key)
    return dict(sorted(strata.items()))


def _choose(strata: dict[str, list[Key]], share: float, seed: int) -> set[Key]:
    sizes = np.array([len(keys) for keys in strata.values()])
    generator = np.random.default_rng(seed)
    chosen: set[Key] = set()
    for keys, count in zip(strata.values(), largest_remainder(sizes, share), strict=True):
        chosen.update(keys[index] for index in generator.permutation(len(keys))[:count])
    return chosen


def _needed(examples: Sequence[Example], keys: Sequence[Key], chosen: set[Key], task: Task) -> set[Key]:
    """Returns the chosen texts that must stay, so that each of their labels remains at least once."""
    rows = list(zip(examples, keys, strict=True))
    remaining = {label for example, key in rows if key not in chosen for label in task.example_labels(example)}
    needed: set[Key] = set()
    for example, key in rows:
        if key in needed or not remaining.issuperset(task.example_labels(example)):
            needed.add(key)
            remaining.update(task.example_labels(example))
    return needed


def largest_remainder(sizes: np.ndarray, share: float) -> list[int]:
    """Distributes a share of all texts over the strata, in proportion to their sizes; no stratum is taken whole.

    Args:
        sizes: texts in each stratum, `(strata,)`.
        share: of their sum, rounded to a whole number.

    Returns:
        The number of texts to take from each stratum.
    """
    exact = sizes * share
    counts = np.floor(exact).astype(int)
    extensible = np.flatnonzero(counts < sizes - 1)
    by_remainder = extensible[np.argsort(-(exact - counts)[extensible], kind="stable")]
    counts[by_remainder[: max(0, round(sizes.sum() * share) - counts.sum())]] += 1
    return [int(count) for count in counts]
