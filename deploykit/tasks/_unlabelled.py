"""Functions of tasks whose models have no labels: numbers, answers in texts."""

from collections.abc import Sequence

from deploykit.tasks import Example


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns no labels."""
    return ()


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns no labels."""
    return ()


def example_labels(example: Example) -> tuple[str, ...]:
    """Returns no labels."""
    return ()
