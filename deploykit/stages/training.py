"""The first stage: a base model becomes a fine-tuned checkpoint."""

import logging
from typing import Any

import transformers

from deploykit import data, hardware, trainers
from deploykit.artifact import Artifact, draft
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import metrics, scoring
from deploykit.inference.predictor import Predictor
from deploykit.modeling import base_tokenizer, checkpoint
from deploykit.modeling.finetuning import Problem, rows
from deploykit.stages import preflight
from deploykit.stages.context import Job

log = logging.getLogger(__name__)


def train(job: Job) -> Artifact:
    """Fine-tunes the recipe's model on its data.

    Args:
        job: of the stage `train`; has no parent.
    """
    recipe, task, dataset, method = job.recipe, job.task, job.dataset(), trainers.load(job.recipe.method("train"))
    base = checkpoint.find(recipe.model, recipe.revision)
    transformers.set_seed(recipe.seed)  # the new head is drawn when the model is opened
    with draft(job.target) as folder:
        tokenizer = base_tokenizer.save(base, folder, recipe.data.max_tokens)
        model = checkpoint.open_base(
            base, task.AUTO_CLASS, dataset.labels, fine_tuned=method.FINE_TUNED, pad_id=tokenizer.pad_id
        )
        if model.config.pad_token_id is None:  # a decoder's, which judges a text by the last token that is none
            model.config.pad_token_id = tokenizer.pad_id
        predictor = Predictor(
            task, dataset.labels, tokenizer, TorchModel(model, Execution(engine="torch", threads=hardware.cpu_limit()))
        )
        preflight.try_out(model, tokenizer, base.name, pair=dataset.train[0].pair is not None)
        if recipe.export is not None:
            preflight.try_export(predictor, model, dataset.validation, recipe.export, base.name)
        lengths = data.lengths(dataset, tokenizer)
        _tell(dataset, lengths)

        learned, judged = (rows(task, tokenizer, part, dataset.labels) for part in (dataset.train, dataset.validation))
        problem = Problem(task, dataset.labels, tokenizer, learned, judged, recipe.seed)
        curve = method.train(model, problem, recipe.options("train"), job.work)

        model.eval()
        scores = scoring.score_all(predictor, dataset)
        gold = [task.targets(example, dataset.labels) for example in dataset.test]
        table = metrics.per_label(task.METRICS, gold, metrics.predictions(scores["test"]), dataset.labels)

        checkpoint.save(model, folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            scores=scores,
            parameters=checkpoint.parameters(model),
            details={"data": dataset.summary, "lengths": lengths, "curve": curve, "test": table},
            facts={
                "labels": dataset.labels,
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
