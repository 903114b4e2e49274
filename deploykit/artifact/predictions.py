"""The scores of the validation and test rows in an artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.artifact.directory import Artifact
from deploykit.artifact.files import PREDICTIONS


def save_predictions(folder: Path, rows: Mapping[str, list[npt.NDArray[np.float32]]]) -> None:
    """Stores the scores of each split, concatenated as `name`, and the units of each row as `name.lengths`.

    Args:
        folder: of the draft.
        rows: by split, one array `(units, labels)` per row.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, scores in rows.items():
        arrays[name] = np.concatenate(scores).astype(np.float32)
        arrays[f"{name}.lengths"] = np.array([len(row) for row in scores], dtype=np.int64)
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, **arrays)


def load_predictions(artifact: Artifact) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Reads scores that `save_predictions` wrote."""
    with np.load(artifact.file(PREDICTIONS), allow_pickle=False) as arrays:
        names = [name for name in arrays.files if not name.endswith(".lengths")]
        return {name: np.split(arrays[name], np.cumsum(arrays[f"{name}.lengths"])[:-1]) for name in names}
