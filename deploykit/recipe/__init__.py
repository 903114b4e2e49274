"""Reads a recipe, the validated description of a whole run, from YAML and `key=value` overrides.

All mistakes are reported at once. For an unknown key the message names the most similar known one. The options of each
method are defined in the method's own file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deploykit import methods
from deploykit.errors import DeploykitError, RecipeError
from deploykit.methods import did_you_mean
from deploykit.recipe.overrides import apply_override
from deploykit.recipe.schema import (
    KIND_OF_STAGE,
    METHOD_MISSING,
    STAGES,
    Recipe,
    as_list,
    move_earlier_keys,
    path_options,
    without_method,
)
from deploykit.recipe.sections import HEAD_COLUMN, DataSection, ExportSection, GateSection, PackageSection
from deploykit.recipe.validation import explain_errors

# Group 1 is the suffix without compression; group 2 is the same for the suffixes of CoNLL.
DATA_SUFFIX = re.compile(
    r"\.(csv|tsv|jsonl|json|parquet|(conll|conllu|iob|bio|bio2))(?:\.(?:gz|bz2|xz))?$", re.IGNORECASE
)
# The member of `task.FIGURES` without which a gate cannot be measured.
FIGURE_OF_GATE = {"max_flips": "changes", "max_label_drop": "labels", "max_calibration_shift": "calibration"}


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file. Paths inside it are relative to its directory.
        overrides: `key=value` with dots for nested keys, such as `train.epochs=1`; values are YAML.

    Raises:
        RecipeError: lists every mistake.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}. Write one with: deploykit init") from None
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"the recipe {path} must hold keys and values, found {type(content).__name__}.")
    for override in overrides:
        apply_override(content, override)
    return parse(content, folder=path.parent, source=str(path))


def parse(content: Mapping[str, Any], folder: Path = Path(), source: str = "the recipe") -> Recipe:
    """Validates the content of a recipe.

    Args:
        content: of the YAML file.
        folder: the directory from which relative paths start.
        source: name of the recipe in messages.

    Raises:
        RecipeError: lists every mistake.
    """
    content = move_earlier_keys(content)
    mistakes: list[str] = []
    recipe = None
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        mistakes += explain_errors(error, Recipe, ())
    mistakes += _find_method_mistakes(content)
    mistakes += _find_column_mistakes(content)
    if recipe is not None and recipe.export is None and (recipe.quantize or recipe.package):
        mistakes.append("export: null writes no graph for quantize and package: set both to null, too")
    if recipe is not None and recipe.labels and recipe.train is not None:
        mistakes.append("labels: renames the labels of a model that is not trained, so it needs train: null")
    if recipe is not None and not mistakes:
        mistakes += _find_options_without_effect(recipe)
    if mistakes or recipe is None:
        listing = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise RecipeError(f"{source} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n{listing}")
    return _resolve_paths(recipe, folder)


def _find_method_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields a message for each unknown method, and for each mistake in the options of a method."""
    task = content.get("task")
    task_step = task if isinstance(task, dict) else {"method": task}
    for place, kind, step in [("task", "task", task_step), *_list_steps(content)]:
        name = step.get("method")
        if not isinstance(name, str):
            if "[" in place:  # in a list of steps; elsewhere the validation of `Recipe` reports it
                yield f"{place}: {METHOD_MISSING}, got {step!r}"
            continue
        try:
            method = methods.load(kind, name)
            method.Options.model_validate(without_method(step))
        except ValidationError as error:
            yield from explain_errors(error, method.Options, (place,))
        except DeploykitError as error:
            yield f"{place}: {error}"


def _find_options_without_effect(recipe: Recipe) -> Iterator[str]:
    """Yields a message for each gate, and for class weights, that cannot have an effect with this task."""
    task = methods.load("task", recipe.task_name)
    for gate, figure in FIGURE_OF_GATE.items():
        if getattr(recipe.gates, gate) is not None and figure not in task.FIGURES:
            yield f"gates.{gate}: {recipe.task_name} has nothing to measure for it. Remove the gate."
    losses = [target.loss for target in task.TARGETS.values()]
    section = recipe.train if isinstance(recipe.train, dict) else {}
    if section.get("class_weights") is not None and losses != ["cross_entropy"]:
        yield f"train.class_weights: {recipe.task_name} has no classes of which one is right. Remove the key."


def _find_column_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields a message for each key of `data` that names a column that the task does not have.

    If the task is unknown, the columns of all tasks are allowed.
    """
    task, section = content.get("task"), content.get("data")
    name = task.get("method") if isinstance(task, dict) else task
    known_tasks = methods.available("task")
    candidates = [name] if name in known_tasks else known_tasks
    roles = {role for candidate in candidates for role in methods.load("task", candidate).COLUMNS}
    if isinstance(section, dict) and isinstance(section.get("train"), dict) and HEAD_COLUMN not in roles:
        yield f"data.train: names several files, and {name} has no heads. Name one file."
    keys = [*(key for key in DataSection.model_fields if key != "columns"), *sorted(roles)]
    for role in DataSection.columns_in(section):
        if role not in roles:
            yield f"data.{role}: unknown key{did_you_mean(role, keys)}. Known: {', '.join(keys)}."


def _list_steps(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields place, kind of method and content of every section, or step of a section, that names a method."""
    for stage, kind in KIND_OF_STAGE.items():
        section = content.get(stage)
        for index, step in enumerate(as_list(section)):
            if isinstance(step, dict):
                yield f"{stage}[{index}]" if isinstance(section, list) else stage, kind, step


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Makes relative paths absolute, so that any stage can open them."""

    def absolute(path: str | Path) -> Path:
        return (folder / expand_home(path)).resolve()

    def with_absolute_paths(stage: str) -> Any:
        section = getattr(recipe, stage)
        if section is None:
            return None
        steps = [
            {**step, **{name: str(absolute(path)) for name, path in path_options(options)}}
            for step, (_, options) in zip(as_list(section), recipe.steps(stage), strict=True)
        ]
        return steps if isinstance(section, list) else steps[0]

    data = recipe.data.model_dump()
    for name in ("train", "validation", "test"):
        is_local = name == "train" and data["format"]  # data sets of the hub have no format
        if isinstance(data[name], dict):
            data[name] = {head: str(absolute(path)) for head, path in data[name].items()}
        elif data[name] and (is_local or is_file(data[name]) or absolute(data[name]).exists()):
            data[name] = str(absolute(data[name]))
    model = absolute(recipe.model)
    return recipe.model_copy(
        update={
            **{stage: with_absolute_paths(stage) for stage in KIND_OF_STAGE},
            "data": DataSection(**data),
            "model": str(model) if "://" not in recipe.model and model.exists() else recipe.model,
            "output": str(absolute(recipe.output or f"runs/{recipe.name}")),
        }
    )


def file_format(source: str) -> str | None:
    """Returns the format that the suffix of a file names, compressed or not; None for other suffixes."""
    match = DATA_SUFFIX.search(source)
    return match and ("conll" if match[2] else match[1].lower())


def is_file(source: str) -> bool:
    """Tells whether a data source is a file or a directory, rather than a data set of the hub or one of its splits.

    A path is recognized by the suffix of a data format, or else if it is absolute or begins with `.` or `~`. Anything
    else, such as `owner/name`, is on the hub.
    """
    return file_format(source) is not None or source.startswith((".", "~")) or Path(source).is_absolute()


def expand_home(path: str | Path) -> Path:
    """Returns a path with its leading `~` replaced by the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown user
        return Path(path)


__all__ = [
    "KIND_OF_STAGE",
    "STAGES",
    "DataSection",
    "ExportSection",
    "GateSection",
    "PackageSection",
    "Recipe",
    "expand_home",
    "file_format",
    "is_file",
    "load",
    "parse",
]
