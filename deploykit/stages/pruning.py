"""The second stage: prunes a checkpoint, in one step or in several.

Each step prunes the model of the step before. The teacher of every distillation is the model that came into the stage,
because it is better than any pruned one. If a step removes tokens, they are removed from the teacher, too. If a step
removes layers, the stage notes which layers of the teacher the student still has.
"""

from dataclasses import replace
from typing import Any

from deploykit import pruners
from deploykit.artifact import Artifact, draft
from deploykit.evaluation import scoring
from deploykit.evaluation.comparison import compare
from deploykit.images import AnyTokenizer
from deploykit.modeling import checkpoint, surgery
from deploykit.modeling.losses import require_finite_predictions, require_finite_weights
from deploykit.modeling.problem import Problem, Teacher
from deploykit.pruners import Pruned
from deploykit.stages.context import Job


def prune(job: Job) -> Artifact:
    """Prunes the parent's model, and trains the pruned one if the recipe asks for it.

    Raises:
        ModelError: weights or logits are NaN or infinite.
    """
    task, spec, dataset, seed = job.task, job.spec(), job.dataset(), job.recipe.seed
    pruned, steps = _run_steps(job)
    tokenizer = pruned.tokenizer or job.tokenizer()

    predictor = job.torch_predictor(pruned.model, tokenizer, spec)
    predictions = scoring.predict_all(predictor, dataset)
    require_finite_predictions(task, predictions, "the pruned model")
    before, after, rows = job.predictions()["validation"], predictions["validation"], dataset.validation
    comparison = compare(task, spec, rows, before, after, seed, scoring.count_tokens(predictor, rows))

    with draft(job.target) as folder:
        job.copy_files(folder)
        checkpoint.save(pruned.model, folder)
        if pruned.tokenizer:
            pruned.tokenizer.overwrite(folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            predictions=predictions,
            parameters=checkpoint.count_parameters(pruned.model),
            details={
                "steps": [{name: fact for name, fact in step.items() if name != "curve"} for step in steps],
                "curve": [point for step in steps for point in step.get("curve", ())],
                "comparison": comparison.model_dump(),
            },
        )


def _run_steps(job: Job) -> tuple[Pruned, list[dict[str, Any]]]:
    """Runs the pruners of the recipe one after another.

    Returns:
        The model after the last step, with the tokenizer if a step changed it; and the facts of each step for the
        manifest.
    """
    model = checkpoint.load(job.required_parent.path, attention=None)
    require_finite_weights(model, str(job.required_parent.path))
    teacher = Teacher(model, tuple(range(sum(surgery.depths(model)))))
    problem, pruned, facts = _problem(job, job.tokenizer(), teacher), Pruned(model, {}), []
    for number, (name, options) in enumerate(job.recipe.steps("prune")):
        step = pruners.load(name).prune(pruned.model, problem, options, job.work / f"{number}-{name}")
        teacher = _next_teacher(teacher, step)
        problem = _problem(job, step.tokenizer, teacher) if step.tokenizer else replace(problem, teacher=teacher)
        pruned = replace(step, tokenizer=step.tokenizer or pruned.tokenizer)
        facts.append({"method": name, **step.facts})
    return pruned, facts


def _problem(job: Job, tokenizer: AnyTokenizer, teacher: Teacher) -> Problem:
    """Tokenizes the training split for a step."""
    dataset = job.dataset()
    return Problem.of(job.task, job.spec(), tokenizer, dataset.train, dataset.validation, job.recipe.seed, teacher)


def _next_teacher(teacher: Teacher, step: Pruned) -> Teacher:
    """Returns the teacher of the next step: with the tokens that this step kept, and the kept ones of its layers."""
    model, layers = teacher.model, teacher.layers
    return Teacher(
        model if step.tokens is None else surgery.with_tokens(model, step.tokens),
        layers if step.layers is None else tuple(layers[index] for index in step.layers),
    )
