"""Checks that an exported graph gives the same logits as torch on texts of several lengths, padded on either side."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from deploykit.engines import Engine
from deploykit.errors import GateError, ModelError
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, Float32
from deploykit.tokenizer import Features, Side, lengthen

PADDING_SIDES: tuple[Side, ...] = ("right", "left")


def difference(reference: Predictor, engine: Engine, examples: Sequence[Example]) -> dict[str, float]:
    """Runs the same batches on a model and its graph, and returns the largest logit difference for each kind of batch.

    Args:
        reference: the model in torch.
        engine: the exported graph.
        examples: real texts; see `make_batches`.

    Returns:
        The differences, for example `{"batch 1": 2e-6, "batch 8, left padding": 3e-6, ...}`. One is infinite if a logit
        of the graph is NaN.

    Raises:
        GateError: the graph fails on a batch.
        ModelError: a logit of the reference is NaN or infinite, so there is nothing to compare with.
    """
    exported = replace(reference, engine=engine)
    differences: dict[str, float] = {}
    for name, features in make_batches(examples, reference):
        for side in PADDING_SIDES if len(features) > 1 else PADDING_SIDES[:1]:
            try:
                outputs = exported.run(features, side)
            except Exception as error:  # each engine raises its own exceptions
                raise GateError(f"the exported graph fails on {name}: {error}. Try another export.opset.") from error
            expected = reference.run(features, side)
            if not all(np.isfinite(array).all() for row in expected for array in row.values()):
                raise ModelError(
                    f"the model itself, before its export, gives logits for {name} that are NaN or infinite. Train it"
                    " again with a lower learning_rate, or choose another model."
                )
            kind = f"{name}, {side} padding" if len(features) > 1 else name
            pairs = zip(expected, outputs, strict=True)
            largest = max(_largest(wanted[key] - found[key]) for wanted, found in pairs for key in wanted)
            differences[kind] = max(differences.get(kind, 0.0), largest)
    return differences


def _largest(differences: Float32) -> float:
    """Returns the largest absolute difference of an array; NaN counts as infinite, because `max` would ignore it."""
    return float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max(initial=0.0))


def make_batches(examples: Sequence[Example], predictor: Predictor) -> Iterator[tuple[str, Sequence[Features]]]:
    """Yields named batches: five single texts from the shortest to the longest, then 3 and 8 texts of mixed lengths.

    The last batch has the longest input that the model allows. It fails if the exporter stored the length of its sample
    input as a constant.
    """
    windows = [window for windows in predictor.encode([example.input for example in examples]) for window in windows]
    by_length = sorted(windows, key=len)
    samples = [by_length[round(share * (len(by_length) - 1))] for share in np.linspace(0, 1, 8)]  # from short to long
    yield from (("batch 1", [samples[index]]) for index in (0, 2, 4, 6, 7))
    yield "batch 3", samples[:3]
    yield "batch 8", samples
    yield f"{predictor.tokenizer.max_tokens} tokens", [lengthen(by_length[0], predictor.tokenizer.max_tokens)]
