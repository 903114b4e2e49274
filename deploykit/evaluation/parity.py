"""Whether an exported graph computes what torch computes: on real texts, several lengths, both paddings."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from deploykit.engines import Engine
from deploykit.predictor import Predictor
from deploykit.tasks import Example, Float32
from deploykit.tokenizer import Side

SIDES: tuple[Side, ...] = ("right", "left")


def difference(reference: Predictor, engine: Engine, examples: Sequence[Example]) -> dict[str, float]:
    """Runs the same batches on both and returns the largest logit difference of each kind of batch.

    Args:
        reference: the model in torch.
        engine: the exported graph.
        examples: real texts; see `probes`.

    Returns:
        For example `{"batch 1": 2e-6, "batch 8, left padding": 3e-6, ...}`; infinite where a logit is no number.
    """
    exported = replace(reference, engine=engine)
    found: dict[str, float] = {}
    for rows in probes(examples):
        texts = [example.text for example in rows]
        encodings = reference.tokenizer.encode(texts, [example.pair for example in rows])
        for side in SIDES:
            pairs = zip(reference.scores(texts, encodings, side), exported.scores(texts, encodings, side), strict=True)
            largest = max(_largest(a - b) for a, b in pairs)
            name = f"batch {len(rows)}" + (f", {side} padding" if len(rows) > 1 else "")
            found[name] = max(found.get(name, 0.0), largest)
    return found


def _largest(differences: Float32) -> float:
    """NaN counts as infinite: every comparison with it is false, so that a maximum would leave it out."""
    return float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max(initial=0.0))


def probes(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Picks batches: five single texts from the shortest to the longest, then 3 and 8 of mixed lengths."""
    ordered = sorted(examples, key=lambda example: len(example.text) + len(example.pair or ""))
    spread = [ordered[round(share * (len(ordered) - 1))] for share in np.linspace(0, 1, 8)]
    yield from ([spread[index]] for index in (0, 2, 4, 6, 7))
    yield spread[:3]
    yield spread
