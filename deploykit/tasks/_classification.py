"""Functions of the tasks that give one label to each unit: a text, an image, or a word.

Their prediction is an array of logits, `(units, labels)`; of a whole text or image it has one row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.tasks import Array, Arrays, Float32, Int64, Observations, Spec, TextInput, TextOptions, softmax
from deploykit.tokenizer import Features, Tokenizer


def read_text(row: Mapping[str, Any], column: str) -> str:
    """Returns the text in a column of a row.

    Raises:
        KeyError: the row has no such column.
        ValueError: the value is not a text, or it is empty.
    """
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column!r} is {text!r}, expected a text that is not empty")
    return text


def read_label(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> str:
    """Returns the label of a row as a text without white space around it.

    Raises:
        KeyError: the row has no column of labels.
        ValueError: the value is neither a word nor a whole number.
    """
    label = row[str(columns["label"])]
    if label is None or isinstance(label, (list, dict, float)) or str(label).strip() == "":
        raise ValueError(f"the label is {label!r}, expected a word or a whole number")
    return str(label).strip()


def encode(inputs: Sequence[TextInput], tokenizer: Tokenizer, spec: Spec) -> list[list[Features]]:
    """Tokenizes inputs; a long text becomes several windows, and a long pair of texts is cut."""
    options: TextOptions = spec.options
    pairs = [(item.text, item.text_pair) for item in inputs if item.text_pair is not None]
    windows = iter(tokenizer.windows([item.text for item in inputs if item.text_pair is None], options.max_windows))
    encodings = iter(tokenizer.encode(*zip(*pairs, strict=True)) if pairs else ())
    return [next(windows) if item.text_pair is None else [Features(item.text, 0, next(encodings))] for item in inputs]


def decide(prediction: Float32, spec: Spec) -> Int64:
    """Returns the index of the most probable label of each unit, `(units,)`."""
    best: Int64 = prediction.argmax(axis=-1).astype(np.int64)
    return best


def probabilities(prediction: Float32, spec: Spec) -> Float32:
    """Returns the probability of each label, `(units, labels)`."""
    return softmax(prediction)


def distance(first: Float32, second: Float32) -> float:
    """Returns the largest absolute difference of a probability, computed from logits; infinity if the shapes differ."""
    if first.shape != second.shape:
        return float("inf")
    return float(np.abs(softmax(first) - softmax(second)).max(initial=0.0))


def observe(predictions: Sequence[Float32], spec: Spec) -> Observations:
    """Returns label, confidence and entropy of each unit."""
    units = np.array([len(rows) for rows in predictions], dtype=np.int64)
    # The empty array is for predictions that have no units at all.
    logits = [rows for rows in predictions if len(rows)] or [np.zeros((0, len(spec.labels)), np.float32)]
    probabilities = softmax(np.concatenate(logits))
    return Observations(units, probabilities.argmax(axis=1), probabilities.max(axis=1), entropies(probabilities))


def entropies(probabilities: Float32) -> Float32:
    """Returns the entropy of each row of probabilities, `(units, labels)`, from 0 (certain) to 1 (all labels equal)."""
    max_entropy = np.log(max(probabilities.shape[1], 2))  # of a uniform distribution; log(1) would divide by zero
    entropy: Float32 = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1) / max_entropy
    return entropy


def binary_entropies(probabilities: Float32) -> Float32:
    """Returns the entropy in bits of each probability and its complement, in the same shape, from 0 to 1 (at 0.5)."""
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    entropy: Float32 = -(clipped * np.log2(clipped) + (1 - clipped) * np.log2(1 - clipped))
    return entropy


def dump(predictions: Sequence[Float32]) -> dict[str, Array]:
    """Returns the logits of all predictions as `scores`, `(units, labels)`, and the units of each as `lengths`."""
    lengths = np.array([len(rows) for rows in predictions], dtype=np.int64)
    return {"scores": np.concatenate(list(predictions)).astype(np.float32), "lengths": lengths}


def load(arrays: Arrays) -> list[Float32]:
    """Returns the predictions that `dump` turned into arrays."""
    return np.split(arrays["scores"], np.cumsum(arrays["lengths"])[:-1])


def pipeline(answer: Any, top_k: int | None) -> list[dict[str, Any]]:
    """Lists the `top_k` most probable labels with their probabilities, the most probable first; None: all labels."""
    ranked = sorted(answer.scores.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ranked[:top_k]]
