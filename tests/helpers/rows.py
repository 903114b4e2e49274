"""Rows of data, as tasks read them."""

from deploykit.tasks import Example, Spec, TextInput
from deploykit.tasks.text_classification import Options


def example_of(text, pair=None, label="", spans=None):
    """A labelled text: with spans of token classification, or with one label."""
    return Example(TextInput(text=text, text_pair=pair), label if spans is None else tuple(spans))


def spec_of(labels, **options):
    """What a task knows of a model with these labels."""
    return Spec(tuple(labels), Options(**options))


def inputs_of(texts, pairs=None):
    """Inputs of one text each, or of two."""
    return [
        TextInput(text=text, text_pair=pair) for text, pair in zip(texts, pairs or [None] * len(texts), strict=True)
    ]


def classification_loss(weights=None, smoothing=0.0):
    """The loss of both tasks that classify, of outputs with `logits`."""
    from deploykit import tasks
    from deploykit.modeling.losses import task_loss

    return task_loss(tasks.load("text-classification"), weights, smoothing)
