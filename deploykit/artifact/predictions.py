"""Scores of the validation and test rows, which every artifact carries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.artifact.directory import Artifact
from deploykit.artifact.files import PREDICTIONS


def save_predictions(folder: Path, rows: Mapping[str, list[npt.NDArray[np.float32]]]) -> None:
    """Stores the scores of each split: `name` concatenated, `name.lengths` to cut it into rows.

    Args:
        folder: the draft.
        rows: split to one array `(units, labels)` a row.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, scores in rows.items():
        arrays[name] = np.concatenate(scores).astype(np.float32)
        arrays[f"{name}.lengths"] = np.array([len(row) for row in scores], dtype=np.int64)
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **arrays)


def load_predictions(artifact: Artifact) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Reads what `save_predictions` wrote."""
    with np.load(artifact.file(PREDICTIONS), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not name.endswith(".lengths")]
        return {name: np.split(arrays[name], np.cumsum(arrays[f"{name}.lengths"])[:-1]) for name in names}
