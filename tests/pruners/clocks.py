"""A stand-in for the clock of the pruners' tests."""

from deploykit import architectures
from deploykit.artifact import Metric
from deploykit.pruners import _latency


def additive(head, block, fixed=0.0):
    """Times a model by its sizes: so much for each head and each block of neurons."""

    def measure(model):
        sizes = architectures.shapes(model)
        total = fixed + sum(head * size.heads + block * _latency.blocks(size.neurons) for size in sizes)
        return Metric(value=total, low=total * 0.9, high=total * 1.1)

    return measure
