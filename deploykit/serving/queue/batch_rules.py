"""Which of the texts that wait share a batch: pure rules on their lengths.

`by_cost` takes texts of similar length while all wait less for it: padding a short text to a long one costs a CPU more
than batching saves, and two long texts save next to nothing together, while the first waits for both. `in_order` is
what it is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from deploykit.artifact.cost import Cost

# why a batch is not larger: nobody else waits, it is full, more would cost others more than they save, or be padded
Release = Literal["all", "items", "tokens", "cost", "shape"]


@dataclass(frozen=True)
class Bounds:
    """The most of one batch (padded tokens, items), of what may wait (tokens) and of how long (seconds)."""

    batch_tokens: int
    batch_items: int
    queue_tokens: int
    wait_s: float = inf


Choose = Callable[[Sequence[int], Cost, Bounds], tuple[list[int], Release]]


def by_cost(lengths: Sequence[int], cost: Cost, bounds: Bounds) -> tuple[list[int], Release]:
    """Chooses the batch for which all that wait, those in it too, wait least in the sum.

    Args:
        lengths: tokens of the texts that wait, at least one; the one whose turn it is comes first.
        cost: what batches cost.
        bounds: what they may hold; a text that exceeds them runs alone.

    Returns:
        Positions in `lengths`, the first one first among them, and why there are no more.
    """
    chosen, width = [0], lengths[0]
    release: Release = "all"
    tried = {False: True, True: True}  # shorter ones and longer ones: where one does not pay, those beyond it do not
    for index in sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0])):
        longer = lengths[index] > lengths[0]
        if not tried[longer]:
            continue
        if len(chosen) == bounds.batch_items:
            return chosen, "items"
        padded = (len(chosen) + 1) * max(width, lengths[index])
        if not cost.pays(len(chosen), width, lengths[index], len(lengths) - len(chosen)):
            release, tried[longer] = "cost", False
        elif padded > bounds.batch_tokens:
            release = "tokens" if release == "all" else release
        else:
            chosen.append(index)
            width = max(width, lengths[index])
    return chosen, release


def in_order(lengths: Sequence[int], _: Cost, bounds: Bounds) -> tuple[list[int], Release]:
    """Chooses as `by_cost`, but takes texts as they come until the bounds are met, whatever padding them costs."""
    width = 0
    for count, length in enumerate(lengths):
        width = max(width, length)
        if count == bounds.batch_items:
            return list(range(count)), "items"
        if count and (count + 1) * width > bounds.batch_tokens:
            return list(range(count)), "tokens"
    return list(range(len(lengths))), "all"
