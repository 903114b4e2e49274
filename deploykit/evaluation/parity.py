"""Whether an exported graph computes what torch computes: on real texts, several lengths, both paddings."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from deploykit.engines import Engine
from deploykit.errors import GateError, ModelError
from deploykit.inference.predictor import Predictor
from deploykit.tasks import Example, Float32
from deploykit.tokenizer import Side, Tokenizer

SIDES: tuple[Side, ...] = ("right", "left")


def difference(reference: Predictor, engine: Engine, examples: Sequence[Example]) -> dict[str, float]:
    """Runs the same batches on both and returns the largest logit difference of each kind of batch.

    Args:
        reference: the model in torch.
        engine: the exported graph.
        examples: real texts; see `probes`.

    Returns:
        For example `{"batch 1": 2e-6, "batch 8, left padding": 3e-6, ...}`; infinite where a logit is no number.

    Raises:
        GateError: the graph does not run.
        ModelError: the reference gives no numbers, so that there is nothing to compare with.
    """
    exported = replace(reference, engine=engine)
    found: dict[str, float] = {}
    for name, rows in probes(examples, reference.tokenizer):
        texts = [example.text for example in rows]
        encodings = reference.tokenizer.encode(texts, [example.pair for example in rows])
        for side in SIDES if len(rows) > 1 else SIDES[:1]:
            try:
                scores = exported.scores(texts, encodings, side)
            except Exception as error:  # each engine has its own
                raise GateError(f"the exported graph fails on {name}: {error}. Try another export.opset.") from error
            expected = reference.scores(texts, encodings, side)
            if not all(np.isfinite(row).all() for row in expected):
                raise ModelError(
                    f"the model itself, before its export, answers {name} with logits that are no numbers (NaN or"
                    " infinite). Train it again with a lower learning_rate, or choose another model."
                )
            largest = max(_largest(a - b) for a, b in zip(expected, scores, strict=True))
            full = f"{name}, {side} padding" if len(rows) > 1 else name
            found[full] = max(found.get(full, 0.0), largest)
    return found


def _largest(differences: Float32) -> float:
    """NaN counts as infinite: every comparison with it is false, so that a maximum would leave it out."""
    return float(np.nan_to_num(np.abs(differences), nan=np.inf, posinf=np.inf).max(initial=0.0))


def probes(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[tuple[str, Sequence[Example]]]:
    """Names and picks batches: five single texts from the shortest to the longest, 3 and 8 of mixed lengths.

    The last is as long as an input may be: what an exporter froze at the length that it saw is wrong there.
    """
    ordered = sorted(examples, key=lambda example: len(example.text) + len(example.pair or ""))
    spread = [ordered[round(share * (len(ordered) - 1))] for share in np.linspace(0, 1, 8)]
    yield from (("batch 1", [spread[index]]) for index in (0, 2, 4, 6, 7))
    yield "batch 3", spread[:3]
    yield "batch 8", spread
    text = tokenizer.longest(ordered[0].text)
    yield f"{tokenizer.max_tokens} tokens", [Example(text, None if ordered[0].pair is None else text)]
