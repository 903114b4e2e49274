"""Problems that forbid training: empty splits, a single label, labels that training lacks, texts in two splits.

Each check yields sentences, so that several problems are reported together.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from deploykit.data.examples import Key, Split, describe_some, key_of
from deploykit.data.table import Place
from deploykit.errors import DataError
from deploykit.tasks import Task

SHOWN_CHARACTERS = 60  # of a text in a message


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


def find_problems(splits: Mapping[str, Split], task: Task, allow_leakage: bool) -> Iterator[str]:
    """Yields the problems of these splits.

    Args:
        splits: `train`, `validation` and `test`.
        task: names the labels.
        allow_leakage: whether a text may occur in two splits.
    """
    for split in splits.values():
        if not split.examples:
            yield f"the {split.name} split is empty ({split.source} holds no rows for it). Add rows."
    if splits["train"].examples:
        yield from _one_class(splits["train"], task)
        for name in ("validation", "test"):
            yield from _unseen(splits["train"], splits[name], task)
    if not allow_leakage:
        for first, second in combinations(splits.values(), 2):
            yield from _leakage(first, second)


def _one_class(train: Split, task: Task) -> Iterator[str]:
    labels = task.label_names(train.examples)
    if "labels" in task.FIGURES and len(labels) < 2:
        found = f"only one label, {labels[0]}" if labels else "no label"
        yield (
            f"{train.source} has {found} (rows: {len(train.examples)}), expected at least two."
            f" Add rows of {'another label' if labels else 'labels'}."
        )


def _unseen(train: Split, split: Split, task: Task) -> Iterator[str]:
    trained = {label for example in train.examples for label in task.example_labels(example)}
    lines_of: dict[str, list[Place]] = {}
    for example, line in zip(split.examples, split.lines, strict=True):
        for label in set(task.example_labels(example)) - trained:
            lines_of.setdefault(label, []).append(line)
    for label, lines in sorted(lines_of.items()):
        yield (
            f"the label {label!r} occurs in the {split.name} split but not in training: {split.source},"
            f" {split.unit} {', '.join(describe_some(lines, str))}. Training has: {', '.join(sorted(trained))}."
            " Add rows of it to the training file, or correct it."
        )


def find_shared(first: Split, second: Split) -> list[tuple[int, int]]:
    """Lists texts of the second split that are in the first, too: earliest row in the first, row in the second."""
    earliest: dict[Key, int] = {}
    for row, example in enumerate(first.examples):
        earliest.setdefault(key_of(example), row)
    keys = map(key_of, second.examples)
    return [(earliest[key], row) for row, key in enumerate(keys) if key in earliest]


def _leakage(first: Split, second: Split) -> Iterator[str]:
    pairs = find_shared(first, second)
    if not pairs:
        return
    rows = f"{len(pairs)} rows" if len(pairs) > 1 else "1 row"
    lines = describe_some(
        pairs,
        lambda pair: (
            f"{first.name} {first.unit} {first.lines[pair[0]]}, {second.name} {second.unit} {second.lines[pair[1]]}:"
            f" {second.examples[pair[1]].input.title[:SHOWN_CHARACTERS]!r}"
        ),
    )
    title = (
        f"{rows} of the {second.name} split {'occur' if len(pairs) > 1 else 'occurs'} in the {first.name} split, too,"
        " so a score would flatter the model. Remove them from one split, or set data.allow_leakage: true:"
    )
    yield "\n    ".join([title, *lines])
