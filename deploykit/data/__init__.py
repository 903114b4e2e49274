"""Labelled data, which `load` reads, splits, checks and describes before training.

All problems of the data are reported together. Examples are never changed here.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deploykit.artifact import sha256_of
from deploykit.data import attachments, checks, examples, formats, sources, splits, statistics
from deploykit.data.table import join
from deploykit.errors import DataError
from deploykit.images import AnyTokenizer
from deploykit.recipe import DataSection, file_format, is_file
from deploykit.recipe.sections import HEAD
from deploykit.tasks import Example, Task

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
    """Reads, splits and checks the labelled data.

    Args:
        section: the recipe's `data`.
        task: reads the rows.
        seed: of the splits that are cut from `train`.

    Raises:
        DataError: lists all problems.

    Example:
        >>> load(DataSection(train="reviews.csv"), tasks.load("text-classification"), seed=0).labels  # doctest: +SKIP
        ('negative', 'positive')
    """
    named = _named_splits(section, task)
    shares = {name: float(getattr(section, f"{name}_share")) for name in NAMES[1:] if name not in named}
    parts = _with_cut_splits(named, shares, task, seed)
    checks.refuse(list(checks.find_problems(parts, task, section.allow_leakage)))
    summary = statistics.summarize(parts, shares, task)
    of_files = dict.fromkeys(warning for split in parts.values() for warning in split.warnings)
    summary["warnings"] = [*of_files, *summary["warnings"]]
    for warning in summary["warnings"]:
        logger.warning(warning)
    train, validation, test = (parts[name].examples for name in NAMES)
    return Dataset(train, validation, test, task.label_names(train), summary)


def fingerprint(section: DataSection, seed: int, task: Task | None = None) -> str:
    """Returns a sha256 of the section's fields and the contents of its files, whose paths do not count.

    Of a directory, the names of its files count, too, but not those that begin with a dot.

    Of a data set of the hub, its id (with `@revision`, if it has one) and the names of its splits count. Files that the
    rows name count if the task reads them.

    Raises:
        DataError: a file is missing.
    """
    content = section.model_dump()
    for name in NAMES:
        if isinstance(content[name], dict):
            content[name] = {head: _identity(path) for head, path in content[name].items()}
        elif content[name] and is_file(content[name]):
            content[name] = _identity(content[name])
    attached = _attached(section, task) if task is not None and task.Input.FILES else []
    return hashlib.sha256(json.dumps([content, seed, *attached], sort_keys=True).encode()).hexdigest()


def _attached(section: DataSection, task: Task) -> list[str]:
    """Returns the hashes of the files that rows name; of one that is missing, its name."""
    names, hashes = attachments.columns(section, task), []
    for split in filter(partial(getattr, section), NAMES):
        table = attachments.locate(_table(section, split), names)
        hashes += [sha256_of(path) if path.is_file() else path.name for path in attachments.paths(table, names)]
    return hashes


def _identity(source: str) -> dict[str, Any]:
    """Returns the format and the content of a file or a directory."""
    path = sources.locate(source)
    return {"format": file_format(path.name), "sha256": _hashes(path)}


def _hashes(path: Path) -> str | list[tuple[str, str]]:
    """Returns the hash of a file, or the names and hashes of the files of a directory."""
    if not path.is_dir():
        return sha256_of(path)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return [(name, sha256_of(path / name)) for name in names if not Path(name).name.startswith(".")]


def lengths(dataset: Dataset, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """Describes the lengths in tokens of each split; see `statistics.describe_token_lengths`."""
    return {name: statistics.describe_token_lengths(getattr(dataset, name), tokenizer) for name in NAMES}


def _named_splits(section: DataSection, task: Task) -> dict[str, examples.Split]:
    """Reads the splits that the section names, and reports the problems of all of them together."""
    tables: dict[str, sources.Table] = {}
    parts: dict[str, examples.Split] = {}
    problems: dict[str, str] = {}
    for name in filter(partial(getattr, section), NAMES):
        try:
            tables[name] = attachments.locate(_table(section, name), attachments.columns(section, task))
        except DataError as error:
            problems[name] = str(error)
    read = examples.make_reader(tables.values(), task, section)
    for name, table in tables.items():
        try:
            parts[name] = examples.parse(name, table, task, section, read)
        except DataError as error:
            problems[name] = str(error)
    checks.refuse([problems[name] for name in NAMES if name in problems])
    return parts


def _table(section: DataSection, name: str) -> sources.Table:
    """Reads a split, which is a file, a directory, a file for each head, or a split of the data set of `train`."""
    source: str | dict[str, str] = getattr(section, name)
    if isinstance(source, dict):
        return join({head: sources.read(path, name, section.format) for head, path in source.items()}, HEAD)
    if name == "train" or is_file(source):
        return sources.read(source, name, section.format)
    if isinstance(section.train, dict) or not sources.has_splits(section.train):
        raise DataError(
            f"data.{name} is {source!r}, expected a file ({formats.SUFFIXES}) since data.train is one."
            " Name a file, or leave it out to cut it from data.train."
        )
    return sources.read(section.train, source, section.format)


def _with_cut_splits(
    named: dict[str, examples.Split], shares: dict[str, float], task: Task, seed: int
) -> dict[str, examples.Split]:
    """Adds the splits that are cut from `train`, the test split first."""
    parts = dict(named)
    rest = 1.0
    for name in reversed(NAMES):
        if name in shares:
            parts["train"], parts[name] = splits.cut(parts["train"], name, shares[name] / rest, task, seed)
            rest -= shares[name]
    return {name: parts[name] for name in NAMES}
