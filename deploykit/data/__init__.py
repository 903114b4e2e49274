"""Reads, splits, checks and describes labelled data before training.

All problems of the data are reported together. Examples are never changed here.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifact import sha256_of
from deploykit.data import attachments, checks, examples, formats, sources, splits, statistics
from deploykit.data.table import concatenate
from deploykit.errors import DataError
from deploykit.images import AnyTokenizer
from deploykit.recipe import DataSection, file_format, is_file
from deploykit.recipe.sections import HEAD_COLUMN
from deploykit.tasks import Example, Task

SPLIT_NAMES = ("train", "validation", "test")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Three checked splits, the labels of `train`, and a summary that JSON can hold; see `statistics.summarize`."""

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
        seed: for cutting splits from `train`.

    Raises:
        DataError: the data has problems, all of which are listed.

    Example:
        >>> load(DataSection(train="reviews.csv"), tasks.load("text-classification"), seed=0).labels  # doctest: +SKIP
        ('negative', 'positive')
    """
    named_splits = _read_named_splits(section, task)
    shares = {name: float(getattr(section, f"{name}_share")) for name in SPLIT_NAMES[1:] if name not in named_splits}
    all_splits = _with_cut_splits(named_splits, shares, task, seed)
    checks.raise_problems(list(checks.find_problems(all_splits, task, section.allow_leakage)))
    summary = statistics.summarize(all_splits, shares, task)
    # Splits that were cut from one file have the same warnings.
    source_warnings = dict.fromkeys(warning for split in all_splits.values() for warning in split.warnings)
    summary["warnings"] = [*source_warnings, *summary["warnings"]]
    for warning in summary["warnings"]:
        logger.warning(warning)
    train, validation, test = (all_splits[name].examples for name in SPLIT_NAMES)
    return Dataset(train, validation, test, task.label_names(train), summary)


def fingerprint(section: DataSection, seed: int, task: Task | None = None) -> str:
    """Returns a sha256 of the section's fields and of the data itself.

    Of a file, the content and the format count, but not the path. Of a directory, the names of its files count, too;
    files whose names begin with a dot do not count. Of a data set of the hub, its id (with `@revision`, if it has one)
    and the names of its splits count.

    Args:
        section: the recipe's `data`.
        seed: for cutting splits from `train`.
        task: if it reads files that rows name, such as images, their contents count. None leaves them out.

    Raises:
        DataError: a file is missing.
    """
    content = section.model_dump()
    for name in SPLIT_NAMES:
        if isinstance(content[name], dict):
            content[name] = {head: _hash_source(path) for head, path in content[name].items()}
        elif content[name] and is_file(content[name]):
            content[name] = _hash_source(content[name])
    file_hashes = _hash_attachments(section, task) if task is not None and task.Input.FILES else []
    return hashlib.sha256(json.dumps([content, seed, *file_hashes], sort_keys=True).encode()).hexdigest()


def _hash_attachments(section: DataSection, task: Task) -> list[str]:
    """Returns the hashes of the files that rows name; for a file that is missing, its name."""
    columns, hashes = attachments.file_columns(section, task), []
    for split in SPLIT_NAMES:
        source = getattr(section, split)
        if not (isinstance(source, str) and is_file(source)):  # a data set of the hub contains its images
            continue
        table = attachments.with_absolute_paths(_read_table(section, split), columns)
        hashes += [sha256_of(path) if path.is_file() else path.name for path in attachments.list_paths(table, columns)]
    return hashes


def _hash_source(source: str) -> dict[str, Any]:
    """Returns the format and the hash of a file or a directory."""
    path = sources.locate(source)
    return {"format": file_format(path.name), "sha256": _hash_path(path)}


def _hash_path(path: Path) -> str | list[tuple[str, str]]:
    """Returns the hash of a file, or for a directory the names and hashes of its files, but not of hidden ones."""
    if not path.is_dir():
        return sha256_of(path)
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return [(name, sha256_of(path / name)) for name in names if not Path(name).name.startswith(".")]


def describe_lengths(dataset: Dataset, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """Describes the lengths of inputs in tokens, by split; see `statistics.describe_token_lengths`."""
    return {name: statistics.describe_token_lengths(getattr(dataset, name), tokenizer) for name in SPLIT_NAMES}


def _read_named_splits(section: DataSection, task: Task) -> dict[str, examples.Split]:
    """Reads the splits for which the section names a source, and reports the problems of all of them together."""
    tables: dict[str, sources.Table] = {}
    named_splits: dict[str, examples.Split] = {}
    problems: dict[str, str] = {}
    columns = attachments.file_columns(section, task)
    for name in SPLIT_NAMES:
        if not getattr(section, name):
            continue
        try:
            tables[name] = attachments.with_absolute_paths(_read_table(section, name), columns)
        except DataError as error:
            problems[name] = str(error)
    read_row = examples.make_reader(tables.values(), task, section)
    for name, table in tables.items():
        try:
            named_splits[name] = examples.parse(name, table, task, section, read_row)
        except DataError as error:
            problems[name] = str(error)
    checks.raise_problems([problems[name] for name in SPLIT_NAMES if name in problems])
    return named_splits


def _read_table(section: DataSection, name: str) -> sources.Table:
    """Reads the source of a split.

    It is a file, a directory or a data set of the hub; a file for each head; or, for `validation` and `test`, the name
    of a split of the source of `train`.

    Raises:
        DataError: the source cannot be read, or is no file although `train` has no named splits.
    """
    source: str | dict[str, str] = getattr(section, name)
    if isinstance(source, dict):
        return concatenate(
            {head: sources.read(path, name, section.format) for head, path in source.items()}, HEAD_COLUMN
        )
    if name == "train" or is_file(source):
        return sources.read(source, name, section.format)
    if isinstance(section.train, dict) or not sources.has_splits(section.train):
        raise DataError(
            f"data.{name} is {source!r}, expected a file ({formats.READABLE_SUFFIXES}) since data.train is one."
            " Name a file, or leave it out to cut it from data.train."
        )
    return sources.read(section.train, source, section.format)


def _with_cut_splits(
    named_splits: dict[str, examples.Split], shares: dict[str, float], task: Task, seed: int
) -> dict[str, examples.Split]:
    """Cuts the splits in `shares` from `train`, the test split first, and returns all three splits by name."""
    all_splits = dict(named_splits)
    rest_share = 1.0  # of the original training rows
    for name in reversed(SPLIT_NAMES):
        if name in shares:
            share = shares[name] / rest_share
            all_splits["train"], all_splits[name] = splits.cut(all_splits["train"], name, share, task, seed)
            rest_share -= shares[name]
    return {name: all_splits[name] for name in SPLIT_NAMES}
