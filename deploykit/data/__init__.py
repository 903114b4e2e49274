"""Labelled data: read, split, checked and described before anything is trained on it.

`load` is the only way in. It refuses what cannot be trained on with all the problems it sees at once, and
what it returns carries a summary for the manifest. Training examples are never changed here.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from deploykit.artifact import sha256_of
from deploykit.data import checks, examples, sources, splits, statistics
from deploykit.errors import DataError
from deploykit.recipe import DataSection, file_format, is_file
from deploykit.tasks import Example, Task
from deploykit.tokenizer import Tokenizer

__all__ = ["Dataset", "fingerprint", "lengths", "load"]

NAMES = ("train", "validation", "test")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Three checked splits, the labels of `train`, and a summary that can be written as JSON."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]
    summary: dict[str, Any]


def load(section: DataSection, task: Task, seed: int) -> Dataset:
    """Reads, parses, splits and checks.

    Args:
        section: the recipe's `data`.
        task: gives rows their meaning.
        seed: decides which rows a split that is not given takes from `train`.

    Raises:
        DataError: lists everything that is wrong.

    Example:
        >>> load(DataSection(train="reviews.csv"), tasks.load("text-classification"), seed=0).labels  # doctest: +SKIP
        ('negative', 'positive')
    """
    given = _given(section, task)
    cut = {name: float(getattr(section, f"{name}_share")) for name in NAMES[1:] if name not in given}
    parts = _complete(given, cut, task, seed)
    checks.refuse(list(checks.problems(parts, task, section.allow_leakage)))
    summary = statistics.summary(parts, cut)
    for warning in summary["warnings"]:
        logger.warning(warning)
    train, validation, test = (parts[name].examples for name in NAMES)
    return Dataset(train, validation, test, task.label_names(train), summary)


def fingerprint(section: DataSection, seed: int) -> str:
    """Returns a sha256 over the bytes of the files and the section's fields; where the files lie is left out.

    Of a data set of the hub only its id (with `@revision`, if it has one) and the splits' names are known.

    Args:
        section: the recipe's `data`.
        seed: of the splits.

    Raises:
        DataError: a file is missing.
    """
    content = section.model_dump()
    for name in NAMES:
        if content[name] and is_file(content[name]):
            path = sources.require(content[name])
            content[name] = {"format": file_format(path.name), "sha256": sha256_of(path)}
    return hashlib.sha256(json.dumps([content, seed], sort_keys=True).encode()).hexdigest()


def lengths(dataset: Dataset, tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes each split's lengths in tokens, and counts the texts that will be truncated.

    Args:
        dataset: what `load` gave.
        tokenizer: the model's; its `max_tokens` is the limit.

    Returns:
        For each split what `figures.token_lengths` returns.
    """
    return {name: statistics.token_lengths(getattr(dataset, name), tokenizer) for name in NAMES}


def _given(section: DataSection, task: Task) -> dict[str, examples.Split]:
    """Reads the splits that the section names; the problems of all of them come together."""
    tables: dict[str, sources.Table] = {}
    parts: dict[str, examples.Split] = {}
    problems: dict[str, str] = {}
    for name in filter(partial(getattr, section), NAMES):
        try:
            tables[name] = _table(section, name)
        except DataError as error:
            problems[name] = str(error)
    read = examples.reader(tables.values(), task, section)
    for name, table in tables.items():
        try:
            parts[name] = examples.parse(name, table, task, section, read)
        except DataError as error:
            problems[name] = str(error)
    checks.refuse([problems[name] for name in NAMES if name in problems])
    return parts


def _table(section: DataSection, name: str) -> sources.Table:
    """Reads a split: a file of its own, or a split of the data set that `train` names."""
    source: str = getattr(section, name)
    if name == "train" or is_file(source):
        return sources.read(source)
    if is_file(section.train):
        raise DataError(f"data.{name} is {source!r}, expected a file ({sources.FORMATS}) since data.train is one.")
    return sources.read(section.train, source)


def _complete(
    given: dict[str, examples.Split], cut: dict[str, float], task: Task, seed: int
) -> dict[str, examples.Split]:
    """Cuts what was not given from `train`, the test split first."""
    parts = dict(given)
    whole = 1.0
    for name in reversed(NAMES):
        if name in cut:
            parts["train"], parts[name] = splits.cut(parts["train"], name, cut[name] / whole, task, seed)
            whole -= cut[name]
    return {name: parts[name] for name in NAMES}
