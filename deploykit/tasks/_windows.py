"""Predictions for the units of a text that was read in several windows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deploykit.tasks import Float32
from deploykit.tasks._units import units
from deploykit.tokenizer import Features

CUT_OFF_LOGIT = 30.0  # of `O` for units that the model did not read: certain, but finite


def unmasked(features: Sequence[Features], text: str) -> list[Features]:
    """Returns features with the text as it was before masking, which may divide it into other units."""
    return [replace(window, text=text[window.start : window.start + len(window.text)]) for window in features]


def merge(scores: Sequence[Float32], windows: Sequence[Features], text: str) -> Float32:
    """Chooses for each unit the logits of the window that shows most of the text around it.

    A word that the edge of a window cuts is not a unit of that window. A word that is cut in every window, because it
    is longer than their overlap, has the logits of its longest visible beginning.

    Args:
        scores: logits of the units of each window, `(units, labels)`.
        windows: of the text.
        text: the whole text.

    Returns:
        Logits of the units of the whole text, `(units, labels)`.
    """
    spans = units(text)
    unit_at = {start: unit for unit, (start, _) in enumerate(spans.tolist())}
    merged = np.zeros((len(spans), scores[0].shape[1]), dtype=np.float32)
    merged[:, 0], context = CUT_OFF_LOGIT, np.full(len(spans), -np.inf)  # characters shown on the shorter side
    for index, (window, rows) in enumerate(zip(windows, scores, strict=True)):
        for (start, end), row in zip((units(window.text) + window.start).tolist(), rows, strict=True):
            unit = unit_at.get(start)
            if unit is None:  # the end of a word that the window cuts
                continue
            before = np.inf if index == 0 else start - window.start
            after = np.inf if index == len(windows) - 1 else window.start + len(window.text) - end
            shown = min(before, after) if end == spans[unit, 1] else -1 / (end - start)
            if shown > context[unit]:
                merged[unit], context[unit] = row, shown
    return merged
