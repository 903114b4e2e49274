"""The rule that chooses which waiting texts share a batch, by their lengths.

Texts of similar length share one as long as that lowers the total waiting time. On a CPU, padding a short text to the
length of a long one costs more than batching saves. Two long texts together save almost nothing, and the first then
waits for both.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Literal, NamedTuple

from deploykit.artifact.cost import Cost

# Why a batch is not larger. `all`: no other text waits; `items`, `tokens`: it reaches the limit of texts or of padded
# tokens; `cost`: another text would raise the total waiting time; `shape`: the engine would add rows as padding.
LimitReason = Literal["all", "items", "tokens", "cost", "shape"]


class Bounds(NamedTuple):
    """Limits of batches and of the queue.

    Attributes:
        batch_tokens: tokens of one batch, padding included.
        batch_items: texts of one batch.
        queue_tokens: tokens of all waiting texts.
        wait_s: seconds that a text may wait; requests that would wait longer are refused.
    """

    batch_tokens: int
    batch_items: int
    queue_tokens: int
    wait_s: float = inf


# chooses positions in a list of lengths, as `choose_by_cost` does
BatchRule = Callable[[Sequence[int], Cost, Bounds], tuple[list[int], LimitReason]]


def choose_by_cost(lengths: Sequence[int], cost: Cost, bounds: Bounds) -> tuple[list[int], LimitReason]:
    """Adds texts to the first one, closest length first, as long as each lowers the total waiting time of all texts.

    Args:
        lengths: at least one; tokens to which the engine pads each waiting text if it runs alone. The first text is
            the one whose turn it is.
        cost: predicts the seconds of a batch.
        bounds: limits of the batch; a first text that exceeds them runs alone.

    Returns:
        Positions in `lengths` of the texts of the batch, the first of them 0; and why the batch is not larger.
    """
    chosen, padded_length = [0], lengths[0]
    reason: LimitReason = "all"
    # whether longer (True) and not longer (False) texts may still pay: once one does not, no more different one does
    may_pay = {True: True, False: True}
    for index in sorted(range(1, len(lengths)), key=lambda i: abs(lengths[i] - lengths[0])):
        longer = lengths[index] > lengths[0]
        if not may_pay[longer]:
            continue
        if len(chosen) == bounds.batch_items:
            return chosen, "items"
        padded_tokens = (len(chosen) + 1) * max(padded_length, lengths[index])
        if not cost.should_add_text(len(chosen), padded_length, lengths[index], len(lengths) - len(chosen)):
            reason, may_pay[longer] = "cost", False
        elif padded_tokens > bounds.batch_tokens:
            reason = "tokens" if reason == "all" else reason
        else:
            chosen.append(index)
            padded_length = max(padded_length, lengths[index])
    return chosen, reason
