"""A stand-in for the clock of the pruners' tests."""

from deploykit.artifact import Metric
from deploykit.modeling import surgery
from deploykit.pruners._width import latency_table


def additive(head, block, fixed=0.0):
    """Times a model by its sizes: so much for each head and each block of neurons."""

    def measure(model):
        sizes = surgery.shapes(model)
        total = fixed + sum(head * size.heads + block * latency_table.block_count(size.neurons) for size in sizes)
        return Metric(value=total, low=total * 0.9, high=total * 1.1)

    return measure
