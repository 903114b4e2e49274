"""Stores the predictions for the validation and test rows in an artifact, as arrays that the task makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.artifact.directory import Artifact
from deploykit.artifact.files import PREDICTIONS

Arrays = Mapping[str, npt.NDArray[Any]]


def save_predictions(folder: Path, splits: Mapping[str, Arrays]) -> None:
    """Writes the arrays of each split to one file, as `split/name`.

    Args:
        folder: the artifact's draft.
        splits: the arrays that the task's `dump` returned, by split.
    """
    arrays = {f"{split}/{name}": array for split, dumped in splits.items() for name, array in dumped.items()}
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **arrays)


def load_predictions(artifact: Artifact) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Returns the arrays that `save_predictions` wrote, by split and name.

    Artifacts of older formats have the arrays `SPLIT` and sometimes `SPLIT.lengths`. They are returned as `scores` and
    as `lengths`, the number of rows of `scores` that belong to each prediction.
    """
    splits: dict[str, dict[str, npt.NDArray[Any]]] = {}
    with np.load(artifact.file(PREDICTIONS), allow_pickle=False) as arrays:
        for key in arrays.files:
            split, _, name = key.partition("/")
            if not name:
                split, name = (key.removesuffix(".lengths"), "lengths") if key.endswith(".lengths") else (key, "scores")
            splits.setdefault(split, {})[name] = arrays[key]
    return splits
