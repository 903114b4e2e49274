"""The first stage: a base model becomes a fine-tuned checkpoint."""

from deploykit import checkpoint, data, hardware, trainers
from deploykit.artifact import Artifact, draft
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import metrics, splits
from deploykit.fitting import Problem, rows
from deploykit.job import Job
from deploykit.predictor import Predictor
from deploykit.tokenizer import Tokenizer


def train(job: Job) -> Artifact:
    """Fine-tunes the recipe's model on its data.

    Args:
        job: of the stage `train`; has no parent.
    """
    recipe, task, dataset, method = job.recipe, job.task, job.dataset(), trainers.load(job.recipe.method("train"))
    base = checkpoint.find(recipe.model, recipe.revision)
    model = checkpoint.open_base(base, task.AUTO_CLASS, dataset.labels, fine_tuned=method.FINE_TUNED)
    with draft(job.target) as folder:
        checkpoint.save_tokenizer(base, folder)
        tokenizer = Tokenizer.load(folder, checkpoint.max_tokens(base, recipe.data.max_tokens))
        lengths = data.lengths(dataset, tokenizer)

        learned, judged = (rows(task, tokenizer, part, dataset.labels) for part in (dataset.train, dataset.validation))
        problem = Problem(task, dataset.labels, tokenizer, learned, judged, recipe.seed)
        curve = method.train(model, problem, recipe.options("train"), job.work)

        predictor = Predictor(task, dataset.labels, tokenizer, TorchModel(model, hardware.cpu_limit()))
        scores = splits.score_all(predictor, dataset)
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
                "pair": recipe.data.text_pair is not None,
                "max_tokens": tokenizer.max_tokens,
                "base_model": base.name,
                "base_revision": base.revision,
            },
        )
