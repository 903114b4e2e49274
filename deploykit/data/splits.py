"""Cuts a split from the training rows: stratified and seeded, with copies of a text kept together.

Rows of several texts are kept together if they share one of the texts: the candidates of a query, the hypotheses for a
premise, the questions on a passage.

An example with several labels belongs to the stratum of its rarest label, as in iterative stratification (Sechidis et
al. 2011, section 3). scikit-learn's splitters keep groups together or cut an exact share of small classes, not both,
and refuse classes of one row. The largest remainder method over the strata has none of these limits.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from deploykit.data.examples import Identity, Split, identity_of
from deploykit.tasks import Example, Task

# The largest share of the rows that may be kept together for one text. A larger group would make the size of a split
# inexact, and its rows unlike those of the others.
MAX_GROUP_SHARE = 0.05


def cut(split: Split, name: str, share: float, task: Task, seed: int) -> tuple[Split, Split]:
    """Cuts off a share of the rows, and keeps the order of the rows in both parts.

    Args:
        split: the rows. Of every label, at least one row stays.
        name: of the new split.
        share: of the groups of rows that are kept together, above 0 and below 1. Without copies and shared texts, each
            row is a group of its own.
        task: lists the labels of an example.
        seed: the same seed cuts the same rows.

    Returns:
        The rest of the split, and the new split.
    """
    group_of_row = _group_keys(split.examples)
    cut_groups = _draw_groups(_stratify(split.examples, group_of_row, task), share, seed)
    cut_groups -= _groups_to_keep(split.examples, group_of_row, cut_groups, task)
    cut_rows = [row for row, group in enumerate(group_of_row) if group in cut_groups]
    other_rows = [row for row, group in enumerate(group_of_row) if group not in cut_groups]
    return split.take(split.name, other_rows), split.take(name, cut_rows)


def _group_keys(examples: Sequence[Example]) -> list[Identity]:
    """Returns the key of the group of each row: the text that rows share, or else the identity of the input.

    The first, second, ... texts of the rows are columns. The column with the fewest distinct texts makes the groups if
    most rows share their text in it with another row, and no group is too large.
    """
    identities = [identity_of(example) for example in examples]
    if min(map(len, identities), default=0) < 2:
        return identities
    columns = [list(column) for column in zip(*identities, strict=False)]
    column = min(columns, key=lambda texts: len(set(texts)))
    group_sizes = Counter(column).values()
    rows_in_groups = sum(size for size in group_sizes if size > 1)
    if 2 * rows_in_groups > len(identities) and max(group_sizes) <= MAX_GROUP_SHARE * len(identities):
        return [(text,) for text in column]
    return identities


def _stratify(examples: Sequence[Example], group_of_row: Sequence[Identity], task: Task) -> dict[str, list[Identity]]:
    """Lists the groups of each stratum, in the order of their first rows.

    A stratum is named by a label, the rarest of the group's first row; it is "" without labels.
    """
    counts = Counter(label for example in examples for label in set(task.example_labels(example)))
    stratum_of_group: dict[Identity, str] = {}
    for example, group in zip(examples, group_of_row, strict=True):
        rarest = min(task.example_labels(example), key=lambda label: (counts[label], label), default="")
        stratum_of_group.setdefault(group, rarest)
    strata = defaultdict(list)
    for group, stratum in stratum_of_group.items():
        strata[stratum].append(group)
    return dict(sorted(strata.items()))


def _draw_groups(strata: dict[str, list[Identity]], share: float, seed: int) -> set[Identity]:
    """Draws a share of all groups at random, from each stratum in proportion to its size."""
    sizes = np.array([len(groups) for groups in strata.values()])
    generator = np.random.default_rng(seed)
    drawn: set[Identity] = set()
    for groups, count in zip(strata.values(), allocate_by_largest_remainder(sizes, share), strict=True):
        drawn.update(groups[index] for index in generator.permutation(len(groups))[:count])
    return drawn


def _groups_to_keep(
    examples: Sequence[Example], group_of_row: Sequence[Identity], cut_groups: set[Identity], task: Task
) -> set[Identity]:
    """Returns the groups to take out of `cut_groups` again, so that every label remains in at least one row."""
    rows = list(zip(examples, group_of_row, strict=True))
    remaining_labels = {
        label for example, group in rows if group not in cut_groups for label in task.example_labels(example)
    }
    groups_to_keep: set[Identity] = set()
    for example, group in rows:
        if group in groups_to_keep or not remaining_labels.issuperset(task.example_labels(example)):
            groups_to_keep.add(group)
            remaining_labels.update(task.example_labels(example))
    return groups_to_keep


def allocate_by_largest_remainder(sizes: np.ndarray, share: float) -> list[int]:
    """Distributes a share of all groups over the strata, in proportion to their sizes; no stratum is taken whole.

    Args:
        sizes: number of groups in each stratum, `(strata,)`.
        share: of the sum of the sizes. The number to distribute is rounded to a whole one.

    Returns:
        The number of groups to take from each stratum.
    """
    exact = sizes * share
    counts = np.floor(exact).astype(int)
    extensible = np.flatnonzero(counts < sizes - 1)  # strata of which one more can be taken and one still stays
    by_remainder = extensible[np.argsort(-(exact - counts)[extensible], kind="stable")]
    left_to_distribute = max(0, round(sizes.sum() * share) - counts.sum())
    counts[by_remainder[:left_to_distribute]] += 1
    return [int(count) for count in counts]
