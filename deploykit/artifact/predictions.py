"""The predictions for the validation and test rows in an artifact, as arrays that their task has made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.artifact.directory import Artifact
from deploykit.artifact.files import PREDICTIONS

Arrays = Mapping[str, npt.NDArray[Any]]


def save_predictions(folder: Path, splits: Mapping[str, Arrays]) -> None:
    """Stores the arrays of each split as `split/name`.

    Args:
        folder: of the draft.
        splits: by the name of the split, what the task's `dump` returned.
    """
    arrays = {f"{split}/{name}": array for split, named in splits.items() for name, array in named.items()}
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **arrays)


def load_predictions(artifact: Artifact) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Reads arrays that `save_predictions` wrote, by split and name.

    Artifacts of older formats have one array for each split, and the number of its rows that belong to each prediction.
    """
    splits: dict[str, dict[str, npt.NDArray[Any]]] = {}
    with np.load(artifact.file(PREDICTIONS), allow_pickle=False) as arrays:
        for key in arrays.files:
            split, _, name = key.partition("/")
            if not name:
                split, name = (key.removesuffix(".lengths"), "lengths") if key.endswith(".lengths") else (key, "scores")
            splits.setdefault(split, {})[name] = arrays[key]
    return splits
