"""The first stage: a base model becomes a fine-tuned checkpoint."""

import logging
from collections.abc import Sequence
from typing import Any

import transformers

from deploykit import data, hardware, trainers
from deploykit.artifact import Artifact, draft
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.errors import ModelError
from deploykit.evaluation import metrics, scoring
from deploykit.inference.predictor import Predictor
from deploykit.modeling import base_tokenizer, checkpoint
from deploykit.modeling.finite import ADVICE, LARGEST_LOGIT, largest, require_scores, require_weights
from deploykit.modeling.labels import match, rename, reorder
from deploykit.modeling.problem import Problem, Row, rows
from deploykit.stages import preflight
from deploykit.stages.context import Job
from deploykit.tasks import Task

MOSTLY_UNKNOWN_SHARE = 0.05  # of texts, from which a warning is given
log = logging.getLogger(__name__)


def train(job: Job) -> Artifact:
    """Fine-tunes the recipe's model on its data.

    Args:
        job: of the stage `train`; has no parent.

    Raises:
        ModelError: weights or logits are no numbers, or far too large.
    """
    recipe, task, dataset, method = job.recipe, job.task, job.dataset(), trainers.load(job.recipe.method("train"))
    base = checkpoint.find(recipe.model, recipe.revision)
    transformers.set_seed(recipe.seed)  # the new head is drawn when the model is opened
    names = labels = dataset.labels
    if method.FINE_TUNED:
        names = match(checkpoint.labels_of(base), dataset.labels, recipe.labels, base.name)
        labels = task.label_order(names)
    with draft(job.target) as folder:
        tokenizer = base_tokenizer.save(base, folder, recipe.data.max_tokens)
        model = checkpoint.open_base(
            base, task.AUTO_CLASS, names, fine_tuned=method.FINE_TUNED, pad_id=tokenizer.pad_id
        )
        if labels != names:
            reorder(model, [names.index(label) for label in labels])
        rename(model, labels)
        require_weights(model, base.name)
        if model.config.pad_token_id is None:  # a decoder's, which judges a text by the last token that is none
            model.config.pad_token_id = tokenizer.pad_id
        predictor = Predictor(
            task, labels, tokenizer, TorchModel(model, Execution(engine="torch", threads=hardware.cpu_limit()))
        )
        preflight.try_out(model, tokenizer, base.name, pair=dataset.train[0].pair is not None)
        if recipe.export is not None:
            preflight.try_export(predictor, model, dataset.validation, recipe.export, base.name)
        lengths = data.lengths(dataset, tokenizer)
        _tell(dataset, lengths)

        learned, judged = (rows(task, tokenizer, part, labels) for part in (dataset.train, dataset.validation))
        _tell_of_spans(task, learned, labels)
        problem = Problem(task, labels, tokenizer, learned, judged, recipe.seed)
        curve = method.train(model, problem, recipe.options("train"), job.work)

        model.eval()
        scores = scoring.score_all(predictor, dataset)
        require_scores(scores, base.name if recipe.train is None else f"{base.name}, as it was trained,")
        if recipe.train is not None and (logit := largest(scores["validation"])) > LARGEST_LOGIT:
            raise ModelError(
                f"the logits reach {logit:.0e}, expected less than {LARGEST_LOGIT:g}: training diverged. {ADVICE}"
            )
        gold = [task.targets(example, labels) for example in dataset.test]
        table = metrics.per_label(task.METRICS, gold, metrics.predictions(scores["test"]), labels)

        checkpoint.save(model, folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            scores=scores,
            parameters=checkpoint.parameters(model),
            details={"data": dataset.summary, "lengths": lengths, "curve": curve, "test": table},
            facts={
                "labels": labels,
                "pair": dataset.train[0].pair is not None,
                "max_tokens": tokenizer.max_tokens,
                "base_model": base.name,
                "base_revision": base.revision,
            },
        )


def _tell(dataset: data.Dataset, lengths: dict[str, Any]) -> None:
    """Logs what the data is, and how many texts are longer than the model reads."""
    for name, count in dataset.summary["rows"].items():
        labels = ", ".join(f"{label} {number}" for label, number in dataset.summary["labels"][name].items())
        spread = ", ".join(f"{part} {lengths[name][part]:.0f}" for part in ("mean", "p50", "p95", "max"))
        log.info("%s: %d rows (%s), tokens: %s", name, count, labels, spread)
        if lengths[name]["truncated"]:
            limit = lengths[name]["max_tokens"]
            cut = lengths[name]["truncated"]
            log.warning("%d of %d %s texts are longer than %d tokens and are cut", cut, count, name, limit)
        unknown = lengths[name]["mostly_unknown"]
        if unknown > MOSTLY_UNKNOWN_SHARE * count:
            log.warning(
                "%d of %d %s texts consist mostly of tokens that the tokenizer does not know, and look alike to the"
                " model: choose one for their language",
                *(unknown, count, name),
            )


def _tell_of_spans(task: Task, learned: Sequence[Row], labels: Sequence[str]) -> None:
    """Warns of spans that the tokenizer makes impossible, where the task has spans."""
    inexpressible = getattr(task, "inexpressible", None)
    if inexpressible is None:
        return
    pairs = [(row.example, span) for row in learned for span in inexpressible(row.example, row.encoding, labels)]
    if pairs:
        example, span = pairs[0]
        log.warning(
            "%d of %d spans of the training split begin or end inside a token of the model's tokenizer, such as %r: no"
            " answer can give them. Choose a model whose tokenizer cuts there, or spans of whole tokens",
            *(len(pairs), sum(len(row.example.spans) for row in learned), example.text[span.start : span.end]),
        )
