"""Logits for the units of a text that the model read in several windows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deploykit.tasks import Float32
from deploykit.tasks._units import units
from deploykit.tokenizer import Features

# Logit of a label that is certain, if those of the other labels are 0: its probability falls short of 1 by 1e-13 for
# each of them. Units that the model did not read get it for `O`; infinity would give NaN in softmax.
CERTAIN_LOGIT = 30.0


def with_original_text(features: Sequence[Features], text: str) -> list[Features]:
    """Returns features with the original text in place of the masked one that the model read.

    Masking keeps the length of the text, but may change where units begin and end.

    Args:
        features: windows of the masked text.
        text: the whole original text.
    """
    return [replace(window, text=text[window.start : window.start + len(window.text)]) for window in features]


def merge_windows(logits: Sequence[Float32], windows: Sequence[Features], text: str) -> Float32:
    """Returns the logits of each unit of the text, from the window that shows most of the text around it.

    A window is better for a unit the more characters it shows on the unit's shorter side. A window that cuts a unit
    comes after all that show it whole. If every window cuts a unit, because it is longer than their overlap, the window
    that shows most of its beginning decides.

    Args:
        logits: of the units of each window, `(units, labels)`, with the label `O` first.
        windows: of the text, in order.
        text: the whole text.

    Returns:
        Logits of the units of the whole text, `(units, labels)`; units that no window shows are `O`.
    """
    unit_offsets = units(text)
    unit_at = {start: unit for unit, (start, _) in enumerate(unit_offsets.tolist())}
    merged = np.zeros((len(unit_offsets), logits[0].shape[1]), dtype=np.float32)
    merged[:, 0] = CERTAIN_LOGIT
    best_margins = np.full(len(unit_offsets), -np.inf)  # of the window that each unit's logits come from
    for index, (window, rows) in enumerate(zip(windows, logits, strict=True)):
        for (start, end), row in zip((units(window.text) + window.start).tolist(), rows, strict=True):
            unit = unit_at.get(start)
            if unit is None:  # the window begins inside this unit
                continue
            before = np.inf if index == 0 else start - window.start  # the first window lacks nothing before it
            after = np.inf if index == len(windows) - 1 else window.start + len(window.text) - end
            is_whole = end == unit_offsets[unit, 1]
            margin = min(before, after) if is_whole else -1 / (end - start)  # below 0, the higher the more it shows
            if margin > best_margins[unit]:
                merged[unit], best_margins[unit] = row, margin
    return merged
