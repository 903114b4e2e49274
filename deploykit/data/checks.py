"""What must hold before any training: rows, more than one label, none unseen, no text in two splits.

Each check returns sentences, so that several problems are reported together; nothing is repaired here.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from deploykit.data.examples import Key, Split, key_of, label_counts, shortened
from deploykit.errors import DataError
from deploykit.tasks import Task

SHOWN = 60  # characters of a text in a message


def refuse(problems: Sequence[str]) -> None:
    """Raises one error for all problems.

    Raises:
        DataError: there is at least one.
    """
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"the data has {len(problems)} problems:\n{listing}")


def problems(splits: Mapping[str, Split], task: Task, allow_leakage: bool) -> Iterator[str]:
    """Yields what forbids training on these splits.

    Args:
        splits: `train`, `validation` and `test`.
        task: of the recipe.
        allow_leakage: whether a text may stand in two splits.
    """
    for split in splits.values():
        if not split.examples:
            yield f"the {split.name} split is empty ({split.source} holds no rows for it). Add rows."
    if splits["train"].examples:
        yield from _one_class(splits["train"], task)
        for name in ("validation", "test"):
            yield from _unseen(splits["train"], splits[name])
    if not allow_leakage:
        for one, other in combinations(splits.values(), 2):
            yield from _leakage(one, other)


def _one_class(train: Split, task: Task) -> Iterator[str]:
    labels = task.label_names(train.examples)
    if len(labels) < 2:
        yield (
            f"{train.source} has only one label, {', '.join(labels)} (rows: {len(train.examples)}),"
            " expected at least two. Add rows of another label."
        )


def _unseen(train: Split, split: Split) -> Iterator[str]:
    known = {label for example in train.examples for label in label_counts(example)}
    found: dict[str, list[int]] = {}
    for example, line in zip(split.examples, split.lines, strict=True):
        for label in dict.fromkeys(label_counts(example)):
            if label not in known:
                found.setdefault(label, []).append(line)
    for label, lines in sorted(found.items()):
        where = ", ".join(shortened(lines, str))
        yield (
            f"the label {label!r} stands in the {split.name} split and never in training: {split.source},"
            f" {split.unit} {where}. Training has: {', '.join(sorted(known))}. Add rows of it to the training"
            " file, or correct it."
        )


def shared(one: Split, other: Split) -> list[tuple[int, int]]:
    """Lists the rows of `other` whose text stands in `one` too: first row there, row here."""
    first: dict[Key, int] = {}
    for row, example in enumerate(one.examples):
        first.setdefault(key_of(example), row)
    keys = map(key_of, other.examples)
    return [(first[key], row) for row, key in enumerate(keys) if key in first]


def _leakage(one: Split, other: Split) -> Iterator[str]:
    found = shared(one, other)
    if not found:
        return
    rows = "rows of the" if len(found) > 1 else "row of the"
    verb = "stand" if len(found) > 1 else "stands"
    lines = shortened(
        found,
        lambda pair: (
            f"{one.name} {one.unit} {one.lines[pair[0]]}, {other.name} {other.unit} {other.lines[pair[1]]}:"
            f" {other.examples[pair[1]].text[:SHOWN]!r}"
        ),
    )
    head = (
        f"{len(found)} {rows} {other.name} split {verb} in the {one.name} split too, so a score would flatter the"
        " model. Remove them from one split, or set data.allow_leakage: true:"
    )
    yield "\n    ".join([head, *lines])
