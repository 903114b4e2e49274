"""The rule that chooses which waiting texts share a batch: a pure function of their lengths.

It adds texts of similar length as long as that lowers the total waiting time: on a CPU, padding a short text to a long
one costs more than batching saves, and two long texts together save almost nothing, while the first waits for both.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Literal, NamedTuple

from deploykit.artifact.cost import Cost

# Why a batch is not larger: no other text waits (`all`), it reaches the limit of `items` or of padded `tokens`, another
# text would raise the total waiting time (`cost`), or the engine would add rows as padding (`shape`).
LimitReason = Literal["all", "items", "tokens", "cost", "shape"]


class Bounds(NamedTuple):
    """Limits of one batch (padded tokens, texts), of the queue (tokens), and of a text's wait (seconds)."""

    batch_tokens: int
    batch_items: int
    queue_tokens: int
    wait_s: float = inf


Rule = Callable[[Sequence[int], Cost, Bounds], tuple[list[int], LimitReason]]


def by_cost(lengths: Sequence[int], cost: Cost, bounds: Bounds) -> tuple[list[int], LimitReason]:
    """Adds texts to the first, closest length first, as long as each lowers the total waiting time of all texts.

    Args:
        lengths: tokens to which the engine pads each waiting text alone, at least one; the first text is next in turn.
        cost: predicts the seconds of a batch.
        bounds: limits of the batch; a first text that exceeds them runs alone.

    Returns:
        Positions in `lengths`, starting with 0, and why the batch is not larger.
    """
    chosen, width = [0], lengths[0]
    reason: LimitReason = "all"
    worth_trying = {False: True, True: True}  # shorter and longer texts: once one does not pay, no farther one does
    for index in sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0])):
        longer = lengths[index] > lengths[0]
        if not worth_trying[longer]:
            continue
        if len(chosen) == bounds.batch_items:
            return chosen, "items"
        padded = (len(chosen) + 1) * max(width, lengths[index])
        if not cost.should_add_text(len(chosen), width, lengths[index], len(lengths) - len(chosen)):
            reason, worth_trying[longer] = "cost", False
        elif padded > bounds.batch_tokens:
            reason = "tokens" if reason == "all" else reason
        else:
            chosen.append(index)
            width = max(width, lengths[index])
    return chosen, reason
