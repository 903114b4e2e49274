"""The figures of a data set for the manifest and the report, as values that JSON can hold."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from deploykit.data.checks import find_overlap
from deploykit.data.examples import Split, identity_of, short_name
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.tasks import Example, Span, Task

PERCENTILES = (50, 90, 95, 99)
MAX_BINS = 20  # of a histogram
DECIMAL_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
TEXTS_PER_BATCH = 1024  # tokenized at once, to bound the memory
IMBALANCE_WARNING_RATIO = 10.0  # of the most to the least frequent label


def summarize(splits: Mapping[str, Split], cut_shares: Mapping[str, float], task: Task) -> dict[str, Any]:
    """Describes checked splits.

    Args:
        splits: `train`, `validation` and `test`.
        cut_shares: by name of the splits that were cut from `train`, the share of its rows.
        task: lists the labels of an example.

    Returns:
        By split: `rows`, `sources`, `labels` (how often each occurs), `duplicates`, `conflicts` (rows that repeat a
        text with another label), `characters` (of texts, as a distribution) and `without_spans` (share of rows; empty
        if no row has spans). By pair of splits: `leakage` (rows of the second that are in the first). Besides,
        `imbalance` (ratio of the most to the least frequent label of `train`) and `warnings`, which are sentences.
    """
    label_counts = {
        name: Counter(label for row in split.examples for label in task.example_labels(row))
        for name, split in splits.items()
    }
    any_spans = any(_has_spans(row) for split in splits.values() for row in split.examples)
    figures: dict[str, Any] = {
        "rows": {name: len(split.examples) for name, split in splits.items()},
        "sources": {name: _describe_source(split, cut_shares) for name, split in splits.items()},
        "labels": {name: dict(sorted(counts.items())) for name, counts in label_counts.items()},
        "duplicates": {
            name: len(split.examples) - len(set(map(identity_of, split.examples))) for name, split in splits.items()
        },
        "conflicts": {name: _count_conflicts(split.examples) for name, split in splits.items()},
        "leakage": {f"{a.name}/{b.name}": len(find_overlap(a, b)) for a, b in combinations(splits.values(), 2)},
        "imbalance": _imbalance(label_counts["train"]),
        "characters": {
            name: describe_distribution([sum(map(len, row.input.texts)) for row in split.examples])
            for name, split in splits.items()
        },
        "without_spans": {name: _share_without_spans(split.examples) for name, split in splits.items()}
        if any_spans
        else {},
    }
    return {**figures, "warnings": list(_warnings(figures))}


def describe_token_lengths(examples: Sequence[Example], tokenizer: AnyTokenizer) -> dict[str, Any]:
    """Describes the lengths of inputs in tokens: with special tokens and those of an image, before truncation.

    Returns:
        The values of `describe_distribution`; `max_tokens`, the limit of the tokenizer; `truncated`, the number of
        inputs that exceed it; `unknown_share`, the share of unknown tokens among those that are not special; and
        `mostly_unknown`, the number of inputs in which this share is above one half.
    """
    if isinstance(tokenizer, ImageTokenizer):
        text_tokenizer, image_tokens = tokenizer.text_tokenizer, tokenizer.image_tokens
    else:
        text_tokenizer, image_tokens = tokenizer, 0
    lengths: list[int] = [] if text_tokenizer else [image_tokens] * len(examples)
    ordinary_counts: list[int] = []  # tokens of each text that are not special
    unknown_counts: list[int] = []
    for start in range(0, len(examples), TEXTS_PER_BATCH):
        if text_tokenizer is None:
            break
        batch = examples[start : start + TEXTS_PER_BATCH]
        texts = [row.input.texts[0] if len(row.input.texts) == 1 else row.input.texts[:2] for row in batch]
        for encoding in text_tokenizer.backend.encode_batch(texts):
            lengths.append(len(encoding.ids) + image_tokens)
            unknown_id = text_tokenizer.unknown_id
            unknown_counts.append(0 if unknown_id is None else encoding.ids.count(unknown_id))
            ordinary_counts.append(encoding.special_tokens_mask.count(0))
    return {
        **describe_distribution(lengths),
        "max_tokens": tokenizer.max_tokens,
        "truncated": sum(length > tokenizer.max_tokens for length in lengths),
        "unknown_share": round(sum(unknown_counts) / max(1, sum(ordinary_counts)), 6),
        "mostly_unknown": sum(
            2 * unknown > ordinary for unknown, ordinary in zip(unknown_counts, ordinary_counts, strict=True)
        ),
    }


def describe_distribution(values: Sequence[int]) -> dict[str, Any]:
    """Returns `mean`, `p50` to `p99`, `max`, and `histogram`, whose bins are equally wide.

    The histogram has the `edges` of the bins, one more than their `counts`.
    """
    upper_edge = max(max(values), 1)  # inputs that are images only have 0 characters
    counts, edges = np.histogram(values, bins=min(MAX_BINS, upper_edge), range=(0, upper_edge))
    percentiles = np.percentile(values, PERCENTILES).round(1).tolist()
    return {
        "mean": round(float(np.mean(values)), 2),
        **{f"p{percent}": value for percent, value in zip(PERCENTILES, percentiles, strict=True)},
        "max": max(values),
        "histogram": {"edges": edges.round(2).tolist(), "counts": counts.tolist()},
    }


def _describe_source(split: Split, cut_shares: Mapping[str, float]) -> str:
    """Returns the name of the source of a split, with its share if it was cut from it."""
    name = short_name(split.source)
    return f"{name}, share {cut_shares[split.name]:g}" if split.name in cut_shares else name


def _imbalance(counts: Mapping[str, int]) -> float:
    """Returns the ratio of the most frequent to the least frequent label; 1 if there are no labels."""
    return round(max(counts.values()) / min(counts.values()), 3) if counts else 1.0


def _count_conflicts(examples: Sequence[Example]) -> int:
    """Counts the rows whose labels differ from those of the first row with the same input."""
    first_of_identity: dict[object, Example] = {}
    first_copies = [first_of_identity.setdefault(identity_of(example), example) for example in examples]
    return sum(
        _comparable_target(first) != _comparable_target(example)
        for first, example in zip(first_copies, examples, strict=True)
    )


def _has_spans(example: Example) -> bool:
    """Tells whether the target of an example is spans, at least one."""
    return isinstance(example.target, tuple) and bool(example.target) and isinstance(example.target[0], Span)


def _comparable_target(example: Example) -> object:
    """Returns the target in a form that is equal for copies of a text with the same labels.

    A span becomes the number of words before it, its words and its label, since white space may differ between copies.
    """
    if not _has_spans(example):
        return example.target
    text = example.input.texts[0]
    return tuple(
        (len(text[: span.start].split()), text[span.start : span.end].split(), span.label) for span in example.target
    )


def _share_without_spans(examples: Sequence[Example]) -> float:
    return round(sum(not _has_spans(example) for example in examples) / len(examples), 4)


def _find_similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """Groups labels that people take for the same, and returns the groups of several.

    The labels of a group have the same value as numbers, or the same letters, without case, white space and invisible
    characters.
    """
    groups: dict[object, list[str]] = {}
    for label in sorted(labels):
        letters = "".join(unicodedata.normalize("NFKC", label).casefold().split())
        # Control and format characters (Cc, Cf) are invisible.
        letters = "".join(letter for letter in letters if unicodedata.category(letter) not in ("Cc", "Cf"))
        groups.setdefault(float(letters) if DECIMAL_NUMBER.fullmatch(letters) else letters, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yields warnings about the figures of `summarize`."""
    for name, count in figures["duplicates"].items():
        if count:
            yield f"{count} of {figures['rows'][name]} rows of the {name} split repeat an earlier one."
    for name, count in figures["conflicts"].items():
        if count:
            yield f"{count} of them in the {name} split have another label than the first; one of the two is wrong."
    all_labels = {label for counts in figures["labels"].values() for label in counts}
    for similar_labels in _find_similar_labels(all_labels):
        *others, last = map(repr, similar_labels)
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
    if figures["imbalance"] >= IMBALANCE_WARNING_RATIO:
        yield (
            f"the most frequent label of the training split is {figures['imbalance']:g} times as frequent as the"
            " least; consider class weights, and look at macro-F1."
        )
