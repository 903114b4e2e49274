"""The figures of a data set that the manifest keeps and the report shows, as values for JSON."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from deploykit.data.checks import find_shared
from deploykit.data.examples import Split, key_of, short_name
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.tasks import Example, Span, Task

PERCENTILES = (50, 90, 95, 99)
BINS = 20
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
BATCH_TEXTS = 1024  # tokenized at once, to bound the memory
WARNING_IMBALANCE = 10.0  # most frequent label to least


def summarize(splits: Mapping[str, Split], cut: Mapping[str, float], task: Task) -> dict[str, Any]:
    """Describes checked splits.

    Args:
        splits: `train`, `validation` and `test`.
        cut: the shares of the splits that were cut from `train`.
        task: lists the labels of an example.

    Returns:
        `rows`, `sources`, `labels`, `duplicates`, `conflicts` (copies of a text with another label), `leakage`,
        `imbalance` (most frequent label of `train` to least), `characters`, `without_spans` (share of texts; empty if
        no text has spans) and `warnings`, which are sentences.
    """
    labels = {
        name: Counter(label for row in split.examples for label in task.example_labels(row))
        for name, split in splits.items()
    }
    spans = any(_spans(row) for split in splits.values() for row in split.examples)
    figures: dict[str, Any] = {
        "rows": {name: len(split.examples) for name, split in splits.items()},
        "sources": {name: _origin(split, cut) for name, split in splits.items()},
        "labels": {name: dict(sorted(counts.items())) for name, counts in labels.items()},
        "duplicates": {
            name: len(split.examples) - len(set(map(key_of, split.examples))) for name, split in splits.items()
        },
        "conflicts": {name: _conflicts(split.examples) for name, split in splits.items()},
        "leakage": {f"{a.name}/{b.name}": len(find_shared(a, b)) for a, b in combinations(splits.values(), 2)},
        "imbalance": _imbalance(labels["train"]),
        "characters": {
            name: describe_distribution([sum(map(len, row.input.texts)) for row in split.examples])
            for name, split in splits.items()
        },
        "without_spans": {name: _without_spans(split.examples) for name, split in splits.items()} if spans else {},
    }
    return {**figures, "warnings": list(_warnings(figures))}


def describe_token_lengths(examples: Sequence[Example], tokenizer: AnyTokenizer) -> dict[str, Any]:
    """Describes the lengths in tokens, with special tokens and before truncation.

    Returns:
        The values of `describe_distribution`; `max_tokens`; `truncated`, the number of texts that are longer;
        `unknown_share` of all tokens that are not special; and `mostly_unknown`, the number of texts of which more than
        half is unknown.
    """
    text, added = (
        (tokenizer.text_tokenizer, tokenizer.image_tokens) if isinstance(tokenizer, ImageTokenizer) else (tokenizer, 0)
    )
    lengths: list[int] = [] if text else [added] * len(examples)
    ordinary: list[int] = []  # tokens that are not special
    unknown: list[int] = []
    for start in range(0, len(examples), BATCH_TEXTS):
        if text is None:
            break
        batch = examples[start : start + BATCH_TEXTS]
        texts = [row.input.texts[0] if len(row.input.texts) == 1 else row.input.texts[:2] for row in batch]
        for encoding in text.backend.encode_batch(texts):
            lengths.append(len(encoding.ids) + added)
            unknown.append(0 if text.unknown_id is None else encoding.ids.count(text.unknown_id))
            ordinary.append(encoding.special_tokens_mask.count(0))
    return {
        **describe_distribution(lengths),
        "max_tokens": tokenizer.max_tokens,
        "truncated": sum(length > tokenizer.max_tokens for length in lengths),
        "unknown_share": round(sum(unknown) / max(1, sum(ordinary)), 6),
        "mostly_unknown": sum(2 * a > b for a, b in zip(unknown, ordinary, strict=True)),
    }


def describe_distribution(values: Sequence[int]) -> dict[str, Any]:
    """Returns `mean`, `p50` to `p99`, `max`, and a histogram of equal bins: `edges`, one more than `counts`."""
    top = max(max(values), 1)  # images alone have no characters
    counts, edges = np.histogram(values, bins=min(BINS, top), range=(0, top))
    percentiles = np.percentile(values, PERCENTILES).round(1).tolist()
    return {
        "mean": round(float(np.mean(values)), 2),
        **{f"p{percent}": value for percent, value in zip(PERCENTILES, percentiles, strict=True)},
        "max": max(values),
        "histogram": {"edges": edges.round(2).tolist(), "counts": counts.tolist()},
    }


def _origin(split: Split, cut: Mapping[str, float]) -> str:
    name = short_name(split.source)
    return f"{name}, share {cut[split.name]:g}" if split.name in cut else name


def _imbalance(counts: Mapping[str, int]) -> float:
    """Returns how many times as frequent as the least frequent label the most frequent is; 1 if there are none."""
    return round(max(counts.values()) / min(counts.values()), 3) if counts else 1.0


def _conflicts(examples: Sequence[Example]) -> int:
    """Counts the rows whose text occurred earlier with other labels."""
    first: dict[object, Example] = {}
    earlier = [first.setdefault(key_of(example), example) for example in examples]
    return sum(_meaning(before) != _meaning(after) for before, after in zip(earlier, examples, strict=True))


def _spans(example: Example) -> bool:
    """Says whether the target of an example is spans."""
    return isinstance(example.target, tuple) and bool(example.target) and isinstance(example.target[0], Span)


def _meaning(example: Example) -> object:
    """Returns the labels; spans by the words they cover, since white space may differ between copies."""
    if not _spans(example):
        return example.target
    text = example.input.texts[0]
    spans = (
        (len(text[: span.start].split()), text[span.start : span.end].split(), span.label) for span in example.target
    )
    return tuple(spans)


def _without_spans(examples: Sequence[Example]) -> float:
    return round(sum(not _spans(example) for example in examples) / len(examples), 4)


def _alike(labels: Iterable[str]) -> list[list[str]]:
    """Groups labels that look the same to a reader: by their letters without case, or by their value as numbers."""
    groups: dict[object, list[str]] = {}
    for label in sorted(labels):
        letters = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        letters = "".join(letter for letter in letters if unicodedata.category(letter) not in ("Cc", "Cf"))
        groups.setdefault(float(letters) if NUMBER.fullmatch(letters) else letters, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, count in figures["duplicates"].items():
        if count:
            yield f"{count} of {figures['rows'][name]} rows of the {name} split repeat an earlier one."
    for name, count in figures["conflicts"].items():
        if count:
            yield f"{count} of them in the {name} split have another label than the first; one of the two is wrong."
    for alike in _alike({label for counts in figures["labels"].values() for label in counts}):
        *others, last = map(repr, alike)
        yield (
            f"the labels {', '.join(others)} and {last} differ only in case, in characters that cannot be seen, or in"
            " how a number is written: write them in one way, if they mean the same."
        )
    for names, count in figures["leakage"].items():
        if count:
            first, second = names.split("/")
            yield f"{count} rows of the {second} split occur in the {first} split, too; scores flatter the model."
    for name, counts in figures["labels"].items():
        absent = sorted(set(figures["labels"]["train"]) - set(counts))
        if absent:
            yield f"the {name} split has no row of: {', '.join(absent)}."
    if figures["imbalance"] >= WARNING_IMBALANCE:
        yield (
            f"the most frequent label of the training split is {figures['imbalance']:g} times as frequent as the"
            " least; consider class weights, and look at macro-F1."
        )
