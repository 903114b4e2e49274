"""The label functions of tasks without labels, such as regression and question answering."""

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
