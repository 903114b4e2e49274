"""The second stage: a checkpoint becomes a smaller checkpoint, in one step or in several.

Each step prunes what the step before it made. The teacher of every recovery is the model that came into the
stage, which is better than any that has been pruned already: its tokens follow a new vocabulary, and where
layers went, those that are left are known by their place in it.
"""

from dataclasses import replace
from typing import Any

from deploykit import hardware, pruners
from deploykit.artifact import Artifact, draft, load_predictions
from deploykit.artifact.execution import Execution
from deploykit.engines.torch import TorchModel
from deploykit.evaluation import scoring
from deploykit.evaluation.comparison import compare
from deploykit.inference.predictor import Predictor
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.finite import require_scores, require_weights
from deploykit.modeling.problem import Problem, Teacher, rows
from deploykit.pruners import Pruned
from deploykit.stages.context import Job
from deploykit.tokenizer import Tokenizer


def prune(job: Job) -> Artifact:
    """Prunes the parent's model, and lets it recover where the recipe asks for it.

    Args:
        job: of the stage `prune`.
    """
    task, dataset, labels, seed = job.task, job.dataset(), job.source.manifest.labels, job.recipe.seed
    made, steps = _run(job)
    tokenizer = made.tokenizer or job.tokenizer()

    predictor = Predictor(
        task, labels, tokenizer, TorchModel(made.model, Execution(engine="torch", threads=hardware.cpu_limit()))
    )
    scores = scoring.score_all(predictor, dataset)
    require_scores(scores, "the pruned model")
    before = load_predictions(job.source)["validation"]
    lengths = scoring.lengths(tokenizer, dataset.validation)
    comparison = compare(task, dataset.validation, labels, before, scores["validation"], seed, lengths)

    with draft(job.target) as folder:
        job.copy(folder)
        checkpoint.save(made.model, folder)
        if made.tokenizer:
            made.tokenizer.replace(folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            scores=scores,
            parameters=checkpoint.parameters(made.model),
            details={
                "steps": [{name: fact for name, fact in step.items() if name != "curve"} for step in steps],
                "curve": [point for step in steps for point in step.get("curve", ())],
                "comparison": comparison.model_dump(),
            },
        )


def _run(job: Job) -> tuple[Pruned, list[dict[str, Any]]]:
    """Returns what the steps made together, and the facts of each."""
    model = checkpoint.load(job.source.path, attention=None)
    require_weights(model, str(job.source.path))
    whole = Teacher(model, tuple(range(sum(surgery.depths(model)))))
    problem, made, steps = _problem(job, job.tokenizer(), whole), Pruned(model, {}), []
    for number, (name, options) in enumerate(job.recipe.steps("prune")):
        step = pruners.load(name).prune(made.model, problem, options, job.work / f"{number}-{name}")
        whole = _following(whole, step)
        problem = _problem(job, step.tokenizer, whole) if step.tokenizer else replace(problem, teacher=whole)
        made = replace(step, tokenizer=step.tokenizer or made.tokenizer)
        steps.append({"method": name, **step.facts})
    return made, steps


def _problem(job: Job, tokenizer: Tokenizer, teacher: Teacher) -> Problem:
    task, dataset, labels = job.task, job.dataset(), job.source.manifest.labels
    learned, judged = (rows(task, tokenizer, part, labels) for part in (dataset.train, dataset.validation))
    texts = tuple(text for found in dataset.train for text in (found.text, found.pair) if text is not None)
    return Problem(task, labels, tokenizer, learned, judged, job.recipe.seed, texts, teacher)


def _following(teacher: Teacher, step: Pruned) -> Teacher:
    """Returns the teacher of the next step, which reads the tokens and has the layers that this one left."""
    model, layers = teacher.model, teacher.layers
    return Teacher(
        model if step.tokens is None else surgery.with_tokens(model, step.tokens),
        layers if step.layers is None else tuple(layers[index] for index in step.layers),
    )
