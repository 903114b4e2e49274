"""The metrics that tasks can name."""

from deploykit.evaluation.metrics import Definition
from deploykit.evaluation.metrics.items import EntityF1, MacroF1, MicroF1
from deploykit.evaluation.metrics.units import Accuracy, Matthews, RocAuc

METRICS: dict[str, Definition] = {
    "accuracy": Accuracy(),
    "entity_f1": EntityF1(),
    "macro_f1": MacroF1(),
    "micro_f1": MicroF1(),
    "matthews": Matthews(),
    "roc_auc": RocAuc(),
}
