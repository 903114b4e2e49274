"""The metrics that tasks can name."""

from deploykit.evaluation.metrics import Definition
from deploykit.evaluation.metrics.answers import AnswerF1, ExactMatch
from deploykit.evaluation.metrics.heads import MeanOfHeads
from deploykit.evaluation.metrics.items import EntityF1, MacroF1, MicroF1, SpanF1
from deploykit.evaluation.metrics.numbers import Pearson, RootMeanSquaredError, Spearman
from deploykit.evaluation.metrics.ranking import DiscountedGain, MeanReciprocalRank
from deploykit.evaluation.metrics.units import Accuracy, AveragePrecision, Matthews, RocAuc

METRICS: dict[str, Definition] = {
    "accuracy": Accuracy(),
    "answer_f1": AnswerF1(),
    "average_precision": AveragePrecision(),
    "entity_f1": EntityF1(),
    "exact_match": ExactMatch(),
    "macro_f1": MacroF1(),
    "micro_f1": MicroF1(),
    "matthews": Matthews(),
    "mean_of_heads": MeanOfHeads(),
    "mrr": MeanReciprocalRank(),
    "ndcg_at_10": DiscountedGain(),
    "pearson": Pearson(),
    "relation_f1": MicroF1(),
    "rmse": RootMeanSquaredError(),
    "roc_auc": RocAuc(),
    "span_f1": SpanF1(),
    "spearman": Spearman(),
}
