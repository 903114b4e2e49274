"""Problems that forbid training: empty splits, a single label, labels that training lacks, texts in two splits.

Each check yields sentences, so that several problems are reported together.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from deploykit.data.examples import Identity, Split, describe_first, identity_of
from deploykit.data.table import Place
from deploykit.errors import DataError
from deploykit.tasks import Task

MAX_TITLE_CHARACTERS = 60  # of a text in a message, where it only has to be recognized


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one error that lists all problems; does nothing if there are none.

    Raises:
        DataError: there is at least one problem.
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
        task: lists the labels of an example.
        allow_leakage: whether a text may occur in two splits.
    """
    for split in splits.values():
        if not split.examples:
            yield f"the {split.name} split is empty ({split.source} holds no rows for it). Add rows."
    if splits["train"].examples:
        yield from _find_single_label(splits["train"], task)
        for name in ("validation", "test"):
            yield from _find_unseen_labels(splits["train"], splits[name], task)
    if not allow_leakage:
        for reference, split in combinations(splits.values(), 2):
            yield from _find_leakage(reference, split)


def _find_single_label(train: Split, task: Task) -> Iterator[str]:
    """Yields a problem if the task has labels and training has fewer than two."""
    labels = task.label_names(train.examples)
    if "labels" in task.FIGURES and len(labels) < 2:
        found = f"only one label, {labels[0]}" if labels else "no label"
        yield (
            f"{train.source} has {found} (rows: {len(train.examples)}), expected at least two."
            f" Add rows of {'another label' if labels else 'labels'}."
        )


def _find_unseen_labels(train: Split, split: Split, task: Task) -> Iterator[str]:
    """Yields a problem for each label of a split that training does not have."""
    train_labels = {label for example in train.examples for label in task.example_labels(example)}
    places_of_label: dict[str, list[Place]] = {}
    for example, place in zip(split.examples, split.places, strict=True):
        for label in set(task.example_labels(example)) - train_labels:
            places_of_label.setdefault(label, []).append(place)
    for label, places in sorted(places_of_label.items()):
        yield (
            f"the label {label!r} occurs in the {split.name} split but not in training: {split.source},"
            f" {split.place_unit} {', '.join(describe_first(places, str))}."
            f" Training has: {', '.join(sorted(train_labels))}."
            " Add rows of it to the training file, or correct it."
        )


def find_overlap(reference: Split, split: Split) -> list[tuple[int, int]]:
    """Finds the rows of a split whose input also occurs in a reference split.

    Returns:
        The indices of two rows with the same input: the first such row of the reference, and the row of the split.
    """
    reference_rows: dict[Identity, int] = {}
    for row, example in enumerate(reference.examples):
        reference_rows.setdefault(identity_of(example), row)
    identities = map(identity_of, split.examples)
    return [(reference_rows[identity], row) for row, identity in enumerate(identities) if identity in reference_rows]


def _find_leakage(reference: Split, split: Split) -> Iterator[str]:
    """Yields one problem that lists the rows that two splits share."""
    pairs = find_overlap(reference, split)
    if not pairs:
        return

    def describe(pair: tuple[int, int]) -> str:
        reference_row, row = pair
        title = split.examples[row].input.title[:MAX_TITLE_CHARACTERS]
        return (
            f"{reference.name} {reference.place_unit} {reference.places[reference_row]},"
            f" {split.name} {split.place_unit} {split.places[row]}: {title!r}"
        )

    rows, occur = (f"{len(pairs)} rows", "occur") if len(pairs) > 1 else ("1 row", "occurs")
    summary = (
        f"{rows} of the {split.name} split {occur} in the {reference.name} split, too,"
        " so a score would flatter the model. Remove them from one split, or set data.allow_leakage: true:"
    )
    yield "\n    ".join([summary, *describe_first(pairs, describe)])
