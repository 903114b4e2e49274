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
from deploykit.modeling.heads import CONFIG_KEY, heads_config, reads_both_ways
from deploykit.modeling.losses import ADVICE, MAX_LOGIT, largest, require_finite, require_weights
from deploykit.modeling.problem import Problem
from deploykit.stages import preflight
from deploykit.stages.context import Job
from deploykit.tasks import Example, Spec, spec_of, tune_spec

WHOLE_TEXTS = "AutoModelForSequenceClassification"  # of tasks that give a text its scores
SAME_ANSWER = 0.01  # difference of probabilities up to which answers to different texts are called the same
MOSTLY_UNKNOWN_SHARE = 0.05  # of texts; above it, a warning is logged
log = logging.getLogger(__name__)


def train(job: Job) -> Artifact:
    """Fine-tunes the recipe's model on its data.

    Raises:
        ModelError: weights or logits are NaN, infinite or far too large.
    """
    recipe, task, dataset = job.recipe, job.task, job.dataset()
    base = base_model.resolve(recipe.model, recipe.revision)
    transformers.set_seed(recipe.seed)  # a new head is drawn when the model is opened
    with draft(job.target) as folder:
        reads = tasks.input_kinds(task, recipe.data.columns)
        tokenizer = base_images.save(base, folder, recipe.data.max_tokens, reads)
        model, spec = open_model(job, base, tokenizer)
        pair = len(dataset.train[0].input.parts) > 1
        predictor = job.torch_predictor(model, tokenizer, spec)
        preflight.try_out(model, tokenizer, base.name, pair=pair)
        if recipe.export is not None:
            preflight.try_export(predictor, model, dataset.validation, recipe.export, base.name)
        lengths = data.describe_lengths(dataset, tokenizer)
        is_cut = any(getattr(row.input, "text_pair", None) is not None for row in dataset.train)
        _log_data(dataset, lengths, 1 if is_cut else getattr(spec.options, "max_windows", 1))
        _warn_of_heads(predictor, dataset)
        _warn_of_spans(predictor, dataset.train)
        problem = Problem.of(task, spec, tokenizer, dataset.train, dataset.validation, recipe.seed)
        trained = trainers.load(recipe.method("train")).train(model, problem, recipe.options("train"), job.work)
        model = trained.model.eval()
        predictor = job.torch_predictor(model, tokenizer, spec)
        predictions = scoring.predict_all(predictor, dataset)
        _check_predictions(job, predictions, base)
        spec = tune_spec(task, spec, dataset.validation, predictions["validation"])
        predictor = replace(predictor, spec=spec)
        table = scoring.tables_of_test(predictor, dataset, predictions, recipe.seed)

        checkpoint.save(model, folder)
        return job.finish(
            folder,
            kind="checkpoint",
            predictor=predictor,
            predictions=predictions,
            parameters=checkpoint.parameters(model),
            details={"data": dataset.summary, "lengths": lengths, "curve": trained.curve, "test": table},
            facts={
                "labels": spec.labels,
                "pair": pair,
                "max_tokens": tokenizer.max_tokens,
                "base_model": base.name,
                "base_revision": base.revision,
            },
        )


def open_model(job: Job, base: Base, tokenizer: AnyTokenizer) -> tuple[transformers.PreTrainedModel, Spec]:
    """Opens the base model; the labels are in the order of its outputs."""
    recipe, task, names = job.recipe, job.task, job.dataset().labels
    labels, fine_tuned = names, trainers.load(recipe.method("train")).NEEDS_FINE_TUNED
    if fine_tuned and names:
        names = base_model.match_labels(base_model.labels_of(base), names, recipe.labels, base.name)
        labels = task.label_order(names)
    spec, outputs = _spec(job, labels, base, fine_tuned=fine_tuned), names or getattr(task, "OUTPUT_NAMES", ())
    own = task.output_labels(spec) if hasattr(task, "output_labels") else None
    if isinstance(tokenizer, ImageTokenizer) and tokenizer.text_tokenizer:
        own = {"logits": outputs}  # transformers has no class for an image with a text
    if pooled := task.AUTO_CLASS == WHOLE_TEXTS and _is_pooled(job, base, fine_tuned=fine_tuned):
        own = {"logits": base_model.labels_of(base) if fine_tuned else outputs}
    heads = heads_config(task.OUTPUTS, own) if own else None
    model = base_model.open_base(
        base, task.AUTO_CLASS, outputs, fine_tuned=fine_tuned, pad_id=tokenizer.pad_id, heads=heads
    )
    if labels != names:
        base_model.reorder_outputs(model, [names.index(label) for label in labels])
    base_model.name_outputs(model.config, labels)
    if pooled and labels:
        setattr(model.config, CONFIG_KEY, heads_config(task.OUTPUTS, {"logits": labels}))
    model.config.problem_type = getattr(task, "PROBLEM_TYPE", model.config.problem_type)
    require_weights(model, base.name)
    if (
        getattr(model.config, "pad_token_id", None) is None
    ):  # of a decoder, which classifies a text by its last token before padding
        model.config.pad_token_id = tokenizer.pad_id
    return model, spec


def _is_pooled(job: Job, base: Base, *, fine_tuned: bool) -> bool:
    """Says whether the head reads the mean of the tokens' states; see `pooling` of the trainer."""
    config = configuration.read(base.folder, base.name)
    if fine_tuned:
        return hasattr(config, CONFIG_KEY)
    pooling = getattr(job.recipe.options("train"), "pooling", "auto")
    has_head = any(name.endswith(WHOLE_TEXTS.removeprefix("AutoModel")) for name in config.architectures or ())
    return pooling == "mean" or (pooling == "auto" and reads_both_ways(config) and not has_head)


def _spec(job: Job, labels: tuple[str, ...], base: Base, *, fine_tuned: bool) -> Spec:
    """Returns the labels, and the recipe's options of the task with what the task learns from the training split.

    A model that has its head keeps the scale of its numbers: that of the recipe, or of the artifact that it is.
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
            named = {name: getattr(options, name) for name in job.recipe.task_options().model_fields_set}
            options = spec_of(manifest).options.model_copy(update=named)
    return Spec(labels, options)


def _check_predictions(job: Job, predictions: scoring.Predictions, base: Base) -> None:
    trained = job.recipe.train is not None
    require_finite(job.task, predictions, f"{base.name}, after training," if trained else base.name)
    if trained and (logit := largest(job.task.dump(predictions["validation"]))) > MAX_LOGIT:
        raise ModelError(f"the logits reach {logit:.0e}, expected at most {MAX_LOGIT:g}: training diverged. {ADVICE}")
    first, *others = predictions["validation"]
    if trained and others and max(job.task.distance(first, other) for other in others) < SAME_ANSWER:
        log.warning(
            "the model gives all %d texts of the validation split nearly the same answer: it has learned nothing from"
            " them. Lower learning_rate, which is %g, or train for more epochs",
            *(len(others) + 1, getattr(job.recipe.options("train"), "learning_rate", float("nan"))),
        )


def _log_data(dataset: data.Dataset, lengths: dict[str, Any], windows: int) -> None:
    """Logs rows, labels and lengths of the splits; warns of long texts and of an unsuitable tokenizer.

    `windows` is the largest number of windows in which a long text is read; 1: it is cut.
    """
    reading = "cut" if windows == 1 else f"read in up to {windows} windows"
    for name, count in dataset.summary["rows"].items():
        labels = ", ".join(f"{label} {number}" for label, number in dataset.summary["labels"][name].items())
        spread = ", ".join(f"{part} {lengths[name][part]:.0f}" for part in ("mean", "p50", "p95", "max"))
        log.info("%s: %d rows (%s), tokens: %s", name, count, labels, spread)
        if long := lengths[name]["truncated"]:
            limit = lengths[name]["max_tokens"]
            log.warning("%d of %d %s texts are longer than %d tokens and are %s", long, count, name, limit, reading)
        unknown = lengths[name]["mostly_unknown"]
        if unknown > MOSTLY_UNKNOWN_SHARE * count:
            log.warning(
                "%d of %d %s texts consist mostly of tokens that the tokenizer does not have, so that the model cannot"
                " tell them apart: choose a model for their language",
                *(unknown, count, name),
            )


def _warn_of_heads(predictor: Predictor, dataset: data.Dataset) -> None:
    """Warns of heads that have no labels in a split that is evaluated."""
    for head in getattr(predictor.task, "subtasks", lambda _: ())(predictor.spec):
        for name in scoring.EVALUATED_SPLITS:
            if not any(head in row.target for row in getattr(dataset, name)):
                log.warning("the %s split has no labels of the head %s, which is not evaluated there", name, head)


def _warn_of_spans(predictor: Predictor, training: Sequence[Example]) -> None:
    """Warns of spans that do not begin and end at tokens, if the task has spans."""
    misaligned_spans = getattr(predictor.task, "misaligned_spans", None)
    if misaligned_spans is None:
        return
    rows = zip(training, predictor.encode([example.input for example in training]), strict=True)
    pairs = [(example, span) for example, parts in rows for span in misaligned_spans(example, parts, predictor.spec)]
    if pairs:
        example, span = pairs[0]
        log.warning(
            "%d of %d spans of the training split begin or end inside a token of the model's tokenizer, such as %r:"
            " the model cannot predict them. Choose a model whose tokenizer splits there, or spans of whole tokens",
            *(len(pairs), sum(len(row.target) for row in training), example.input.text[span.start : span.end]),
        )
