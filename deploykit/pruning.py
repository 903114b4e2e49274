"""The second stage: a checkpoint becomes a smaller checkpoint."""

from deploykit import checkpoint, hardware, pruners
from deploykit.artifact import Artifact, draft, load_predictions
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import splits
from deploykit.evaluation.comparison import compare
from deploykit.execution import Execution
from deploykit.fitting import Problem, rows
from deploykit.job import Job
from deploykit.predictor import Predictor


def prune(job: Job) -> Artifact:
    """Prunes the parent's model, and lets it recover where the recipe asks for it.

    Args:
        job: of the stage `prune`.
    """
    task, dataset, labels, seed = job.task, job.dataset(), job.source.manifest.labels, job.recipe.seed
    model, tokenizer = checkpoint.load(job.source.path, attention=None), job.tokenizer()

    learned, judged = (rows(task, tokenizer, part, labels) for part in (dataset.train, dataset.validation))
    problem = Problem(task, labels, tokenizer, learned, judged, seed)
    method = pruners.load(job.recipe.method("prune"))
    small, facts = method.prune(model, problem, job.recipe.options("prune"), job.work)

    predictor = Predictor(
        task, labels, tokenizer, TorchModel(small, Execution(engine="torch", threads=hardware.cpu_limit()))
    )
    scores = splits.score_all(predictor, dataset)
    before = load_predictions(job.source)["validation"]
    lengths = splits.lengths(tokenizer, dataset.validation)
    comparison = compare(task, dataset.validation, labels, before, scores["validation"], seed, lengths)

    with draft(job.target) as folder:
        job.copy(folder)
        checkpoint.save(small, folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            scores=scores,
            parameters=checkpoint.parameters(small),
            details={**facts, "comparison": comparison.model_dump()},
        )
