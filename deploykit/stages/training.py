"""The first stage: fine-tunes a base model."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import transformers

from deploykit import data, tasks, trainers
from deploykit.artifact import MANIFEST, Artifact, draft
from deploykit.errors import ModelError
from deploykit.evaluation import scoring
from deploykit.images import AnyTokenizer, ImageTokenizer
from deploykit.inference.predictor import Predictor
from deploykit.modeling import base_images, base_model, checkpoint, configuration
from deploykit.modeling.base_model import Base
from deploykit.modeling.heads import HEADS_KEY, heads_config, is_bidirectional_encoder
from deploykit.modeling.losses import (
    DIVERGENCE_ADVICE,
    MAX_LOGIT,
    max_magnitude,
    require_finite_predictions,
    require_finite_weights,
)
from deploykit.modeling.output_labels import match_labels, name_outputs, reorder_outputs
from deploykit.modeling.problem import Problem
from deploykit.stages import preflight
from deploykit.stages.context import Job
from deploykit.tasks import Example, Spec, spec_of, tune_spec

SEQUENCE_CLASSIFIER = "AutoModelForSequenceClassification"  # the auto class of tasks that score a whole text
MIN_ANSWER_DISTANCE = 0.01  # difference of probabilities; if all answers are closer, the model has learned nothing
MAX_MOSTLY_UNKNOWN_SHARE = 0.05  # of the texts of a split; above it, a warning is logged
log = logging.getLogger(__name__)


def train(job: Job) -> Artifact:
    """Fine-tunes the recipe's model on its data.

    Raises:
        ModelError: weights or logits are NaN, infinite or far too large.
    """
    recipe, task, dataset = job.recipe, job.task, job.dataset()
    base = base_model.resolve(recipe.model, recipe.revision)
    transformers.set_seed(recipe.seed)  # for the weights of a new head
    with draft(job.target) as folder:
        reads = tasks.input_kinds(task, recipe.data.columns)
        tokenizer = base_images.save(base, folder, recipe.data.max_tokens, reads)
        model, spec = open_model(job, base, tokenizer)
        is_pair = len(dataset.train[0].input.parts) > 1
        predictor = job.torch_predictor(model, tokenizer, spec)
        preflight.try_out(model, tokenizer, base.name, is_pair=is_pair)
        if recipe.export is not None:
            preflight.try_export(predictor, model, dataset.validation, recipe.export, base.name)
        lengths = data.describe_lengths(dataset, tokenizer)
        has_pairs = any(getattr(row.input, "text_pair", None) is not None for row in dataset.train)
        max_windows = 1 if has_pairs else getattr(spec.options, "max_windows", 1)  # pairs of texts are always cut
        _log_data(dataset, lengths, max_windows)
        _warn_of_unlabelled_heads(predictor, dataset)
        _warn_of_unpredictable_spans(predictor, dataset.train)
        problem = Problem.of(task, spec, tokenizer, dataset.train, dataset.validation, recipe.seed)
        trained = trainers.load(recipe.method("train")).train(model, problem, recipe.options("train"), job.work)
        model = trained.model.eval()
        predictor = job.torch_predictor(model, tokenizer, spec)
        predictions = scoring.predict_all(predictor, dataset)
        _check_predictions(job, predictions, base)
        spec = tune_spec(task, spec, dataset.validation, predictions["validation"])
        predictor = replace(predictor, spec=spec)
        test_tables = scoring.tables_of_test(predictor, dataset, predictions, recipe.seed)

        checkpoint.save(model, folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            predictions=predictions,
            parameters=checkpoint.count_parameters(model),
            details={"data": dataset.summary, "lengths": lengths, "curve": trained.curve, "test": test_tables},
            facts={
                "labels": spec.labels,
                "pair": is_pair,
                "max_tokens": tokenizer.max_tokens,
                "base_model": base.name,
                "base_revision": base.revision,
            },
        )


def open_model(job: Job, base: Base, tokenizer: AnyTokenizer) -> tuple[transformers.PreTrainedModel, Spec]:
    """Opens the base model with the head of the task.

    Returns:
        The model, and the task's labels and options. The labels are in the order of the model's outputs.
    """
    recipe, task, labels = job.recipe, job.task, job.dataset().labels
    fine_tuned = trainers.load(recipe.method("train")).NEEDS_FINE_TUNED
    stored_labels = labels  # in the order of the outputs in the files
    if fine_tuned and labels:
        stored_labels = match_labels(base_model.labels_of(base), labels, recipe.labels, base.name)
        labels = task.label_order(stored_labels)
    spec = _spec(job, labels, base, fine_tuned=fine_tuned)
    output_names = stored_labels or getattr(task, "OUTPUT_NAMES", ())
    head_labels = task.output_labels(spec) if hasattr(task, "output_labels") else None
    # transformers has no class for an image with a text
    if isinstance(tokenizer, ImageTokenizer) and tokenizer.text_tokenizer:
        head_labels = {"logits": output_names}
    is_pooled = task.AUTO_CLASS == SEQUENCE_CLASSIFIER and _is_pooled(job, base, fine_tuned=fine_tuned)
    if is_pooled:
        head_labels = {"logits": base_model.labels_of(base) if fine_tuned else output_names}
    heads = heads_config(task.OUTPUTS, head_labels) if head_labels else None
    model = base_model.open_base(
        base, task.AUTO_CLASS, output_names, fine_tuned=fine_tuned, pad_id=tokenizer.pad_id, heads=heads
    )
    if labels != stored_labels:
        reorder_outputs(model, [stored_labels.index(label) for label in labels])
    name_outputs(model.config, labels)
    if is_pooled and labels:
        setattr(model.config, HEADS_KEY, heads_config(task.OUTPUTS, {"logits": labels}))
    model.config.problem_type = getattr(task, "PROBLEM_TYPE", model.config.problem_type)
    require_finite_weights(model, base.name)
    # A decoder classifies a text by its last token before the padding, which it finds by this id.
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_id
    return model, spec


def _is_pooled(job: Job, base: Base, *, fine_tuned: bool) -> bool:
    """Says whether the head reads the mean of the tokens' states; see `pooling` of the trainer."""
    config = configuration.read(base.folder, base.name)
    if fine_tuned:
        return hasattr(config, HEADS_KEY)
    pooling = getattr(job.recipe.options("train"), "pooling", "auto")
    class_ending = SEQUENCE_CLASSIFIER.removeprefix("AutoModel")
    has_head = any(name.endswith(class_ending) for name in config.architectures or ())
    return pooling == "mean" or (pooling == "auto" and is_bidirectional_encoder(config) and not has_head)


def _spec(job: Job, labels: tuple[str, ...], base: Base, *, fine_tuned: bool) -> Spec:
    """Returns the labels, and the task's options with the values that the task takes from the training split.

    These values are, for example, the scale of numbers. A fine-tuned model keeps the scale that it was trained with:
    the one in its manifest if it is an artifact, unless the recipe sets another.
    """
    task, options, examples = job.task, job.recipe.task_options(), job.dataset().train
    if hasattr(task, "prepare"):
        options = task.prepare(examples, options)
    if not hasattr(task, "fit_scale"):
        return Spec(labels, options)
    if not fine_tuned:
        return Spec(labels, task.fit_scale(examples, options))
    if (base.folder / MANIFEST).is_file():
        manifest = Artifact.load(base.folder).manifest
        if manifest.task == job.recipe.task_name:
            set_in_recipe = job.recipe.task_options().model_fields_set
            update = {name: getattr(options, name) for name in set_in_recipe}
            options = spec_of(manifest).options.model_copy(update=update)
    return Spec(labels, options)


def _check_predictions(job: Job, predictions: scoring.Predictions, base: Base) -> None:
    """Checks what shows that training failed: numbers that are not finite or too large, and answers that do not differ.

    Raises:
        ModelError: logits are NaN, infinite, or too large after training. Equal answers give a warning.
    """
    is_trained = job.recipe.train is not None
    require_finite_predictions(job.task, predictions, f"{base.name}, after training," if is_trained else base.name)
    if is_trained and (logit := max_magnitude(job.task.dump(predictions["validation"]))) > MAX_LOGIT:
        raise ModelError(
            f"the logits reach {logit:.0e}, expected at most {MAX_LOGIT:g}: training diverged. {DIVERGENCE_ADVICE}"
        )
    first, *others = predictions["validation"]
    if is_trained and others and max(job.task.distance(first, other) for other in others) < MIN_ANSWER_DISTANCE:
        log.warning(
            "the model gives all %d texts of the validation split nearly the same answer: it has learned nothing from"
            " them. Lower learning_rate, which is %g, or train for more epochs",
            *(len(others) + 1, getattr(job.recipe.options("train"), "learning_rate", float("nan"))),
        )


def _log_data(dataset: data.Dataset, lengths: dict[str, Any], max_windows: int) -> None:
    """Logs rows, labels and lengths of the splits; warns of long texts and of an unsuitable tokenizer.

    Args:
        dataset: all splits.
        lengths: from `data.lengths`, by split.
        max_windows: the most windows in which a long text is read; 1: it is cut.
    """
    long_text_handling = "cut" if max_windows == 1 else f"read in up to {max_windows} windows"
    for name, count in dataset.summary["rows"].items():
        labels = ", ".join(f"{label} {number}" for label, number in dataset.summary["labels"][name].items())
        statistics = ", ".join(f"{key} {lengths[name][key]:.0f}" for key in ("mean", "p50", "p95", "max"))
        log.info("%s: %d rows (%s), tokens: %s", name, count, labels, statistics)
        if long := lengths[name]["truncated"]:
            limit = lengths[name]["max_tokens"]
            log.warning(
                "%d of %d %s texts are longer than %d tokens and are %s",
                *(long, count, name, limit, long_text_handling),
            )
        unknown = lengths[name]["mostly_unknown"]
        if unknown > MAX_MOSTLY_UNKNOWN_SHARE * count:
            log.warning(
                "%d of %d %s texts consist mostly of tokens that the tokenizer does not have, so that the model cannot"
                " tell them apart: choose a model for their language",
                *(unknown, count, name),
            )


def _warn_of_unlabelled_heads(predictor: Predictor, dataset: data.Dataset) -> None:
    """Warns of heads that have no labels in a split that is evaluated."""
    for head in getattr(predictor.task, "subtasks", lambda _: ())(predictor.spec):
        for name in scoring.EVALUATED_SPLITS:
            if not any(head in row.target for row in getattr(dataset, name)):
                log.warning("the %s split has no labels of the head %s, which is not evaluated there", name, head)


def _warn_of_unpredictable_spans(predictor: Predictor, training: Sequence[Example]) -> None:
    """Warns of spans that do not begin and end at the borders of tokens, if the task has spans."""
    misaligned_spans = getattr(predictor.task, "misaligned_spans", None)
    if misaligned_spans is None:
        return
    rows = zip(training, predictor.encode([example.input for example in training]), strict=True)
    found = [
        (example, span) for example, windows in rows for span in misaligned_spans(example, windows, predictor.spec)
    ]
    if found:
        example, span = found[0]
        log.warning(
            "%d of %d spans of the training split begin or end inside a token of the model's tokenizer, such as %r:"
            " the model cannot predict them. Choose a model whose tokenizer splits there, or spans of whole tokens",
            *(len(found), sum(len(row.target) for row in training), example.input.text[span.start : span.end]),
        )
